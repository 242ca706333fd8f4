"""The settings of rotary position embedding in a LLaMA's config.json, of any age of transformers.

Older files have `rope_theta` and `rope_scaling` (with `type`, later `rope_type`), newer ones have `rope_parameters`
(transformers modeling_rope_utils.py). The engine takes transformers' cosines and sines of every position at start. So
it computes each type whose angles depend on the position alone. Those of "dynamic" and "longrope" also depend on the
length of the sequence.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import StartupError

DEFAULT_THETA = 10_000.0  # LLaMA's
# The computed types, with the keys that each needs.
COMPUTED_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
TYPE_KEYS = ("rope_type", "type")
# The keys of a config.json that set RoPE.
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")


def rope_parameters(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the argument `rope_parameters` of transformers' LlamaConfig.

    Raises StartupError that names the setting of `source`, the config.json, if the engine does not compute it.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    stored = config.get(key) or {}
    parameters = dict(stored) if isinstance(stored, dict) else {}
    rope_type = next((parameters[name] for name in TYPE_KEYS if name in parameters), "default")
    numbers = {name: value for name, value in parameters.items() if name not in TYPE_KEYS and value is not None}
    is_known = isinstance(stored, dict) and rope_type in COMPUTED_TYPES
    if not is_known or not set(COMPUTED_TYPES[rope_type]) <= numbers.keys() or not _are_numbers(numbers):
        needs = ", ".join(name + (f" ({', '.join(keys)})" if keys else "") for name, keys in COMPUTED_TYPES.items())
        raise StartupError(f"{source} has {key} {stored!r}, and the engine computes RoPE of type {needs}")
    _check_not_contradictory(config, source)
    theta = numbers.pop("rope_theta", config.get("rope_theta") or DEFAULT_THETA)
    if not _are_numbers({"rope_theta": theta}):
        raise StartupError(f"{source} has rope_theta {theta!r}, and the engine computes RoPE with a number")
    share = numbers.pop("partial_rotary_factor", config.get("partial_rotary_factor") or 1)
    if share != 1:
        raise StartupError(f"{source} has partial_rotary_factor {share!r}, and the engine rotates whole heads")
    if rope_type == "default" and numbers:
        raise StartupError(
            f"{source} has {key} {stored!r} without a type: {', '.join(numbers)} would have no effect; name the type"
        )
    return {"rope_type": rope_type, "rope_theta": float(theta), **numbers}


def _check_not_contradictory(config: Mapping[str, Any], source: str) -> None:
    """Raises StartupError if two keys say different things, of which transformers would read one."""
    both = [config[key] for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    if len(both) == 2 and both[0] != both[1]:
        raise StartupError(f"{source} has rope_scaling {both[0]!r} and another rope_parameters {both[1]!r}: remove one")
    for key in ("rope_theta", "partial_rotary_factor"):
        values = [part[key] for part in (config, *both) if isinstance(part, Mapping) and part.get(key) is not None]
        if any(value != values[0] for value in values):
            raise StartupError(f"{source} has {key} {values[0]!r} and also {values[1]!r}: remove one")


def _are_numbers(values: Mapping[str, object]) -> bool:
    return all(isinstance(value, int | float) for value in values.values())
