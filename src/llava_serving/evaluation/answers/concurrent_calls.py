"""Makes many calls at the same time, with a progress bar, and goes on when some of them fail."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from ...client.endpoint_error import EndpointError
from ...errors import RequestError
from ...progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")
# Nobody else's call would fare better: the key or the address is wrong.
FATAL_STATUSES = (401, 403, 404, 405)
# So many failures without a success between them mean that the other side is gone.
FAILURES_IN_A_ROW = 25


def call_each(
    progress: Progress,
    items: Sequence[Item],
    call: Callable[[Item], Result],
    keep: Callable[[Item, Result], None],
    concurrency: int,
    stop: Callable[[], None],
) -> dict[int, str]:
    """Calls `call` for each item in `concurrency` threads, and `keep` in this thread with each result as it comes.

    Returns the messages of the calls that raised EndpointError or RequestError, by the item's index. Raises
    EndpointError if no other call can succeed, and whatever else `call` and `keep` raise, KeyboardInterrupt too. `stop`
    is called then, and makes running calls end soon.
    """
    failures: dict[int, str] = {}
    in_a_row = 0
    pool = ThreadPoolExecutor(concurrency, "call")
    try:
        pending = {pool.submit(call, item): index for index, item in enumerate(items)}
        for future in as_completed(pending):
            index = pending[future]
            if (error := _failure(future)) is None:
                keep(items[index], future.result())
                in_a_row = 0
            else:
                failures[index], in_a_row = str(error), in_a_row + 1
                _check_goes_on(error, in_a_row)
            progress.advance(1, f"{len(failures)} failed" if failures else "")
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def _failure(future: "Future[Result]") -> EndpointError | RequestError | None:
    """Returns the error of one call, or None. Raises any other exception of the call."""
    error = future.exception()
    if error is None or isinstance(error, EndpointError | RequestError):
        return error
    raise error


def _check_goes_on(error: EndpointError | RequestError, in_a_row: int) -> None:
    if error.status in FATAL_STATUSES:
        raise EndpointError(error.status, error.code, error.message)
    if in_a_row >= FAILURES_IN_A_ROW:
        raise EndpointError(None, "", f"{in_a_row} requests failed one after the other, the last with: {error}")
