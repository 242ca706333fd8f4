"""Memory that runs out during the start, told as such."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import StartupError

# In the texts of torch's RuntimeErrors: of its CPU allocator, and of CUDA's allocations outside torch's allocator.
MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an exception means that a device or the host has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


@contextmanager
def out_of_memory_refused(doing: str, way_out: str) -> Iterator[None]:
    """Turns an out-of-memory of the block into a StartupError. `doing` and `way_out` complete its message."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        detail = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StartupError(f"memory ran out while {doing} ({detail}): {way_out}") from error
