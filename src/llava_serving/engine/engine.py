"""The engine: one thread that owns all generation state and turns it, step by step: schedule, launch, postprocess.

Where a runner's device computes by itself, the host is one step behind: it launches a step, and looks at the tokens of
the step before while the device computes. A sequence that has ended by then has run one token too many, which is
dropped. Other threads put requests in and take events out. Each sequence that was let in ends exactly once: finished,
past its deadline, cancelled, or failed with the step it was in.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from ..errors import InternalError, Overloaded, Unavailable
from .completion import FinishReason, SampledToken, TokenLogprob
from .prompt import EnginePrompt
from .request import RequestHandle, SequenceEnd, TextDelta
from .scheduler import Batch, Scheduler
from .sequence import Sequence, random_numbers
from .sequence_output import Output
from .stats import Stats

logger = logging.getLogger(__name__)
# Between looks at who has left and whose time is up: two system calls for each request are not needed every step.
SWEEP_SECONDS = 0.02
# Text that comes faster is told together: a reader cannot tell, and every event wakes a thread and is a system call.
TELL_SECONDS = 0.02
# What a caller is told to wait when this instance goes: others, if there are any, answer at once.
RESTART_SECONDS = 5
UNHEALTHY = ("unhealthy", "this instance has failed and is being restarted; try again")


class Runner(Protocol):
    """What runs a batch."""

    overlaps: bool  # `launch` returns before the device is done

    def launch(self, batch: Batch) -> Callable[[], dict[int, SampledToken]]:
        """Starts a step. What comes back waits for it and returns the next token, by `seq_id`, of every sequence that
        the batch samples from."""
        ...

    def probe(self) -> None:
        """Raises if the device does not compute any more."""
        ...


@dataclass(frozen=True)
class TextModel:
    """How ids become text: the UTF-8 bytes a token adds, and the id that ends a text."""

    token_bytes: Callable[[int], bytes]
    eos_id: int


@dataclass(frozen=True)
class _InFlight:
    """A step that the device computes; `collect` waits for its tokens."""

    batch: Batch
    collect: Callable[[], dict[int, SampledToken]]


@dataclass(eq=False)
class _Live:
    """A sequence with the request it belongs to."""

    seq: Sequence
    output: Output
    generation: RequestHandle
    row: int
    index: int
    told: float = 0.0  # when its caller last saw new text


class Engine:
    """`submit` prompts from any thread, take the events of its RequestHandle.

    `max_live_seqs` are let in at a time, running and waiting together. `on_unhealthy` is called once, when the device
    is found not to compute any more: a step fails and so does the runner's probe, or a step takes `stall_seconds`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        text_model: TextModel,
        stats: Stats,
        max_live_seqs: int,
        prefix_caching: bool = True,
        stall_seconds: float = math.inf,
        on_unhealthy: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.stats = stats
        self._scheduler = scheduler
        self._runner = runner
        self._text_model = text_model
        self._max_live_seqs = max_live_seqs
        self._prefix_caching = prefix_caching
        self._stall_seconds = stall_seconds
        self._on_unhealthy = on_unhealthy
        self._lock = threading.Lock()  # over what submitting threads and the engine's both change
        self._num_live = 0
        self._next_seq_id = 0
        self._refusal: tuple[str, str] | None = None  # code and message
        self._drained_by = math.inf
        self._submitted: SimpleQueue[list[_Live] | None] = SimpleQueue()
        self._live: dict[int, _Live] = {}
        self._in_flight: _InFlight | None = None
        # When it began to be busy, then when the last sequences ended.
        self._ends: deque[float] = deque([0.0], maxlen=64)
        self._step_began = math.inf
        self._next_sweep = 0.0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float | None = None) -> None:
        """Ends the thread after the step it is in, which it waits for, `patience` seconds at most."""
        self.refuse("draining", "this instance is being shut down")
        self._submitted.put(None)
        self._thread.join(patience)

    def refuse(self, code: str, message: str) -> None:
        """Lets nobody in any more; what is live goes on."""
        with self._lock:
            self._refusal = self._refusal or (code, message)

    def drain(self, seconds: float) -> None:
        """Lets nobody in any more and ends what is still live in `seconds`, with the text there is by then."""
        self.refuse("draining", "this instance is being shut down; try again")
        self._drained_by = time.monotonic() + seconds

    def check_admission(self, num_seqs: int = 1) -> None:
        """Raises what `submit` of as many sequences would raise now: Overloaded or Unavailable."""
        with self._lock:
            self._check_admission(num_seqs)

    def submit(self, submissions: list[EnginePrompt], generation: RequestHandle) -> None:
        """Queues the prompts of a request, all or none; `generation` is told what becomes of them.

        Raises Overloaded or Unavailable.
        """
        now = time.monotonic()
        count = sum(submission.params.n for submission in submissions)
        with self._lock:
            self._check_admission(count)
            if self._num_live == 0:
                self._ends = deque([now], self._ends.maxlen)
            self._num_live += count
            numbers = iter(range(self._next_seq_id, self._next_seq_id + count))
            self._next_seq_id += count
            cache_salt = b"" if self._prefix_caching else self._next_seq_id.to_bytes(8, "little")
            self._submitted.put(
                [
                    self._new(next(numbers), submission, cache_salt, generation, (row, index), now)
                    for row, submission in enumerate(submissions)
                    for index in range(submission.params.n)
                ]
            )

    def step(self) -> None:
        """Launches the next step, then takes in the tokens of the step before, or this one's if nothing overlaps."""
        before, self._in_flight = self._in_flight, None
        launched = self._launch()
        if not self._runner.overlaps:
            before, launched = launched, before
        if before is None or self._take_in(before):
            self._in_flight = launched
        elif launched is not None:  # it was computed from what failed
            self._fail(launched.batch)
        self._step_began = math.inf if self._in_flight is None else time.monotonic()

    def _launch(self) -> _InFlight | None:
        batch = self._scheduler.schedule()
        if not batch.scheduled:
            return None
        now = time.monotonic()
        self._step_began = min(self._step_began, now)
        for entry in batch.scheduled:
            self._live[entry.seq.seq_id].output.start(now)
        try:
            collect = self._runner.launch(batch)
        except Exception:
            logger.exception("a step failed; it ends %d sequences", len(batch.scheduled))
            self._fail(batch)
            return None
        self._scheduler.advance(batch)
        return _InFlight(batch, collect)

    def _take_in(self, step: _InFlight) -> bool:
        """Tells callers what the step brought; false if it failed."""
        try:
            tokens = step.collect()
        except Exception:
            logger.exception("a step failed; it ends %d sequences", len(step.batch.scheduled))
            self._fail(step.batch)
            return False
        self._postprocess(step.batch, tokens)
        return True

    def _check_admission(self, num_seqs: int) -> None:
        if time.monotonic() - self._step_began > self._stall_seconds:
            self._refusal = UNHEALTHY
            threading.Thread(target=self._on_unhealthy, args=("a step does not end",), name="stall").start()
            self._step_began = math.inf  # said once
        if self._refusal is not None:
            raise Unavailable(*self._refusal, retry_after=RESTART_SECONDS)
        missing = self._num_live + num_seqs - self._max_live_seqs
        if missing > 0:
            raise Overloaded(
                "overloaded",
                f"{self._num_live} of at most {self._max_live_seqs} sequences are running or waiting; {num_seqs} more "
                "do not fit now",
                retry_after=self._seconds_until_ended(missing),
            )

    def _seconds_until_ended(self, count: int) -> int:
        """When `count` of the live sequences will have ended, at the pace of the last to end."""
        each = (time.monotonic() - self._ends[0]) / max(1, len(self._ends) - 1)
        return max(1, math.ceil(count * each))

    def _new(
        self,
        seq_id: int,
        submission: EnginePrompt,
        cache_salt: bytes,
        generation: RequestHandle,
        place: tuple[int, int],
        now: float,
    ) -> _Live:
        params = submission.params
        numbers = random_numbers(params.seed, place[1])
        seq = Sequence(seq_id, list(submission.token_ids), submission.images, params, numbers, cache_salt)
        output = Output(seq, self._text_model.token_bytes, self._text_model.eos_id, now)
        return _Live(seq, output, generation, *place)

    def _loop(self) -> None:
        while True:
            try:
                if not self._take_submitted():
                    return
                self._sweep(time.monotonic())
                if self._has_work:
                    self.step()
            except Exception as error:  # the device's, or a bug: nothing the engine holds can be relied on
                logger.exception("the engine fails")
                self._give_up(f"{type(error).__name__}: {error}")
                return

    @property
    def _has_work(self) -> bool:
        return self._scheduler.has_work or self._in_flight is not None

    def _take_submitted(self) -> bool:
        """Adds what was submitted, waiting for it if there is nothing else to do; false at the end."""
        while True:
            try:
                lives = self._submitted.get(block=not self._has_work)
            except Empty:
                return True
            if lives is None:
                return False
            for live in lives:
                self._live[live.seq.seq_id] = live
                self._scheduler.add(live.seq, live.seq.num_tokens + live.seq.params.max_new_tokens)

    def _sweep(self, now: float) -> None:
        """Ends whoever has nobody waiting for him any more, or no time left."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_SECONDS
        generations = {live.generation for live in self._live.values()}
        left = {generation for generation in generations if generation.closed or generation.gone()}
        late = {generation for generation in generations if now >= min(generation.deadline, self._drained_by)}
        for live in list(self._live.values()):
            if live.generation in left:
                self._end(live, "cancelled", now)
            elif live.generation in late:
                self._end(live, "deadline", now)

    def _postprocess(self, batch: Batch, tokens: dict[int, SampledToken]) -> None:
        now = time.monotonic()
        for entry in batch.scheduled:
            entry.seq.num_pending -= entry.samples
            live, sampled = self._live.get(entry.seq.seq_id), tokens.get(entry.seq.seq_id)
            if live is None or sampled is None:  # it has ended meanwhile; a part of its prompt
                continue
            self.stats.generation_tokens += 1
            if sampled.token is None:
                self._fail_request(live.generation, "the model's output for this request is not a number")
            elif reason := live.output.push(sampled, now):
                self._end(live, reason, now)
            elif live.generation.streaming and now >= live.told + TELL_SECONDS:
                live.told = now
                self._tell(live, *live.output.settle())

    def _end(self, live: _Live, reason: FinishReason, now: float) -> None:
        text, logprobs, completion = live.output.finish(reason, now)
        self._drop(live)
        if live.generation.streaming:
            self._tell(live, text, logprobs)
        live.generation.post(SequenceEnd(live.row, live.index, completion))

    def _tell(self, live: _Live, text: str, logprobs: tuple[TokenLogprob, ...]) -> None:
        if text or logprobs:
            live.generation.post(TextDelta(live.row, live.index, text, logprobs))

    def _fail(self, batch: Batch) -> None:
        """Ends the requests of a step that failed; raises if it was not theirs but the device does not compute."""
        self._scheduler.reset_prefix_cache()
        lives = [self._live.get(entry.seq.seq_id) for entry in batch.scheduled]
        for generation in {live.generation for live in lives if live is not None}:
            self._fail_request(generation, "the step that this request was in failed; the log says why")
        self._runner.probe()

    def _fail_request(self, generation: RequestHandle, message: str) -> None:
        for live in [live for live in self._live.values() if live.generation is generation]:
            self._drop(live)
        generation.post(InternalError("generation_failed", message))

    def _give_up(self, reason: str) -> None:
        self.refuse(*UNHEALTHY)
        lives = list(self._live.values())
        while not self._submitted.empty():
            lives += self._submitted.get() or []
        for generation in {live.generation for live in lives}:
            generation.post(Unavailable(*UNHEALTHY, retry_after=RESTART_SECONDS))
        self._on_unhealthy(reason)

    def _drop(self, live: _Live) -> None:
        self._scheduler.remove(live.seq)
        del self._live[live.seq.seq_id]
        with self._lock:
            self._num_live -= 1
            self._ends.append(time.monotonic())
