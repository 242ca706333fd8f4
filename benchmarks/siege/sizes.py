"""How much each phase does: in full, or as a short check that every phase works."""

from dataclasses import dataclass, field

MIB = 1024 * 1024


@dataclass(frozen=True)
class Sizes:
    # seconds between two looks at the memory, which is steady if they agree
    settle_seconds: float = 1.0
    # slow: connections of each kind, connections that send a byte a second, and how long all of them stay
    slow_connections: int = 600
    drippers: int = 50
    slow_seconds: float = 60.0
    # pictures: side in pixels of each square picture (49 megapixels), callers at once, and rounds
    picture_side: int = 7000
    picture_callers: int = 32
    picture_rounds: int = 4
    quiet_seconds: float = 10.0
    rest_seconds: float = 5.0
    # refused: height in pixels of the picture that is one pixel wide, and bytes of a body that is not a request
    tall_pixels: int = 20_000_000
    bad_body_bytes: int = 30 * MIB
    # queue: how often the queue is filled
    queue_rounds: int = 3
    # neighbour: bytes of the noise picture, and how long its requests are sent
    noise_bytes: int = 20_000_000
    neighbour_seconds: float = 20.0
    # soak
    soak_minutes: float = 30.0
    # queue, neighbour, end: tokens of an answer; almost all of the demo model's context of 512
    answer_tokens: int = 480
    # end: answers under way at SIGTERM, half of them streams
    end_answers: int = 16
    environment: dict[str, str] = field(default_factory=dict)


def full(minutes: float) -> Sizes:
    return Sizes(soak_minutes=minutes)


def short() -> Sizes:
    """Returns counts with which all phases together take less than a minute on two busy cores."""
    return Sizes(
        slow_connections=60, drippers=5, slow_seconds=2,
        picture_side=1000, picture_callers=4, picture_rounds=1, quiet_seconds=1, rest_seconds=1, settle_seconds=0.3,
        tall_pixels=1_000_000, bad_body_bytes=MIB // 10,
        queue_rounds=1, noise_bytes=MIB, neighbour_seconds=1, soak_minutes=0.06, answer_tokens=120, end_answers=4,
        environment={
            "LLAVA_MAX_NUM_SEQS": "4", "LLAVA_MAX_QUEUED_SEQS": "4", "LLAVA_MAX_SEQUENCES": "4",
            "LLAVA_MAX_BODY_BYTES": str(4 * MIB),
        },
    )  # fmt: skip
