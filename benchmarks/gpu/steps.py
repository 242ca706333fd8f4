"""Steps of a runner without the engine's thread."""

import random
import time
from collections.abc import Callable

from llava_serving.engine.completion import SampledToken
from llava_serving.engine.prompt import SamplingParams
from llava_serving.engine.scheduler import Batch, Scheduler
from llava_serving.engine.sequence import Sequence
from llava_serving.model.model_runner import ModelRunner


class Steps:
    """Runs sequences as Engine does: it launches a step, and then reads the tokens of the step before."""

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._in_flight: tuple[Batch, Callable[[], dict[int, SampledToken]]] | None = None
        self._next_id = 0

    def add(self, token_ids: list[int], max_new_tokens: int) -> None:
        seq_id = self._next_id
        self._next_id += 1
        params = SamplingParams(max_new_tokens, ignore_eos=True)
        # Each sequence has its own cache salt, so that none hits the prefix cache.
        seq = Sequence(seq_id, token_ids, (), params, random.Random(seq_id), seq_id.to_bytes(8, "little"))
        self._scheduler.add(seq, len(token_ids) + max_new_tokens)

    @property
    def lengths(self) -> list[int]:
        return [seq.length for seq in self._scheduler]

    def step(self) -> float:
        """Runs a step, and returns the seconds that its launch took on the host."""
        batch = self._scheduler.schedule()
        assert batch.scheduled, "no sequence can run"
        started = time.perf_counter()
        collect = self._runner.launch(batch)
        seconds = time.perf_counter() - started
        self._scheduler.advance(batch)
        self.collect()
        self._in_flight = batch, collect
        return seconds

    def collect(self) -> None:
        """Waits for the step in flight, and appends its tokens to the sequences."""
        if self._in_flight is None:
            return
        batch, collect = self._in_flight
        self._in_flight = None
        tokens = collect()
        for chunk in batch.scheduled:
            chunk.seq.num_pending -= chunk.samples
            if chunk.samples:
                token = tokens[chunk.seq.seq_id].token
                assert token is not None, "the logits are not finite"
                chunk.seq.token_ids.append(token)

    def prefill(self) -> None:
        """Runs steps until every sequence decodes."""
        while any(seq.length == seq.num_prompt_tokens for seq in self._scheduler):
            self.step()

    def clear(self) -> None:
        """Ends every sequence."""
        self.collect()
        for seq in list(self._scheduler):
            self._scheduler.remove(seq)
