"""Where the tensors of a v0 checkpoint go in transformers' LlavaForConditionalGeneration.

v0 has one linear projector and transformers two with an activation between: the activation is "linear" and the second
layer the identity, which leaves every feature as it is to the bit.
"""

from .delta import MergedTensor
from .storage.stored_tensor import Diagonal

VISION_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
PROJECTOR_IN = "model.multi_modal_projector.linear_1"
PROJECTOR_OUT = "model.multi_modal_projector.linear_2"
INTERCHANGE = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
READ = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def language_name(name: str) -> str:
    """A name of the delta in the model's state dict."""
    if name.startswith("model.mm_projector."):
        return name.replace("model.mm_projector", PROJECTOR_IN)
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def vision_name(name: str) -> str | None:
    """A name of CLIP's checkpoint in the model's state dict; None for what the vision tower does not use.

    The hub's CLIP folder holds the text model too; transformers saves a tower alone without the prefix.
    """
    name = name.removeprefix("vision_model.")
    if not name.startswith(VISION_PARTS) or name.endswith("position_ids"):
        return None
    return f"model.vision_tower.{name}"


def interchange_name(name: str) -> str:
    """A name in the model's state dict as transformers wrote it before 4.52: it reads it to this day, and so does vLLM,
    which does not know the newer names of the vision tower."""
    if name == "lm_head.weight":
        return f"language_model.{name}"
    for ours, theirs in INTERCHANGE:
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    raise ValueError(name)


def model_name(name: str) -> str:
    """A name of a merged checkpoint of any age in the model's state dict, as transformers reads it
    (conversion_mapping.py, "llava", "LlavaModel" and "CLIPVisionModel")."""
    for theirs, ours in READ:
        if name.startswith(theirs):
            name = name.replace(theirs, ours, 1)
            break
    return name.replace("model.vision_tower.vision_model.", "model.vision_tower.", 1)


def llama_name(name: str) -> str:
    """A language model's name in the model's state dict as LLaMA's own; others stay."""
    return name.replace("model.language_model.", "model.", 1)


def identity_projection(hidden_size: int) -> dict[str, MergedTensor]:
    """The second projector layer as the identity."""
    return {
        f"{PROJECTOR_OUT}.weight": MergedTensor(Diagonal((hidden_size, hidden_size), 1.0)),
        f"{PROJECTOR_OUT}.bias": MergedTensor(Diagonal((hidden_size,), 0.0)),
    }
