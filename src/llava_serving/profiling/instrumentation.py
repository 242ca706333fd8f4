"""Wraps the parts of the engine and of the model in a timer, from outside, for as long as a profile is taken."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from ..engine.engine import Engine
from ..engine.request_handle import RequestHandle
from ..engine.scheduler import Batch, Scheduler
from ..engine.sequence_output import SequenceOutput
from ..model.attention import Attend
from ..model.cpu_attention import CpuAttention
from ..model.decoder import Decoder, Linear
from ..model.image_encoder import ImageEncoder
from ..model.lm_head import LMHead
from ..model.model_runner import ModelRunner
from ..model.paged_attention import PagedAttention
from ..model.sampling.sampler import Sampler
from .profile_table import (
    ATTENTION,
    DECODE_ONLY,
    DETOKENISE,
    EVENTS,
    IMAGE,
    INPUTS,
    LINEAR,
    NOTHING_LAUNCHED,
    ROW_WISE,
    SAMPLE,
    SCHEDULE,
    WITH_PREFILL,
)
from .step_timer import StepTimer

# Each method is a part, without the methods that it calls and that are another part.
METHODS: list[tuple[type, str, str]] = [
    (Scheduler, "schedule", SCHEDULE),
    (Scheduler, "advance", SCHEDULE),
    (Scheduler, "remove", SCHEDULE),
    (ModelRunner, "launch", INPUTS),
    (ImageEncoder, "encode", IMAGE),
    (CpuAttention, "plan", ATTENTION),
    (PagedAttention, "plan", ATTENTION),
    (PagedAttention, "decode_arrays", ATTENTION),
    (Decoder, "__call__", ROW_WISE),
    (LMHead, "__call__", ROW_WISE),
    (Linear, "__call__", LINEAR),
    (Sampler, "plan", SAMPLE),
    (Sampler, "__call__", SAMPLE),
    (SequenceOutput, "push", DETOKENISE),
    (SequenceOutput, "send_text", EVENTS),
    (SequenceOutput, "finish", EVENTS),
    (RequestHandle, "post", EVENTS),
]


@contextmanager
def instrumented(timer: StepTimer) -> Iterator[None]:
    """Measures the steps of every engine of this process with `timer`. Its end waits for the step that runs then."""
    wrapped = ExitStack()

    def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, wrapper(original))
        wrapped.callback(setattr, owner, name, original)

    try:
        wrap(Decoder, "__call__", lambda decode: _with_timed_attention(decode, timer))
        wrap(ModelRunner, "launch", lambda launch: _with_timed_reading(launch, timer))
        for owner, name, part in METHODS:
            wrap(owner, name, partial(timer.part, part))
        if importlib.util.find_spec("triton") is not None:
            from ..model.kernels import forward

            wrap(forward, "linear", partial(timer.part, LINEAR))
        wrap(Scheduler, "schedule", lambda schedule: _with_noted_kind(schedule, timer))
        wrap(Engine, "step", timer.step)
        yield
    finally:
        with timer.lock:  # the functions of one step are measured all or not at all
            wrapped.close()


def step_kind(batch: Batch) -> str:
    """Returns the kind of the step that launches `batch`. One token of a sequence counts as decoded."""
    if not batch.scheduled:
        return NOTHING_LAUNCHED
    return WITH_PREFILL if any(chunk.num_tokens > 1 for chunk in batch.scheduled) else DECODE_ONLY


def _with_timed_attention(decode: Callable[..., torch.Tensor], timer: StepTimer) -> Callable[..., torch.Tensor]:
    def with_timed_attention(decoder: Decoder, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        return decode(decoder, hidden, timer.part(ATTENTION, attend))

    return with_timed_attention


def _with_timed_reading(launch: Callable[..., Any], timer: StepTimer) -> Callable[..., Any]:
    """Counts the function that reads the sampled tokens, which `launch` returns, as sampling."""

    def with_timed_reading(runner: ModelRunner, batch: Batch) -> Any:
        return timer.part(SAMPLE, launch(runner, batch))

    return with_timed_reading


def _with_noted_kind(schedule: Callable[..., Batch], timer: StepTimer) -> Callable[..., Batch]:
    def with_noted_kind(scheduler: Scheduler) -> Batch:
        batch = schedule(scheduler)
        timer.kind = step_kind(batch)
        return batch

    return with_noted_kind
