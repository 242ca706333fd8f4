"""An engine for a loaded model, and its first answer."""

from dataclasses import dataclass

import torch

from ..engine.block_manager import BlockManager
from ..engine.config import EngineConfig
from ..engine.engine import Engine, Runner
from ..engine.prompt import EnginePrompt, PromptImage, SamplingParams
from ..engine.request_handle import RequestHandle
from ..engine.scheduler import Scheduler
from ..engine.stats import Stats
from ..engine.vocabulary import Vocabulary
from ..errors import RequestError, StartupError
from ..inputs.prompt import ImageSource
from ..model.backend import Backend
from ..model.kv_cache import BLOCK_SIZE
from ..model.model_runner import ModelRunner
from ..model.runner_builder import build_runner
from ..settings import Settings
from ..weights.loader import LoadedModel
from ..weights.out_of_memory import out_of_memory_refused
from .device_defaults import engine_config
from .shutdown import exit_unhealthy

WITHOUT_MEMORY = (
    "lower LLAVA_KV_CACHE_GIB (or LLAVA_GPU_MEMORY_UTILIZATION on a GPU), LLAVA_MAX_NUM_SEQS or "
    "LLAVA_MAX_NUM_BATCHED_TOKENS"
)


@dataclass(frozen=True)
class BuiltRunner:
    """A runner with the number of blocks of its KV cache, and the limits and counters that its engine shares."""

    runner: ModelRunner
    num_blocks: int
    config: EngineConfig
    stats: Stats


def build_engine(loaded: LoadedModel, settings: Settings, backend: Backend | None = None) -> Engine:
    """Returns an engine around the runner of `build_model_runner`. Raises StartupError."""
    return engine_of(build_model_runner(loaded, settings, backend), loaded, settings)


def build_model_runner(loaded: LoadedModel, settings: Settings, backend: Backend | None = None) -> BuiltRunner:
    """Returns a runner whose KV cache fits into the device's memory. Raises StartupError if none fits.

    Without `backend` the fastest one for the device is chosen.
    """
    stats, config = Stats(), engine_config(settings, loaded.model.device)
    with out_of_memory_refused("the engine was built", WITHOUT_MEMORY):
        runner, num_blocks = build_runner(loaded.model, vocabulary_of(loaded), config, stats, backend)
    return BuiltRunner(runner, num_blocks, config, stats)


def engine_of(built: BuiltRunner, loaded: LoadedModel, settings: Settings) -> Engine:
    """Returns the engine that will run `built.runner`."""
    blocks, timeout = BlockManager(built.num_blocks, BLOCK_SIZE), settings.step_timeout_seconds
    return assemble_engine(built.runner, blocks, vocabulary_of(loaded), built.config, built.stats, timeout)


def vocabulary_of(loaded: LoadedModel) -> Vocabulary:
    tokenizer = loaded.tokenizer
    return Vocabulary(tokenizer.text_vocab_size, tokenizer.eos_id, tokenizer.token_bytes)


def assemble_engine(
    runner: Runner,
    blocks: BlockManager,
    vocabulary: Vocabulary,
    config: EngineConfig,
    stats: Stats,
    step_timeout_seconds: float,
) -> Engine:
    """Returns an engine around any runner. It ends the process when its device fails."""
    scheduler = Scheduler(blocks, config.max_num_seqs, config.max_num_batched_tokens, stats)
    return Engine(
        scheduler,
        runner,
        vocabulary,
        stats,
        config.max_live_seqs,
        config.prefix_caching,
        step_timeout_seconds,
        exit_unhealthy,
    )


def warm_up(engine: Engine, loaded: LoadedModel) -> None:
    """Generates a short answer about a black image, so that the first client does not wait for one-time work.

    Raises StartupError if that fails.
    """
    size = loaded.preprocessor.size
    encoded = loaded.tokenizer.encode([ImageSource(data="", path="")])
    image = PromptImage(
        encoded.image_starts[0], loaded.tokenizer.image.count, digest=b"black", pixels=torch.zeros(3, size, size)
    )
    handle = RequestHandle()
    try:
        engine.submit([EnginePrompt(encoded.token_ids, (image,), SamplingParams(max_new_tokens=2))], handle)
        handle.result()
    except RequestError as error:
        raise StartupError(f"the first answer failed: {error.message}") from None
