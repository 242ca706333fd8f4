"""The sizes of the model and of the phases: LLaVA-13b on a GPU, or a toy in Triton's interpreter."""

from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """The widths of a LLaVA whose vision patches are 14 pixels wide and whose projector is one linear layer."""

    vocab_size: int
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
        """The first of three added tokens. The ids below it are text."""
        return self.vocab_size - 3


@dataclass(frozen=True)
class Sizes:
    """What the phases run. Lengths are in tokens."""

    small: bool
    device: torch.device
    dtype: torch.dtype
    shape: Shape
    equality_shape: Shape
    batches: tuple[int, ...]  # each value is the number of sequences that decode together
    shortest: int  # length of the shortest sequence of a batch
    longest: int
    max_step_tokens: int
    prefills: tuple[int, ...]
    int8_batches: tuple[int, ...]  # of the phase with 8-bit weights, as are the next two
    int8_prefills: tuple[int, ...]
    int8_requests: int
    equality_requests: int
    images: tuple[int, ...]  # each value is the number of images that are encoded together
    steps: int  # number of timed steps
    torch_steps: int  # number of timed steps with torch's operators, which are slow
    buffer_bytes: int  # size of the buffer that the bandwidth phase copies and reads
    rotated_bytes: int  # total size of a weight's copies, used in turn so that no copy stays in the device's cache
    chats: int
    chat_prompt: int
    chat_answer: int
    chats_one_by_one: int

    def lengths(self, num_seqs: int) -> list[int]:
        """Returns the lengths of a batch, evenly from the shortest to the longest, or their mean for one sequence."""
        if num_seqs == 1:
            return [(self.shortest + self.longest) // 2]
        step = (self.longest - self.shortest) / (num_seqs - 1)
        return [round(self.shortest + step * index) for index in range(num_seqs)]


LLAVA_13B = Shape(32003, 5120, 13824, 40, 40, 2048, 224, 1024, 4096, 24, 16)
TOY = Shape(67, 64, 96, 2, 2, 128, 28, 32, 64, 3, 2)
EQUALITY_TOY = Shape(203, 64, 96, 2, 2, 128, 28, 32, 64, 3, 2)
EQUALITY = Shape(1003, 256, 384, 3, 4, 256, 56, 64, 128, 3, 2)


def full() -> Sizes:
    """Took 80 seconds on an H100 before there were 8-bit weights, whose phase no GPU has run yet."""
    return Sizes(
        small=False, device=torch.device("cuda"), dtype=torch.float16, shape=LLAVA_13B, equality_shape=EQUALITY,
        batches=(1, 16, 64), shortest=300, longest=700, max_step_tokens=2048, prefills=(512, 1024, 2048),
        int8_batches=(1, 16, 64), int8_prefills=(512, 1024, 2048), int8_requests=24, equality_requests=24,
        images=(1, 8), steps=40, torch_steps=6, buffer_bytes=4 * GIB, rotated_bytes=6 * GIB // 5, chats=64,
        chat_prompt=60, chat_answer=64, chats_one_by_one=2,
    )  # fmt: skip


def small() -> Sizes:
    """Takes under three minutes on two cores."""
    return Sizes(
        small=True, device=torch.device("cpu"), dtype=torch.float32, shape=TOY, equality_shape=EQUALITY_TOY,
        batches=(1, 2, 4), shortest=18, longest=40, max_step_tokens=32, prefills=(16, 32), int8_batches=(2,),
        int8_prefills=(66,), int8_requests=2, equality_requests=16, images=(1, 2), steps=2,
        torch_steps=2, buffer_bytes=2**20, rotated_bytes=0, chats=4, chat_prompt=6, chat_answer=4, chats_one_by_one=2,
    )  # fmt: skip
