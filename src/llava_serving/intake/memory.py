"""Returns freed memory to the system.

glibc keeps what a thread has freed for the next use. With a hundred threads that each passed on a large body once, this
is hundreds of megabytes for ever.
"""

import ctypes
import threading
import time

# After the last large request, and between two returns while there are more.
REST_SECONDS = 2.0


class MemoryReturn:
    """Asks glibc to return freed memory, on a thread of its own, a moment after `request`."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            threading.Thread(target=self._return_memory, args=(trim,), name="memory", daemon=True).start()

    def request(self) -> None:
        self._requested.set()

    def _return_memory(self, trim: "ctypes._NamedFuncPointer") -> None:
        while self._requested.wait():
            time.sleep(REST_SECONDS)
            self._requested.clear()
            trim(0)
