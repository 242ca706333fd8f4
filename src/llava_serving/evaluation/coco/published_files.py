"""LLaVA's own input files: where they come from, their licences, and whether a given file is one of them.

None of them is part of this project.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = "https://raw.githubusercontent.com/haotian-liu/LLaVA/15f31eb"


@dataclass(frozen=True)
class PublishedFile:
    """`num_lines` and `sha256` are those of the file at `source`."""

    source: str
    licence: str
    num_lines: int
    sha256: str


PUBLISHED_FILES = {
    "--questions": PublishedFile(
        f"{SOURCE}/playground/data/coco2014_val_qa_eval/qa90_questions.jsonl",
        "CC BY-NC 4.0, and the terms of OpenAI", 90,
        "2a77196696b5602b544244ace9aeac21300513be85b5e53eb2414d00cddbe1c7",
    ),
    "--reference": PublishedFile(
        f"{SOURCE}/playground/data/coco2014_val_qa_eval/qa90_gpt4_answer.jsonl",
        "CC BY-NC 4.0, and the terms of OpenAI", 90,
        "5fd1a760483fb54e62a717a406add8a986f3e03a40d037b5d6515828cc90dbc5",
    ),
    "--context": PublishedFile(
        f"{SOURCE}/llava/eval/table/caps_boxes_coco2014_val_80.jsonl",
        "captions and boxes of COCO, CC BY 4.0", 80,
        "818d3df2b52784699bbdc129b6bc68e035d78ff8f5093c3e2ce5e0f726549b15",
    ),
}  # fmt: skip
# COCO's val2014.zip. Each picture has a licence of its own, from Flickr.
NUM_PICTURES = 30


def differences(given: Mapping[str, Path | None]) -> list[str]:
    """Returns a line about each file, by its option, that is not LLaVA's own. Raises OSError."""
    return [
        line for option, path in given.items() if path is not None and (line := _difference(option, path)) is not None
    ]


def _difference(option: str, path: Path) -> str | None:
    expected, content = PUBLISHED_FILES[option], path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 == expected.sha256:
        return None
    num_lines = sum(bool(line.strip()) for line in content.split(b"\n"))
    return (
        f"{option} {path} is not LLaVA's file: {num_lines} lines and sha256 {sha256[:12]}, LLaVA's has "
        f"{expected.num_lines} and {expected.sha256[:12]} ({expected.source}, {expected.licence})"
    )
