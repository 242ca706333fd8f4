"""The engine: one thread that owns all generation state, and takes it step by step: schedule, launch, postprocess.

If the runner's device computes by itself, the host is one step behind. It launches a step, and reads the tokens of the
step before while the device computes. A sequence that has ended by then has run one token too many, which is dropped.
Other threads submit requests and read the events of their handles. Every admitted sequence ends exactly once: finished,
past its deadline, cancelled, or failed with the step that it was in.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from queue import Empty, SimpleQueue
from typing import Protocol

from ..errors import InternalError, Unavailable
from .admission import RESTART_SECONDS, Admission, Places
from .completion import FinishReason, SampledToken
from .prompt import EnginePrompt
from .request_handle import RequestHandle
from .scheduler import Batch, Scheduler
from .sequence import Sequence, random_numbers
from .sequence_output import SequenceOutput
from .stats import Stats
from .vocabulary import Vocabulary
from .wait_forecast import Forecaster
from .watchdog import Watchdog

logger = logging.getLogger(__name__)
# The engine looks for disconnected clients and passed deadlines this often. Each look costs two system calls a request.
ABORT_INTERVAL_SECONDS = 0.02
UNHEALTHY = ("unhealthy", "this instance has failed and is being restarted; try again")
DRAINING = ("draining", "this instance is being shut down; try again")


class Runner(Protocol):
    """Runs batches on a device."""

    overlaps: bool  # `launch` returns before the device is done

    def launch(self, batch: Batch) -> Callable[[], dict[int, SampledToken]]:
        """Starts a step. The result is a function that waits for the step and returns the sampled tokens by seq_id."""
        ...

    def probe(self) -> None:
        """Raises if the device does not compute any more."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Returns whether a step failed because the device has too little memory for it."""
        ...


class _Signal(Enum):
    """A message to the engine's thread that is no request."""

    STOP = auto()
    DRAIN = auto()


@dataclass(frozen=True)
class _Submission:
    prompts: list[EnginePrompt]
    handle: RequestHandle
    submitted_at: float


@dataclass(frozen=True)
class _StepInFlight:
    """A launched step. `collect` waits for its tokens."""

    batch: Batch
    collect: Callable[[], dict[int, SampledToken]]


