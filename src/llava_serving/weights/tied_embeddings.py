"""Tied embeddings: a language model whose embedding is also its head. LLaVA v0 and its base have two matrices."""

from ..errors import StartupError
from .model_folder import ClassifiedFolder
from .tensor_names import EMBEDDING, LM_HEAD


def check_not_tied(folder: ClassifiedFolder) -> None:
    """Raises StartupError if a LLaMA or a delta ties its embeddings: by its config.json, or because it has no head."""
    tensors = folder.checkpoint.tensors
    is_tied = bool(folder.checkpoint.config.get("tie_word_embeddings"))
    if is_tied or (EMBEDDING in tensors and LM_HEAD not in tensors):
        reason = "tie_word_embeddings is true in its config.json" if is_tied else f"it has no {LM_HEAD}"
        raise StartupError(
            f"{folder.directory} has tied embeddings ({reason}): its embedding is also its head, and a LLaVA v0 has "
            f"two different matrices. Save it with tie_word_embeddings false and a {LM_HEAD} of its own"
        )
