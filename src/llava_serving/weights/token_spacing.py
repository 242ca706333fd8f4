"""How a merged folder's tokenizer encodes text beside a special token, by the folder's files.

transformers 5 builds LlamaTokenizer anew, by `legacy` in tokenizer_config.json. It takes other classes from
tokenizer.json as they are (transformers tokenization_utils_tokenizers.py, `convert_to_native_format`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..inputs.tokenizer import Spacing
from ..model_files import read_json

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


def read_spacing(directory: Path) -> Spacing:
    """Returns the spacing of a model without v0's image token. Raises StartupError if a file is damaged."""
    config, fast = (
        read_json(path) if path.is_file() else {}
        for path in (directory / "tokenizer_config.json", directory / "tokenizer.json")
    )
    if fast and config.get("tokenizer_class") not in LLAMA_CLASSES:
        begins_anew = any(
            _begins_each_text(step) for key in ("normalizer", "pre_tokenizer") for step in _steps(fast, key)
        )
        return Spacing.NEW_TEXT if begins_anew else Spacing.SAME_TEXT
    return Spacing.NEW_TEXT if config.get("legacy", not config) else Spacing.SAME_TEXT


def _steps(fast: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    step = fast.get(key) or {}
    yield step
    yield from step.get("normalizers", ())
    yield from step.get("pretokenizers", ())


def _begins_each_text(step: Mapping[str, Any]) -> bool:
    """Says whether a step of tokenizer.json puts a space before each text between special tokens."""
    return step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") == "always")
