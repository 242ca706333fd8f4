"""How large everything is: as LLaVA-13b on a card, and as a toy in Triton's interpreter."""

from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A LLaVA's widths. The vision tower's patches are 14 pixels wide; its features go through one linear map."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    context: int
    image_size: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def image_tokens(self) -> int:
        return (self.image_size // 14) ** 2

    @property
    def image_token_id(self) -> int:
        """The first of three added tokens; the ids below are text."""
        return self.vocabulary - 3


@dataclass(frozen=True)
class Sizes:
    """What the phases run. Lengths are in tokens."""

    small: bool
    device: torch.device
    dtype: torch.dtype
    shape: Shape
    equality_shape: Shape
    batches: tuple[int, ...]  # sequences that decode together
    shortest: int  # sequence of a batch
    longest: int
    max_step_tokens: int
    prefills: tuple[int, ...]
    images: tuple[int, ...]  # encoded together
    steps: int  # timed
    torch_steps: int  # timed on the slow path
    buffer_bytes: int  # copied and read by the bandwidth phase
    rotated_bytes: int  # of weights that take turns, so that none is found in the card's cache
    chats: int
    chat_prompt: int
    chat_answer: int
    chats_one_by_one: int

    def lengths(self, num_seqs: int) -> list[int]:
        """Of a batch: evenly between the shortest and the longest; their middle where there is only one."""
        if num_seqs == 1:
            return [(self.shortest + self.longest) // 2]
        step = (self.longest - self.shortest) / (num_seqs - 1)
        return [round(self.shortest + step * number) for number in range(num_seqs)]


LLAVA_13B = Shape(32003, 5120, 13824, 40, 40, 2048, 224, 1024, 4096, 24, 16)
TOY = Shape(67, 64, 96, 2, 2, 128, 28, 32, 64, 3, 2)
EQUALITY_TOY = Shape(203, 64, 96, 2, 2, 128, 28, 32, 64, 3, 2)
EQUALITY = Shape(1003, 256, 384, 3, 4, 256, 56, 64, 128, 3, 2)


def full() -> Sizes:
    """Under 200 seconds on an H100."""
    return Sizes(
        small=False, device=torch.device("cuda"), dtype=torch.float16, shape=LLAVA_13B, equality_shape=EQUALITY,
        batches=(1, 16, 64), shortest=300, longest=700, max_step_tokens=2048, prefills=(512, 1024, 2048),
        images=(1, 8), steps=40, torch_steps=6, buffer_bytes=4 * GIB, rotated_bytes=6 * GIB // 5, chats=64,
        chat_prompt=60, chat_answer=64, chats_one_by_one=2,
    )  # fmt: skip


def small() -> Sizes:
    """Under three minutes on two cores."""
    return Sizes(
        small=True, device=torch.device("cpu"), dtype=torch.float32, shape=TOY, equality_shape=EQUALITY_TOY,
        batches=(1, 2, 4), shortest=18, longest=40, max_step_tokens=32, prefills=(16, 32), images=(1, 2), steps=2,
        torch_steps=2, buffer_bytes=2**20, rotated_bytes=0, chats=4, chat_prompt=6, chat_answer=4, chats_one_by_one=2,
    )  # fmt: skip
