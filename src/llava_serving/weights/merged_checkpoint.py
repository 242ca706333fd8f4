"""A merged LLaVA in Hugging Face layout: what its config.json describes, and its tensors where they lie."""

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from ..errors import StartupError
from .delta import MergedTensor
from .placement import empty_model
from .storage.checkpoint import open_checkpoint
from .storage.stored_tensor import Tensor
from .tensor_names import model_name

EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def described(directory: Path) -> LlavaForConditionalGeneration:
    """The model of config.json, empty. Raises StartupError where there is none that is served."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        _check(config, directory)
        return empty_model(config)
    except StartupError:
        raise
    except Exception as error:  # of a dozen unrelated types, most without the file's name
        raise StartupError(
            f"{directory} cannot be loaded as LlavaForConditionalGeneration ({type(error).__name__}): its config.json "
            "is missing, damaged or of another model"
        ) from error


def _check(config: LlavaConfig, directory: Path) -> None:
    kind = config.text_config.model_type
    if kind != "llama":
        raise StartupError(f"the language model of {directory} is of type {kind!r}; the engine runs LLaMA's layers")
    if getattr(config, "quantization_config", None):
        raise StartupError(
            f"{directory} is quantized already by its config.json (quantization_config), and such weights are not "
            "read: bring the model in float16 or bfloat16, with LLAVA_QUANTIZATION=nf4 to pack it while loading"
        )


def stored(directory: Path, model: LlavaForConditionalGeneration) -> dict[str, MergedTensor]:
    """The model's tensors by its own names, in the order in which they lie.

    What else the folder holds is left, as transformers leaves it. Raises StartupError where a tensor is missing or of
    another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    found = {model_name(name): tensor for name, tensor in open_checkpoint(directory).tensors.items()}
    if HEAD not in found and EMBEDDING in found and _is_tied(model):
        found[HEAD] = found[EMBEDDING]
    if broken := _broken(found, wanted):
        raise StartupError(f"{directory} lacks or misshapes {len(broken)} tensors of the model: {broken[0]}")
    ours = sorted((name for name in found if name in wanted), key=lambda name: found[name].place)
    return {name: MergedTensor(found[name]) for name in ours}


def _is_tied(model: LlavaForConditionalGeneration) -> bool:
    """Does config.json say that the embedding is the head too? The model then holds it twice."""
    config = model.config
    return bool(getattr(config, "tie_word_embeddings", False) or config.text_config.tie_word_embeddings)


def _broken(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Each tensor that cannot be read into the model, and why."""
    return [why for name, shape in wanted.items() if (why := _why_not(name, found.get(name), shape))]


def _why_not(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> str | None:
    if tensor is None:
        return f"{name} is in no file"
    if tensor.shape != shape:
        return f"{name} has shape {tensor.shape} in {tensor.place[0]}, and {shape} by config.json"
    if not tensor.dtype.is_floating_point:
        return f"{name} is stored as {tensor.dtype} in {tensor.place[0]}: it is quantized"
    return None
