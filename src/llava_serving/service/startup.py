"""What init() does: settings, model, self-check, engine, one answer to warm up."""

import atexit
import logging
import os
import time

import torch

from ..engine.block_manager import BlockManager
from ..engine.config import EngineConfig
from ..engine.engine import Engine, Runner, TextModel
from ..engine.prompt import EnginePrompt, PromptImage, SamplingParams
from ..engine.request import RequestHandle
from ..engine.scheduler import Scheduler
from ..engine.stats import Stats
from ..export.merged_cache import kept
from ..model.backend import Backend
from ..model.runner_builder import Vocabulary, build_runner
from ..model.kv_cache import BLOCK_SIZE
from ..settings import Settings
from ..weights.loader import LoadedModel, load_model
from ..weights.model_dir import ModelParts, find_model
from .device_defaults import engine_config
from .metrics import Metrics, metric_readers
from .request_log import RequestLog
from .scorer import Scorer
from .self_check import self_check
from .shutdown import exit_unhealthy, on_sigterm

logger = logging.getLogger(__name__)
EXIT_SECONDS = 5.0  # for the step that the engine is in when the process ends
SMALL_MODEL = 50_000_000  # parameters


def start() -> Scorer:
    """The scorer of this process's environment: `LLAVA_*` and AZUREML_MODEL_DIR. Raises StartupError."""
    phases = Phases()
    settings, loaded = load(phases)
    engine = build_engine(loaded, settings)
    engine.start()
    # A thread that is inside torch when the interpreter ends takes the process down with an abort.
    atexit.register(engine.stop, EXIT_SECONDS)
    phases.end("engine")
    warm_up(engine, loaded)
    phases.end("first answer")
    on_sigterm(engine.drain)
    readers = metric_readers(os.environ, settings.metrics_port)
    # The server's own name and default for it.
    metrics = Metrics(engine.stats, readers, os.environ.get("SERVICE_NAME", "ML service"))
    logger.info("ready: %s", phases)
    return Scorer(settings, loaded, engine, RequestLog(metrics))


class Phases:
    """How long each part of the start took, in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Of what has happened since the last end."""
        self._seconds[phase] = time.monotonic() - self._began - sum(self._seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.1f} s ({parts})"


def load(phases: Phases) -> tuple[Settings, LoadedModel]:
    """The settings, and the model they name, which can talk. Raises StartupError."""
    settings = Settings.from_environment(os.environ)
    found = find_model(os.environ.get("AZUREML_MODEL_DIR"))
    if isinstance(found, ModelParts) and settings.merged_cache_dir is not None:
        found = kept(found, settings.merged_cache_dir, settings.template)
        phases.end("merged cache")
    loaded = load_model(found, settings.device, settings.dtype, settings.template, settings.quantization)
    phases.end("weights")
    _choose_threads(loaded)
    if settings.self_check:
        self_check(loaded)
        phases.end("self-check")
    return settings, loaded


def _choose_threads(loaded: LoadedModel) -> None:
    """One thread for a small model on a CPU, unless the environment decides: more wait for each other longer than they
    compute (the demo model's step of 16 sequences on two cores: 4.1 ms with one thread, 8.2 ms with two)."""
    if loaded.model.device.type == "cpu" and loaded.parameters < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def build_engine(loaded: LoadedModel, settings: Settings, backend: Backend | None = None) -> Engine:
    """An engine for the model, with the KV cache that there is room for. Raises StartupError.

    `backend` is by default what the device is best at.
    """
    stats, config = Stats(), engine_config(settings, loaded.model.device)
    vocabulary = Vocabulary(loaded.tokenizer.text_vocab_size, loaded.tokenizer.eos_id)
    runner, blocks = build_runner(loaded.model, vocabulary, config, stats, backend)
    return assemble(runner, BlockManager(blocks, BLOCK_SIZE), loaded, config, stats, settings.request_timeout_seconds)


def assemble(
    runner: Runner, blocks: BlockManager, loaded: LoadedModel, config: EngineConfig, stats: Stats, stall_seconds: float
) -> Engine:
    """An engine around a runner of any kind."""
    return Engine(
        Scheduler(blocks, config.max_num_seqs, config.max_num_batched_tokens, stats),
        runner,
        TextModel(loaded.tokenizer.token_bytes, loaded.tokenizer.eos_id),
        stats,
        config.max_live_seqs,
        config.prefix_caching,
        stall_seconds,
        exit_unhealthy,
    )


def warm_up(engine: Engine, loaded: LoadedModel) -> None:
    """One short answer about a black picture: the first caller does not wait for what is only done once."""
    tokenizer, size = loaded.tokenizer, loaded.preprocessor.size
    ids = [tokenizer.bos_id, *tokenizer.image.ids]
    pixels = torch.zeros(3, size, size)
    image = PromptImage(tokenizer.image_starts(ids)[0], tokenizer.image.count, b"black", pixels)
    generation = RequestHandle([1])
    engine.submit([EnginePrompt(tuple(ids), (image,), SamplingParams(max_new_tokens=2))], generation)
    generation.result()
