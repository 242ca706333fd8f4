"""How the tokenizer of a model in transformers' layout encodes text beside a special token, by the folder's files.

transformers 5 takes a LLaVA's tokenizer.json as it is, whatever class tokenizer_config.json names
(models/auto/tokenization_auto.py, the models that are forced to use TokenizersBackend).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..inputs.tokenizer import Spacing
from ..model_files import read_json


def read_spacing(directory: Path) -> Spacing:
    """Returns the spacing of a model without v0's image token. Raises StartupError if a file is damaged.

    Without a tokenizer.json it is that of LLaVA's authors, who encoded each text between images on its own.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return Spacing.NEW_TEXT
    fast = read_json(path)
    steps = [step for key in ("normalizer", "pre_tokenizer") for step in _steps(fast.get(key) or {})]
    return Spacing.NEW_TEXT if any(map(_begins_each_text, steps)) else Spacing.SAME_TEXT


def _steps(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield step
    yield from step.get("normalizers", ())
    yield from step.get("pretokenizers", ())


def _begins_each_text(step: Mapping[str, Any]) -> bool:
    """Says whether a step of tokenizer.json puts a space before each text between special tokens."""
    return step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") == "always")
