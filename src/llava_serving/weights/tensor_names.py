"""Where the tensors of a v0 checkpoint go in transformers' LlavaForConditionalGeneration.

v0 has one linear projector. transformers has two with an activation between them: the activation is "linear" and the
second layer the identity (see identity_projector.py), which leaves every feature as it is to the bit.
"""

# Names in a LLaMA and in a delta.
EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")  # only in a delta
VISION_PREFIXES = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
PROJECTOR_IN = "model.multi_modal_projector.linear_1"
PROJECTOR_OUT = "model.multi_modal_projector.linear_2"
# Prefixes in the model's state dict, and the prefixes that transformers wrote before 4.52.
INTERCHANGE_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
# Prefixes in merged checkpoints of any age, and the prefixes in the model's state dict. The first match counts.
CHECKPOINT_PREFIXES = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def from_delta_name(name: str) -> str:
    """Returns the name in the model's state dict of a tensor of the delta."""
    if name.startswith("model.mm_projector."):
        return name.replace("model.mm_projector", PROJECTOR_IN)
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def from_clip_name(name: str) -> str | None:
    """Returns the name in the model's state dict of a tensor of CLIP, or None if the vision tower does not use it.

    The hub's CLIP folder also holds the text model. transformers saves a vision tower alone without the prefix.
    """
    name = name.removeprefix("vision_model.")
    if not name.startswith(VISION_PREFIXES) or name.endswith("position_ids"):
        return None
    return f"model.vision_tower.{name}"


def from_merged_name(name: str) -> str:
    """Returns the name in the model's state dict of a tensor of a merged checkpoint of any age.

    transformers reads the same names (conversion_mapping.py, "llava", "LlavaModel" and "CLIPVisionModel").
    """
    for theirs, ours in CHECKPOINT_PREFIXES:
        if name.startswith(theirs):
            name = name.replace(theirs, ours, 1)
            break
    return name.replace("model.vision_tower.vision_model.", "model.vision_tower.", 1)


def to_interchange_name(name: str) -> str:
    """Returns the name that transformers wrote before 4.52 for a tensor of the model's state dict.

    transformers still reads these names. vLLM does not know the newer names of the vision tower.
    """
    if name == LM_HEAD:
        return f"language_model.{name}"
    for ours, theirs in INTERCHANGE_PREFIXES:
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    raise ValueError(name)


def to_llama_name(name: str) -> str:
    """Returns LLaMA's own name for a language model's tensor of the model's state dict. Other names stay."""
    return name.replace("model.language_model.", "model.", 1)
