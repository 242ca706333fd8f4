"""The service's settings: environment variables `LLAVA_*`, which init() reads once.

An unknown name or an invalid value stops the start. Otherwise a typing error could stay unnoticed for weeks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, ValidationError, model_validator
from pydantic_core import ErrorDetails

from .errors import StartupError

PREFIX = "LLAVA_"
MIB = 1024 * 1024
SPARE_THREADS = 16
# The smallest and the largest default of LLAVA_MAX_NUM_SEQS; the device decides.
MIN_DEFAULT_SEQS, MAX_DEFAULT_SEQS = 16, 64
HOST_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"


def _split_at_commas(value: object) -> object:
    return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseModel):
    """Every setting with its default. The environment variable `LLAVA_X` sets the field `x`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|balanced)$",
        description="`auto` (CUDA if present, else CPU), `cpu`, `cuda` or `cuda:N`; with several GPUs each worker "
        "process takes one. `balanced`: one process spreads the layers over all GPUs",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        default="auto",
        description="`auto` (float16 on CUDA; on a CPU float32, and bfloat16 with `int8` or `int4`), `float16`, "
        "`bfloat16` or `float32`",
    )
    quantization: Literal["none", "nf4", "int8", "int4"] = Field(
        default="none",
        description="`int8`: weights in 8 bits, packed while loading, on a CPU or a GPU; on a GPU the language model's "
        "layers only. `int4`: weights in 4 bits, on a CPU only. Both are several times faster on a CPU. `nf4`: the "
        "language model's layers in 4 bits, for a GPU with 16 GB; slower, and slightly less accurate",
    )
    template: Literal["auto", "v0", "v1", "simple"] = Field(
        default="auto",
        description="the conversation template the checkpoint was trained with: `auto` (as a merged folder says, else "
        "by its added tokens; of a LLaVA in transformers' layout, its own), `v0`, `v1` for the deltas named v1, or "
        "`simple` for the delta of ScienceQA",
    )
    merged_cache_dir: Path | None = Field(
        default=None,
        description="a writable folder that outlives the process: the first start from parts saves the merged model "
        "there (27 GB), and later starts read only that; none by default",
    )
    self_check: bool = Field(
        default=True,
        description="measure the loss on an ordinary sentence at start-up, and refuse to serve a model that produces "
        "nonsense",
    )
    default_max_new_tokens: int = Field(
        default=256,
        ge=1,
        description="`max_new_tokens` when the request does not set it, or fewer if the context ends before that",
    )
    max_num_seqs: int | None = Field(
        default=None,
        ge=1,
        description="most sequences that run in one batch; by default 64 on a GPU of 40 GB or more, else 16",
    )
    max_queued_seqs: int = Field(
        default=64, ge=0, description="most sequences that wait for a slot in the batch; more get 429"
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=1,
        description="most tokens of one step; longer prompts are computed in several steps. By default 2048 on an H100 "
        "and later, 1024 on other GPUs of 40 GB or more, else 512",
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB for keys and values; by default the need of `LLAVA_MAX_NUM_SEQS` whole contexts, on CUDA as "
        "far as `LLAVA_GPU_MEMORY_UTILIZATION` allows, on a CPU at most 4",
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        default="auto",
        description="`auto` (the dtype of the model) or `int8`: keys and values in 8 bits, so that the same memory "
        "holds nearly twice the tokens of a 16-bit dtype",
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of the GPU's memory to use in total"
    )
    enforce_eager: bool = Field(
        default=False, description="capture no CUDA graphs: less memory, a faster start and slower answers"
    )
    prefix_caching: bool = Field(default=True, description="reuse keys and values of prompts that begin alike")
    image_cache_size: int = Field(default=64, ge=0, description="images whose features are cached for later requests")
    request_timeout_seconds: float = Field(
        default=170.0,
        gt=0,
        description="most seconds for a request; `x-ms-request-timeout-ms` can shorten them. Less than Azure's 180",
    )
    step_timeout_seconds: float = Field(
        default=300.0,
        gt=0,
        description="most seconds for one step of the engine; after a longer one the device counts as hung, and the "
        "service ends itself",
    )
    host: str | None = Field(
        default=None,
        pattern=r"^[0-9A-Za-z:.-]+$",
        description="the address that the server listens on; by default all addresses, as Azure needs. "
        "`llava-serving serve` listens on 127.0.0.1",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="most open connections; one more closes the connection that was silent for longest",
    )
    read_timeout_seconds: float = Field(
        default=20.0, gt=0, description="most seconds between two bytes of a request, then 408"
    )
    receive_timeout_seconds: float = Field(
        default=120.0, gt=0, description="most seconds until a request has arrived, then 408"
    )
    write_timeout_seconds: float = Field(
        default=30.0, gt=0, description="most seconds for which a client does not read its answer, then it is cut off"
    )
    max_received_bytes: int = Field(
        default=32 * MIB,
        ge=1,
        description="most bytes of requests that are held before they are read; then large bodies wait unread, in "
        "order",
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="port of a Prometheus endpoint, `/metrics`; none by default"
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="address on which that endpoint listens; `0.0.0.0` for a scraper outside the container",
    )
    max_sequences: int = Field(default=64, ge=1, description="most sequences (prompts x `n`) in one request")
    max_images: int = Field(default=16, ge=1, description="most images in one request")
    max_body_bytes: int = Field(default=64 * MIB, ge=1, description="most bytes of a request body")
    max_image_bytes: int = Field(default=20 * MIB, ge=1, description="most bytes of one encoded image")
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, description="most pixels of one image, both as sent and after scaling for the model"
    )
    input_processes: int | None = Field(
        default=None,
        ge=1,
        description="processes that read bodies above 1 MiB and images above 2.5 megapixels, one at a time each; by "
        "default one for four cores, at most 4",
    )
    image_url_hosts: Annotated[
        tuple[Annotated[str, Field(pattern=HOST_PATTERN)], ...], BeforeValidator(_split_at_commas)
    ] = Field(
        default=(),
        description="hosts, separated by commas, from which image URLs are fetched; without hosts, URLs are refused",
    )
    image_url_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=120,
        description="most seconds for the answer of an image URL's host, without the time to connect",
    )

    batch_prompt: str | None = Field(
        default=None, description="batch: the prompt of each picture that has no `prompt.txt` in its folder"
    )
    batch_parameters: Json[dict[str, Any]] = Field(
        default={}, description="batch: the parameters of pictures and CSV rows, a JSON object"
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "Settings":
        if self.max_num_batched_tokens and self.max_num_seqs and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                "LLAVA_MAX_NUM_BATCHED_TOKENS must be at least LLAVA_MAX_NUM_SEQS: each running sequence takes a token "
                "of every step"
            )
        if self.quantization != "none" and self.device == "balanced":
            raise ValueError(
                f"LLAVA_QUANTIZATION={self.quantization} works with one device, not with LLAVA_DEVICE=balanced"
            )
        if self.max_sequences > (self.max_num_seqs or MIN_DEFAULT_SEQS) + self.max_queued_seqs:
            raise ValueError(
                "LLAVA_MAX_SEQUENCES must be at most LLAVA_MAX_NUM_SEQS + LLAVA_MAX_QUEUED_SEQS: a request for "
                "more could never be admitted"
            )
        return self

    @property
    def max_live_seqs(self) -> int:
        """An upper bound, on any device, of the sequences (and so of the requests) that run and wait at a time."""
        return (self.max_num_seqs or MAX_DEFAULT_SEQS) + self.max_queued_seqs

    @property
    def threads(self) -> int:
        """The number of gunicorn threads: one per admitted request, and more that refuse and answer probes at once."""
        return self.max_live_seqs + SPARE_THREADS

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the `LLAVA_*` variables of `environment`. Raises StartupError with the name of the invalid variable."""
        variables = {
            name.removeprefix(PREFIX).lower(): value for name, value in environment.items() if name.startswith(PREFIX)
        }
        try:
            return cls.model_validate(variables)
        except ValidationError as error:
            raise StartupError("; ".join(_message(details, variables) for details in error.errors())) from None


def _message(error: ErrorDetails, variables: Mapping[str, str]) -> str:
    """Returns the message about one of pydantic's errors."""
    if not error["loc"]:  # an error of _check_combinations
        return error["msg"].removeprefix("Value error, ")
    field = str(error["loc"][0])
    name = PREFIX + field.upper()
    if field not in Settings.model_fields:
        names = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        return f"{name} is not a setting of this service; the settings are {names}"
    description = Settings.model_fields[field].description
    return f"{name}={variables[field]!r} is not valid ({error['msg']}): {description}"
