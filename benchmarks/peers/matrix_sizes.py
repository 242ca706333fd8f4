"""How many parameters a decode step reads, and how many operations a prompt takes. Both follow from config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def language_matrix_parameters(checkpoint: Path) -> int:
    """Returns the parameters of the language model's linear layers: all but the embedding and the norms."""
    return matrix_parameters(json.loads((checkpoint / "config.json").read_text()))


def embedding_parameters(checkpoint: Path) -> int:
    """Returns the parameters of the embedding, which has as many as the head."""
    return _head_parameters(json.loads((checkpoint / "config.json").read_text())["text_config"])


def matrix_parameters(config: Mapping[str, Any]) -> int:
    """Returns the same of a config that is read already."""
    text = config["text_config"]
    layers: int = text["num_hidden_layers"] * _layer_parameters(text)
    return layers + _head_parameters(text)


def prompt_operations(config: Mapping[str, Any], prompt_tokens: int) -> int:
    """Returns the floating-point operations of a prompt with a picture: the products of weights and rows."""
    text, vision = config["text_config"], config["vision_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    width, hidden = vision["hidden_size"], text["hidden_size"]
    tower = (vision["num_hidden_layers"] - 1) * (4 * width**2 + 2 * width * vision["intermediate_size"])
    projector = width * hidden + hidden**2
    layers: int = text["num_hidden_layers"] * _layer_parameters(text)
    # The head is computed for the last row only.
    return 2 * (prompt_tokens * layers + _head_parameters(text) + (patches + 1) * tower + patches * projector)


def _layer_parameters(text: Mapping[str, Any]) -> int:
    hidden: int = text["hidden_size"]
    return 4 * hidden**2 + 3 * hidden * int(text["intermediate_size"])


def _head_parameters(text: Mapping[str, Any]) -> int:
    return int(text["hidden_size"]) * int(text["vocab_size"])
