"""The work of init(): settings, model, runner, self-check, engine, warm-up."""

import atexit
import logging
import os
import time

import torch

from ..cpu_cores import available_cores
from ..export.merged_cache import open_or_merge
from ..settings import Settings
from ..weights.loader import LoadedModel, load_model
from ..weights.model_folder import PartsFolder, find_model
from .engine_builder import build_model_runner, engine_of, warm_up
from .intake_builder import build_intake
from .metrics import Metrics, metric_readers
from .request_log import RequestLog
from .scorer import Scorer
from .self_check import self_check
from .shutdown import on_sigterm

logger = logging.getLogger(__name__)
EXIT_SECONDS = 5.0  # for the step that the engine is in when the process ends
SMALL_MODEL = 50_000_000  # parameters


def start() -> Scorer:
    """Returns the scorer for the environment's `LLAVA_*` settings and AZUREML_MODEL_DIR. Raises StartupError."""
    phases = PhaseTimes()
    settings, loaded = load(phases)
    intake = build_intake(loaded, settings)
    atexit.register(intake.stop)
    built = build_model_runner(loaded, settings)
    phases.end("engine")
    if settings.self_check:
        self_check(loaded, built.runner)
        phases.end("self-check")
    engine = engine_of(built, loaded, settings)
    engine.start()
    # If the interpreter ends while a thread is inside torch, the process aborts.
    atexit.register(engine.stop, EXIT_SECONDS)
    warm_up(engine, loaded)
    intake.check()
    phases.end("first answer")
    on_sigterm(engine.drain)
    readers = metric_readers(os.environ, settings.metrics_host, settings.metrics_port)
    # The server's own variable, and its default.
    metrics = Metrics(engine.stats, readers, os.environ.get("SERVICE_NAME", "ML service"))
    logger.info("ready: %s", phases)
    return Scorer(settings, loaded, engine, intake, RequestLog(metrics))


class PhaseTimes:
    """The duration of each phase of the start, in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Gives the time since the last call to `phase`."""
        self._seconds[phase] = time.monotonic() - self._began - sum(self._seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.1f} s ({parts})"


def load(phases: PhaseTimes) -> tuple[Settings, LoadedModel]:
    """Returns the settings, and the loaded model that they name. Raises StartupError."""
    settings = Settings.from_environment(os.environ)
    model = find_model(os.environ.get("AZUREML_MODEL_DIR"))
    if isinstance(model, PartsFolder) and settings.merged_cache_dir is not None:
        model = open_or_merge(model, settings.merged_cache_dir, settings.template)
        phases.end("merged cache")
    loaded = load_model(model, settings.device, settings.dtype, settings.template, settings.quantization)
    phases.end("weights")
    _limit_threads(loaded)
    return settings, loaded


def _limit_threads(loaded: LoadedModel) -> None:
    """Uses one thread for a small model on a CPU, unless the environment sets OMP_NUM_THREADS.

    More threads wait for each other longer than they compute. A step of 16 sequences of the demo model takes 4.1 ms
    with one thread and 8.2 ms with two, on two cores. Other models get no more threads than a quota allows cores:
    torch knows the affinity of the process, but no quota, and threads beyond a quota stop each other.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    is_small = loaded.model.device.type == "cpu" and loaded.num_parameters < SMALL_MODEL
    torch.set_num_threads(1 if is_small else min(torch.get_num_threads(), available_cores()))