class Engine:
    """Generates for requests that any thread submits.

    At most `max_live_seqs` sequences run and wait. `on_unhealthy` is called once, with a reason, when the device does
    not compute any more: a step fails and the runner's probe fails too, or a step takes more than
    `step_timeout_seconds`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        vocabulary: Vocabulary,
        stats: Stats,
        max_live_seqs: int,
        prefix_caching: bool = True,
        step_timeout_seconds: float = math.inf,
        on_unhealthy: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.stats = stats
        self._scheduler = scheduler
        self._runner = runner
        self._vocabulary = vocabulary
        self._prefix_caching = prefix_caching
        self._on_unhealthy = on_unhealthy
        self._admission = Admission(max_live_seqs)
        self._submissions: SimpleQueue[_Submission | _Signal] = SimpleQueue()
        self._next_seq_id = 0
        self._outputs: dict[int, SequenceOutput] = {}  # of every sequence in the scheduler, by seq_id
        self._in_flight: _StepInFlight | None = None
        self._forecaster = Forecaster(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        self._watchdog = Watchdog(step_timeout_seconds, self._report_stall)
        self._next_abort = 0.0
        self._drain_deadline = math.inf
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._watchdog.start()
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Ends the thread after the step that it is in, and waits for it, at most `timeout` seconds."""
        self.refuse(*DRAINING)
        self._submissions.put(_Signal.STOP)
        self._thread.join(timeout)
        self._watchdog.stop()

    def refuse(self, code: str, message: str) -> None:
        """Admits no request any more. Admitted requests go on."""
        self._admission.refuse(code, message)

    def drain(self, seconds: float) -> None:
        """Admits no request any more, and ends the admitted ones within `seconds` with the text they have by then.

        Takes no lock, so that a signal handler can call it.
        """
        self._drain_deadline = time.monotonic() + seconds
        self._admission.announce_refusal(*DRAINING)
        self._submissions.put(_Signal.DRAIN)

    def reserve(self, num_seqs: int = 1, wait: bool = False) -> Places:
        """Returns room for a request of `num_seqs` sequences, before any work is done for it.

        Raises Overloaded or Unavailable. With `wait` it waits for room, first come, first served, and raises
        Unavailable only.
        """
        return self._admission.reserve(num_seqs, wait)

    def check_admission(self, num_seqs: int) -> None:
        """Raises Overloaded or Unavailable if there is no room for `num_seqs` more sequences now."""
        self._admission.check(num_seqs)

    def submit(self, prompts: list[EnginePrompt], handle: RequestHandle, places: Places | None = None) -> None:
        """Queues all prompts of a request, or none. Their events go to `handle`.

        The sequences take `places`, which grow if the request has more of them. Raises as `reserve` does.
        """
        num_seqs = sum(prompt.params.n for prompt in prompts)
        with places or self.reserve(num_seqs) as held, self._admission.lock:
            self._admission.check_refusal()
            held.grow_to(num_seqs)
            held.take()
            handle.expect(num_seqs)
            self._submissions.put(_Submission(prompts, handle, time.monotonic()))

    def step(self) -> None:
        """Launches the next step, then reads the tokens of the step before, or of this one if nothing overlaps."""
        before, self._in_flight = self._in_flight, None
        launched = self._launch()
        if not self._runner.overlaps:
            before, launched = launched, before
        if before is None or self._collect(before):
            self._in_flight = launched
        elif launched is not None:  # its input is the output of the failed step
            self._fail_step(launched.batch)
        self._watchdog.end_step(next_in_flight=self._in_flight is not None)
        self._forecast(time.monotonic())

    def _launch(self) -> _StepInFlight | None:
        batch = self._scheduler.schedule()
        if not batch.scheduled:
            return None
        now = time.monotonic()
        self._watchdog.begin_step()
        for chunk in batch.scheduled:
            self._outputs[chunk.seq.seq_id].schedule(now)
        try:
            collect = self._runner.launch(batch)
        except Exception as error:
            self._log_and_fail_step(batch, error)
            return None
        self._scheduler.advance(batch)
        return _StepInFlight(batch, collect)

    def _collect(self, step: _StepInFlight) -> bool:
        """Reads the step's tokens, and posts their events. Returns False if the step failed."""
        try:
            tokens = step.collect()
        except Exception as error:
            self._log_and_fail_step(step.batch, error)
            return False
        self._postprocess(step.batch, tokens)
        return True

    def _postprocess(self, batch: Batch, tokens: dict[int, SampledToken]) -> None:
        now = time.monotonic()
        for chunk in batch.scheduled:
            chunk.seq.num_pending -= chunk.samples
            output, sampled = self._outputs.get(chunk.seq.seq_id), tokens.get(chunk.seq.seq_id)
            if output is None or sampled is None:  # the sequence has ended meanwhile; the chunk is part of a prompt
                continue
            self.stats.generation_tokens += 1
            if sampled.token is None:
                self._fail_request(output.handle, "the model's output for this request is not a number")
            elif reason := output.push(sampled, now):
                self._finish(output, reason, now)
            else:
                output.send_text(now)

    def _loop(self) -> None:
        while True:
            try:
                if not self._take_submissions():
                    return
                self._abort(time.monotonic())
                if self._has_work:
                    self.step()
            except Exception as error:  # the device's or a bug: no state of the engine can be relied on
                logger.exception("the engine fails")
                self._give_up(f"{type(error).__name__}: {error}")
                return

    @property
    def _has_work(self) -> bool:
        return self._scheduler.has_work or self._in_flight is not None

    def _take_submissions(self) -> bool:
        """Adds the submitted sequences. Waits for some if there is no other work. Returns False at the end."""
        while True:
            if not self._has_work:
                self._forecaster.pause()
            try:
                submission = self._submissions.get(block=not self._has_work)
            except Empty:
                return True
            if submission is _Signal.STOP:
                return False
            if isinstance(submission, _Submission):
                self._add(submission)
            else:
                self.refuse(*DRAINING)  # wakes the threads that wait for room

    def _add(self, submission: _Submission) -> None:
        # Sequences of one request share their prompt's blocks even without the prefix cache.
        cache_salt = b"" if self._prefix_caching else self._next_seq_id.to_bytes(8, "little")
        for prompt_index, prompt in enumerate(submission.prompts):
            for index in range(prompt.params.n):
                seq = Sequence(
                    seq_id=self._next_seq_id,
                    token_ids=list(prompt.token_ids),
                    images=prompt.images,
                    params=prompt.params,
                    random=random_numbers(prompt.params.seed, index),
                    cache_salt=cache_salt,
                )
                self._next_seq_id += 1
                self._outputs[seq.seq_id] = SequenceOutput(
                    seq, self._vocabulary, submission.handle, prompt_index, index, submission.submitted_at
                )
                self._forecaster.submitted(seq)
                self._scheduler.add(seq, seq.num_tokens + seq.params.max_new_tokens)

    def _abort(self, now: float) -> None:
        """Aborts sequences whose client disconnected or whose deadline passed."""
        if now < self._next_abort:
            return
        self._next_abort = now + ABORT_INTERVAL_SECONDS
        handles = {output.handle for output in self._outputs.values()}
        cancelled = {handle for handle in handles if handle.is_closed or handle.is_disconnected()}
        late = {handle for handle in handles if now >= min(handle.deadline, self._drain_deadline)}
        for output in list(self._outputs.values()):
            if output.handle in cancelled:
                self._finish(output, "cancelled", now)
            elif output.handle in late:
                self._finish(output, "deadline", now)

    def _finish(self, output: SequenceOutput, reason: FinishReason, now: float) -> None:
        self._remove(output)
        output.finish(reason, now)
        if reason in ("stop", "length"):
            self._forecaster.answer_ended(output.seq)

    def _forecast(self, now: float) -> None:
        """Tells the admission when the live sequences will have finished."""
        self._forecaster.step_ended(self.stats.num_running, now)
        if self._forecaster.is_due(now):
            self._admission.forecast = self._forecaster.forecast(self._scheduler.running, self._scheduler.waiting, now)

    def _log_and_fail_step(self, batch: Batch, error: Exception) -> None:
        logger.error("a step failed; it ends %d sequences", len(batch.scheduled), exc_info=error)
        if self._runner.is_out_of_memory(error):
            logger.warning("the device is out of memory; from now on %s", self._scheduler.shrink())
        self._fail_step(batch)

    def _fail_step(self, batch: Batch) -> None:
        """Ends the requests of a step that failed. Raises if the device does not compute any more."""
        self._scheduler.reset_prefix_cache()
        outputs = [self._outputs.get(chunk.seq.seq_id) for chunk in batch.scheduled]
        for handle in {output.handle for output in outputs if output is not None}:
            self._fail_request(handle, "the step that this request was in failed; the log says why")
        self._runner.probe()

    def _fail_request(self, handle: RequestHandle, message: str) -> None:
        for output in [output for output in self._outputs.values() if output.handle is handle]:
            self._remove(output)
        handle.post(InternalError("generation_failed", message))

    def _give_up(self, reason: str) -> None:
        """Ends every request, and refuses new ones."""
        self.refuse(*UNHEALTHY)
        handles = {output.handle for output in self._outputs.values()}
        while not self._submissions.empty():
            if isinstance(submission := self._submissions.get(), _Submission):
                handles.add(submission.handle)
        for handle in handles:
            handle.post(Unavailable(*UNHEALTHY, retry_after=RESTART_SECONDS))
        self._on_unhealthy(reason)

    def _report_stall(self) -> None:
        self.refuse(*UNHEALTHY)
        self._on_unhealthy("a step does not end")

    def _remove(self, output: SequenceOutput) -> None:
        self._scheduler.remove(output.seq)
        del self._outputs[output.seq.seq_id]
        self._admission.release()
