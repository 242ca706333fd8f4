"""A merged LLaVA in Hugging Face layout: the model of its config.json, and its tensors."""

from pathlib import Path

from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from ..errors import StartupError
from ..model_files import read_json
from .delta import MergedTensor, in_file_order, is_recomputed
from .expected_shapes import check_tensors
from .out_of_memory import is_out_of_memory
from .placement import empty_model
from .storage.checkpoint import Checkpoint
from .supported_config import check_merged_config
from .tensor_names import EMBEDDING, LM_HEAD, from_delta_name, from_merged_name

MODEL_EMBEDDING = from_delta_name(EMBEDDING)


def empty_merged_model(directory: Path) -> LlavaForConditionalGeneration:
    """Returns the model of config.json, without memory. Raises StartupError if the service cannot run it."""
    path = directory / "config.json"
    check_merged_config(read_json(path), str(path))
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        _check_not_quantized(config, directory)
        return empty_model(config)
    except StartupError:
        raise
    except Exception as error:  # of a dozen unrelated types, most without the file's name
        if is_out_of_memory(error):
            raise
        raise StartupError(
            f"{directory} cannot be loaded as LlavaForConditionalGeneration ({type(error).__name__}): its config.json "
            "is missing, damaged or of another model"
        ) from error


def _check_not_quantized(config: LlavaConfig, directory: Path) -> None:
    if getattr(config, "quantization_config", None):
        raise StartupError(
            f"{directory} is already quantized by its config.json (quantization_config), which is not supported: bring "
            "the model in float16 or bfloat16; LLAVA_QUANTIZATION=int8 or nf4 then packs it while loading"
        )


def merged_model_tensors(checkpoint: Checkpoint, model: LlavaForConditionalGeneration) -> dict[str, MergedTensor]:
    """Returns the model's tensors by its own names, in the order in which the files hold them.

    Raises StartupError if a tensor is missing or has another shape, or if the files hold one that the model lacks: a
    bias or a norm that config.json does not announce would change the answers.
    """
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    stored = {from_merged_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    if LM_HEAD not in stored and MODEL_EMBEDDING in stored and _has_tied_embeddings(model):
        stored[LM_HEAD] = stored[MODEL_EMBEDDING]
    tensors = {
        name: MergedTensor(tensor, in_float16=False) for name, tensor in stored.items() if not _is_recomputed(name)
    }
    check_tensors(tensors, shapes, str(checkpoint.directory))
    return in_file_order(tensors)


def _is_recomputed(name: str) -> bool:
    """Says whether older versions of transformers saved a tensor that newer ones compute."""
    return is_recomputed(name) or name.endswith("position_ids")


def _has_tied_embeddings(model: LlavaForConditionalGeneration) -> bool:
    """Says whether the embedding is also the language model's head. The loaded model then holds it twice."""
    config = model.config
    return bool(getattr(config, "tie_word_embeddings", False) or config.text_config.tie_word_embeddings)
