"""The engine's runner on the random model, and its steps without the engine's thread."""

import random
import time
from collections.abc import Callable

from transformers import LlavaForConditionalGeneration

from llava_serving.engine.block_manager import BlockManager
from llava_serving.engine.completion import SampledToken
from llava_serving.engine.config import EngineConfig
from llava_serving.engine.prompt import SamplingParams
from llava_serving.engine.scheduler import Batch, Scheduler
from llava_serving.engine.sequence import Sequence
from llava_serving.engine.stats import Stats
from llava_serving.engine.vocabulary import Vocabulary
from llava_serving.model.backend import Backend
from llava_serving.model.runner_builder import build_runner
from llava_serving.model.kv_cache import BLOCK_SIZE, bytes_per_block
from llava_serving.model.model_runner import ModelRunner

from .random_model import EOS
from .sizes import GIB

ADDED_TOKENS = 3


def vocabulary_of(model: LlavaForConditionalGeneration) -> Vocabulary:
    """Every token adds the same text: the benchmark looks at token ids."""
    return Vocabulary(model.config.text_config.vocab_size - ADDED_TOKENS, EOS, lambda _: b"x")


def make_runner(
    model: LlavaForConditionalGeneration, backend: Backend, max_num_seqs: int, max_step_tokens: int, num_blocks: int,
    static: bool = False, overlap: bool = True,
) -> tuple[ModelRunner, Scheduler]:  # fmt: skip
    """A runner with at least `num_blocks` blocks of cache, and a scheduler for them."""
    llama = model.config.text_config
    blocks = max(num_blocks, -(-llama.max_position_embeddings // BLOCK_SIZE))
    cache_bytes = (blocks + 0.5) * bytes_per_block(llama, llama.num_hidden_layers, model.dtype)
    config = EngineConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_step_tokens, kv_cache_gib=cache_bytes / GIB,
        static_decode=static, overlap=overlap,
    )  # fmt: skip
    stats = Stats()
    runner, found = build_runner(model, vocabulary_of(model), config, stats, backend)
    return runner, Scheduler(BlockManager(found, BLOCK_SIZE), max_num_seqs, max_step_tokens, stats)


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Ids of text."""
    numbers = random.Random(seed)
    return [numbers.randrange(3, vocabulary - ADDED_TOKENS) for _ in range(count)]


class Steps:
    """Runs sequences as Engine does: a step is launched before the tokens of the one before are looked at."""

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._in_flight: tuple[Batch, Callable[[], dict[int, SampledToken]]] | None = None
        self._next_id = 0

    def add(self, token_ids: list[int], max_new_tokens: int) -> None:
        number = self._next_id
        self._next_id += 1
        params = SamplingParams(max_new_tokens, ignore_eos=True)
        # A root of its own: nothing is found in the prefix cache.
        seq = Sequence(number, token_ids, (), params, random.Random(number), number.to_bytes(8, "little"))
        self._scheduler.add(seq, len(token_ids) + max_new_tokens)

    @property
    def lengths(self) -> list[int]:
        return [seq.length for seq in self._scheduler]

    def step(self) -> float:
        """Seconds that the launch took on the host."""
        batch = self._scheduler.schedule()
        assert batch.scheduled, "nothing can run"
        began = time.perf_counter()
        collect = self._runner.launch(batch)
        seconds = time.perf_counter() - began
        self._scheduler.advance(batch)
        self.take_in()
        self._in_flight = batch, collect
        return seconds

    def take_in(self) -> None:
        """Waits for the step in flight."""
        if self._in_flight is None:
            return
        batch, collect = self._in_flight
        self._in_flight = None
        tokens = collect()
        for entry in batch.scheduled:
            entry.seq.num_pending -= entry.samples
            if entry.samples:
                token = tokens[entry.seq.seq_id].token
                assert token is not None, "the logits are no numbers"
                entry.seq.token_ids.append(token)

    def prefill(self) -> None:
        """Steps until every sequence decodes."""
        while any(seq.length == seq.num_prompt_tokens for seq in self._scheduler):
            self.step()

    def clear(self) -> None:
        """Ends every sequence."""
        self.take_in()
        for seq in list(self._scheduler):
            self._scheduler.remove(seq)
