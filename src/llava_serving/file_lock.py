"""An exclusive lock between processes, on a file that is open."""

import fcntl
from typing import IO, Any


def lock_file(file: IO[Any], wait: bool = False) -> bool:
    """Locks `file` until it closes or the process ends. Returns False if another process holds the lock.

    With `wait` it waits for that process instead. A file system without locks grants every lock.
    The `filelock` package locks a file of its own beside the data, which a mounted output folder would keep.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
