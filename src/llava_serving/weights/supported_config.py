"""Settings of a config.json that change the model's numbers and that the engine does not compute: refused by name.

The other settings of LLaMA, CLIP and LLaVA are computed as in the file (norm epsilons, RoPE, biases, head sizes, the
vision tower's and the projector's activations, the vision feature layer), or they change no answer: those of training,
and `pretraining_tp`, which splits a product into parts of the same sum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import StartupError
from .rope_settings import ROPE_KEYS, rope_parameters


@dataclass(frozen=True)
class Rule:
    """A setting, the values of it that the engine computes, and what it computes. A missing setting is accepted."""

    key: str
    is_computed: Callable[[Any], bool]
    computed: str


def _one_of(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


LANGUAGE_RULES = (
    Rule("hidden_act", _one_of("silu", "swish"), "computes SiLU"),
    Rule("sliding_window", _one_of(None), "attends to all earlier tokens"),
    Rule("layer_types", lambda types: set(types or ()) <= {"full_attention"}, "attends to all earlier tokens"),
)
MERGED_LANGUAGE_RULES = (Rule("model_type", _one_of("llama"), "runs LLaMA's layers"), *LANGUAGE_RULES)
DELTA_RULES = (
    Rule("model_type", _one_of("llama", "llava", "llava_llama"), "runs LLaMA's layers"),
    Rule("mm_projector_type", _one_of(None, "linear"), "computes one linear layer"),
    Rule("mm_vision_select_feature", _one_of(None, "patch"), "takes the features of the patches"),
    Rule("mm_vision_select_layer", lambda layer: isinstance(layer, int), "takes one layer, by its number"),
    Rule("mm_patch_merge_type", _one_of(None, "flat"), "takes the patches row by row"),
    Rule("image_aspect_ratio", _one_of(None, "square"), "sees the square that CLIP cuts from a picture"),
)
VISION_RULES = (
    Rule("model_type", _one_of("clip", "clip_vision_model"), "runs CLIP's vision tower"),
    Rule("num_channels", _one_of(3), "reads pictures of 3 channels"),
)


def check_language_config(config: Mapping[str, Any], source: str) -> None:
    """Raises StartupError if the config.json of a LLaMA, or of a delta, has a setting that the engine does not
    compute. `source` names the file in the message."""
    _check(config, LANGUAGE_RULES, source)
    rope_parameters(config, source)


def check_delta_config(config: Mapping[str, Any], source: str) -> None:
    """Raises StartupError as `check_language_config`, also for the settings of LLaVA's authors."""
    _check(config, DELTA_RULES, source)
    check_language_config(config, source)


def check_vision_config(config: Mapping[str, Any], source: str) -> None:
    """Raises StartupError if the config.json of a vision tower has a setting that the engine does not compute."""
    _check(config.get("vision_config", config), VISION_RULES, source)


def check_merged_config(config: Mapping[str, Any], source: str) -> None:
    """Raises StartupError if the config.json of a merged LLaVA has a setting that the engine does not compute."""
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part, {}), dict):
            raise StartupError(f"{source} has {part} {config[part]!r}, which is no object")
    text = config.get("text_config", {})
    _check(text, MERGED_LANGUAGE_RULES, f"the language model (text_config) of {source}")
    check_language_config(text, f"the language model (text_config) of {source}")
    outside = {key: config[key] for key in ROPE_KEYS if config.get(key) is not None}
    if outside and rope_parameters(outside, source) != rope_parameters(text, source):
        raise StartupError(
            f"{source} has {', '.join(outside)} outside text_config, where transformers ignores it: the language "
            "model's RoPE belongs into text_config"
        )
    check_vision_config(config.get("vision_config", {}), f"vision_config of {source}")


def _check(config: Mapping[str, Any], rules: tuple[Rule, ...], source: str) -> None:
    for rule in rules:
        if rule.key in config and not rule.is_computed(config[rule.key]):
            raise StartupError(f"{source} has {rule.key} {config[rule.key]!r}, and the engine {rule.computed}")
