"""Whether a CUDA card runs the torch that is installed, and the numbers that are asked for."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import StartupError

Capability = tuple[int, int]

# The CUDA whose torch still has code for cards that newer ones have left, and its image; from Maxwell to Hopper.
OLDER_CUDA, OLDER_BUILD, OLDER_RUNS = "12.6", "+cu126", ((5, 0), (9, 0))
BFLOAT16_SINCE = (8, 0)


class Card(NamedTuple):
    name: str
    capability: Capability

    def __str__(self) -> str:
        return f"{self.name} (compute capability {_dotted(self.capability)})"


def check_card(card: Card, built_for: Sequence[str], torch_version: str) -> None:
    """Raises StartupError where torch, with code for `built_for` as in its get_arch_list(), has none for the card."""
    known = [arch for arch in map(_parsed, built_for) if arch]
    if not known or any(_runs(card.capability, *arch) for arch in known):
        return
    has = ", ".join(built_for)
    raise StartupError(
        f"torch {torch_version} has no code for the {card}, only for {has}: {_advice(card, known, torch_version)}"
    )


def _advice(card: Card, known: Sequence[tuple[str, Capability, str]], torch_version: str) -> str:
    version, _, build = torch_version.partition("+")
    oldest, newest = OLDER_RUNS
    if card.capability > max(capability for _, capability, _ in known):
        return "install a newer torch"
    if oldest <= card.capability <= newest and f"+{build}" != OLDER_BUILD:
        return f"install torch=={version}{OLDER_BUILD} from PyTorch's own index, with the image of CUDA {OLDER_CUDA}"
    return "take another card, or LLAVA_DEVICE=cpu"


def check_dtype(card: Card, dtype: torch.dtype) -> None:
    """Raises StartupError for numbers that the card can only emulate."""
    if dtype == torch.bfloat16 and card.capability < BFLOAT16_SINCE:
        raise StartupError(
            f"LLAVA_DTYPE=bfloat16, and the {card} does not compute in it, as cards from {_dotted(BFLOAT16_SINCE)} on "
            "do: set LLAVA_DTYPE=float16"
        )


def _parsed(arch: str) -> tuple[str, Capability, str] | None:
    """Of "sm_90a": "sm", (9, 0), "a"; None for what is not NVIDIA's."""
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch)
    return (match[1], (int(match[2]), int(match[3])), match[4]) if match else None


def _runs(card: Capability, kind: str, built_for: Capability, suffix: str) -> bool:
    """A binary runs on cards of its major version from its minor one on, PTX on all later cards (CUDA C++ Programming
    Guide, "Compatibility"). With "a" both run on just that card, with "f" on its family, which is its major version."""
    if suffix == "a":
        return card == built_for
    if kind == "sm" or suffix == "f":
        return card[0] == built_for[0] and card[1] >= built_for[1]
    return card >= built_for


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
