"""What an operator may set: `LLAVA_*` environment variables, read once, in init().

An unknown name or a value that does not parse stops start-up: a typing error in a deployment must not be served
around for weeks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, ValidationError, model_validator

from .errors import StartupError

PREFIX = "LLAVA_"
MIB = 1024 * 1024
SPARE_THREADS = 16
# Where LLAVA_MAX_NUM_SEQS is not set, by device.
LEAST_DEFAULT_SEQS, MAX_DEFAULT_SEQS = 16, 64


HOST = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"


def _comma_separated(value: object) -> object:
    return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseModel):
    """Every setting with its default; field `x` is the environment variable `LLAVA_X`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|balanced)$",
        description="`auto` (CUDA when present, else CPU), `cpu`, `cuda` or `cuda:N`; of several GPUs each worker "
        "process takes one, or one process spreads its layers over all: `balanced`",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="`auto` (float16 on CUDA, float32 on CPU), `float16`, `bfloat16` or `float32`",
    )
    quantization: Literal["none", "nf4"] = Field(
        default="none",
        description="`nf4`: the language model's layers in 4 bits, packed while loading, for a GPU with 16 GB; slower, "
        "and a little less exact",
    )
    template: Literal["auto", "v0", "v1"] = Field(
        default="auto",
        description="the conversation the checkpoint was trained with: `auto` (as a merged folder says, else `v0`), "
        "`v0`, or `v1` for the deltas of that name",
    )
    merged_cache_dir: Path | None = Field(
        default=None,
        description="a writable folder that outlives the process: the first start from parts leaves the merged model "
        "there (27 GB), and later ones read that alone; none by default",
    )
    self_check: bool = Field(
        default=True,
        description="measure the loss on an ordinary sentence at start-up and refuse to serve a model that cannot talk",
    )
    default_max_new_tokens: int = Field(
        default=256, ge=1, description="`max_new_tokens` when the request leaves it out, less where the context ends"
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        description="most sequences that run in one batch; by default 64 on a GPU of 40 GB or more, else 16",
    )
    max_queued_seqs: int = Field(
        default=64, ge=0, description="most sequences that wait for a place in the batch; past them callers get 429"
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of one step; longer prompts are computed in several. By default 2048 on an H100 and "
        "later, 1024 on other GPUs of 40 GB or more, else 512",
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB for keys and values; by default what `LLAVA_MAX_NUM_SEQS` whole contexts need, on CUDA as far "
        "as `LLAVA_GPU_MEMORY_UTILIZATION` allows, on a CPU at most 4",
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="part of the GPU's memory to use in all")
    enforce_eager: bool = Field(
        default=False, description="capture no CUDA graphs: less memory, a quicker start and slower answers"
    )
    prefix_caching: bool = Field(default=True, description="reuse keys and values of prompts that begin alike")
    image_cache_size: int = Field(default=64, ge=0, description="images whose features are kept for the next request")
    request_timeout_seconds: float = Field(
        default=170.0,
        gt=0,
        description="most seconds for a request; `x-ms-request-timeout-ms` can shorten them. Less than Azure's 180",
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of a Prometheus endpoint, `/metrics`; none by default"
    )
    max_sequences: int = Field(default=64, ge=1, description="most sequences (rows x `n`) in one request")
    max_images: int = Field(default=16, ge=1, description="most images in one request")
    max_body_bytes: int = Field(default=64 * MIB, ge=1, description="most bytes of a request body")
    max_image_bytes: int = Field(default=20 * MIB, ge=1, description="most bytes of one encoded image")
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, description="most pixels of one image, as sent and after scaling for the model"
    )
    image_url_hosts: Annotated[tuple[Annotated[str, Field(pattern=HOST)], ...], BeforeValidator(_comma_separated)] = (
        Field(
            default=(),
            description="hosts, separated by commas, from which image URLs are fetched; none: URLs are refused",
        )
    )
    image_url_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=120,
        description="most seconds for the answer of an image URL's host, connecting not counted",
    )

    batch_prompt: str | None = Field(
        default=None, description="batch: what each picture is asked, where no `prompt.txt` lies beside it"
    )
    batch_parameters: Json[dict[str, Any]] = Field(
        default={}, description="batch: the parameters of pictures and CSV rows, a JSON object"
    )

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        if self.max_num_batched_tokens and self.max_num_seqs and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                "LLAVA_MAX_NUM_BATCHED_TOKENS must be at least LLAVA_MAX_NUM_SEQS: each running sequence takes a token"
            )
        if self.quantization != "none" and self.device == "balanced":
            raise ValueError("LLAVA_QUANTIZATION is for a model on one device: not with LLAVA_DEVICE=balanced")
        if self.max_sequences > (self.max_num_seqs or LEAST_DEFAULT_SEQS) + self.max_queued_seqs:
            raise ValueError(
                "LLAVA_MAX_SEQUENCES must be at most LLAVA_MAX_NUM_SEQS + LLAVA_MAX_QUEUED_SEQS: a request that asks "
                "for more could never be let in"
            )
        return self

    @property
    def max_live_seqs(self) -> int:
        """Sequences that are let in at a time, and so the most requests there can be, whatever the device."""
        return (self.max_num_seqs or MAX_DEFAULT_SEQS) + self.max_queued_seqs

    @property
    def threads(self) -> int:
        """gunicorn's: one for each request that is let in, and some to refuse others and answer probes at once."""
        return self.max_live_seqs + SPARE_THREADS

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the `LLAVA_*` names of `environment`; raises StartupError that names the offender."""
        given = {
            name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise StartupError("; ".join(_explain(e, given) for e in error.errors())) from None


def _explain(error: object, given: dict[str, str]) -> str:
    if not error["loc"]:  # type: ignore[index]
        return str(error["msg"]).removeprefix("Value error, ")  # type: ignore[index]
    field = str(error["loc"][0])  # type: ignore[index]
    name = PREFIX + field.upper()
    if field not in Settings.model_fields:
        known = ", ".join(PREFIX + known.upper() for known in Settings.model_fields)
        return f"{name} is not a setting of this service; the settings are {known}"
    description = Settings.model_fields[field].description
    return f"{name}={given[field]!r} is not valid ({error['msg']}): {description}"  # type: ignore[index]
