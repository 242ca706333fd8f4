"""Admission of sequences: the limit, the order of waiting threads, and refusals."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_serving.engine.admission import Admission
from llava_serving.errors import Overloaded, Unavailable


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Waiter(threading.Thread):
    """Waits for capacity for `num_seqs` sequences, and appends them to `admitted`."""

    def __init__(self, admission: Admission, num_seqs: int, admitted: list["Waiter"]) -> None:
        super().__init__(daemon=True)
        self.num_seqs = num_seqs
        self.error: Unavailable | None = None
        self._admission = admission
        self._admitted = admitted
        self.start()

    def run(self) -> None:
        try:
            with self._admission.lock:
                self._admission.wait_for_capacity(self.num_seqs)
                self._admission.admit(self.num_seqs)
                self._admitted.append(self)
        except Unavailable as error:
            self.error = error


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 4), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_waiting_threads_are_admitted_first_come_first_served_within_the_limit(limit: int, sizes: list[int]) -> None:
    sizes = [min(size, limit) for size in sizes]
    admission = Admission(limit)
    admission.admit(limit)
    admitted: list[Waiter] = []
    waiters = []
    for num_waiting, size in enumerate(sizes, 1):
        waiters.append(Waiter(admission, size, admitted))
        wait_until(lambda expected=num_waiting: len(admission._waiting) == expected)  # type: ignore[misc]
    live = limit
    while len(admitted) < len(waiters):
        before = len(admitted)
        admission.release()
        live -= 1
        expected = next_admitted(waiters, before, limit - live)
        wait_until(lambda count=before + expected: len(admitted) == count)  # type: ignore[misc]
        live += sum(waiter.num_seqs for waiter in admitted[before:])
        assert admitted == waiters[: len(admitted)]
        assert live <= limit
    for waiter in waiters:
        waiter.join(10)


def next_admitted(waiters: list[Waiter], num_admitted: int, room: int) -> int:
    """Returns how many of the waiters that come next fit together."""
    count = 0
    for waiter in waiters[num_admitted:]:
        room -= waiter.num_seqs
        if room < 0:
            break
        count += 1
    return count


def test_a_refusal_wakes_every_waiting_thread_with_503() -> None:
    admission = Admission(1)
    admission.admit(1)
    admitted: list[Waiter] = []
    waiters = [Waiter(admission, 1, admitted) for _ in range(3)]
    wait_until(lambda: len(admission._waiting) == 3)
    admission.refuse("draining", "going")
    for waiter in waiters:
        waiter.join(10)
        assert waiter.error is not None
        assert waiter.error.status == 503
    assert admitted == []


def test_a_request_beyond_the_limit_gets_429_and_takes_no_room() -> None:
    admission = Admission(2)
    admission.admit(1)
    with pytest.raises(Overloaded):
        admission.admit(2)
    admission.admit(1)
    with pytest.raises(Overloaded):
        admission.check(1)
    admission.release()
    admission.check(1)


def test_the_first_reason_to_refuse_stays() -> None:
    admission = Admission(1)
    admission.refuse("draining", "going")
    admission.refuse("unhealthy", "failed")
    with pytest.raises(Unavailable) as refused:
        admission.check(1)
    assert refused.value.code == "draining"
