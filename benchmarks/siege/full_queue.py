"""A full queue: what Retry-After says, and how long it takes until a request is admitted."""

import socket
import time
from typing import Any

from .bodies import LONG_ANSWER_TOKENS, long_request, score_body
from .caller import Caller, Request
from .context import Phase
from .ledger import LEFT
from .raw_request import raw_bytes

POLL_SECONDS = 0.1
WAIT_SECONDS = 170.0
FACTOR = 2.0


def measure(phase: Phase) -> dict[str, Any]:
    phase.figures["rounds"] = []
    for index in range(phase.sizes.queue_rounds):
        phase.figures["rounds"].append(_round(phase, index))
    return phase.figures


def _round(phase: Phase, index: int) -> dict[str, Any]:
    """Fills the queue, and sends one more request until it is admitted. Then all callers leave."""
    fillers = [_Filler(phase, number, index) for number in range(phase.service.capacity)]
    time.sleep(0.5)
    refusals, admitted = _poll(phase)
    for filler in fillers:
        filler.leave()
    phase.service.wait_until_idle(30)
    # (Retry-After in seconds, seconds that it really took): the first refusal, and each later one
    pairs = [(retry_after, admitted - at) for at, retry_after in refusals]
    ratios = [retry_after / max(1.0, waited) for retry_after, waited in pairs]  # Retry-After is at least a second
    result = {"refusals": len(pairs), "pairs": pairs, "ratios": ratios}
    if not pairs:
        phase.require(False, "a request is admitted although the queue is full")
        return result
    within = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios) / len(ratios)
    result["share_within_factor"] = within
    phase.report(
        f"a full queue says Retry-After {pairs[0][0]}, and admits after {pairs[0][1]:.1f} s (ratio {ratios[0]:.2f}); "
        f"{within:.0%} of {len(pairs)} refusals are within a factor of two"
    )
    phase.require(
        1 / FACTOR <= ratios[0] <= FACTOR,
        f"Retry-After is {pairs[0][0]} where the wait is {pairs[0][1]:.1f} s, required: within a factor of two",
    )
    return result


def _poll(phase: Phase) -> tuple[list[tuple[float, int]], float]:
    """Returns (time, Retry-After) of each refusal, and the time at which a request was sent that was admitted."""
    refusals: list[tuple[float, int]] = []
    caller = Caller(phase.service.port, phase.ledger)
    request = Request(score_body(text="the sky is", max_new_tokens=1))
    end = time.monotonic() + WAIT_SECONDS
    while (now := time.monotonic()) < end:
        answer = caller.send(request, busy=True)
        if answer.status != 429:
            break
        refusals.append((now, answer.retry_after or 0))
        time.sleep(POLL_SECONDS)
    return refusals, now


class _Filler:
    """A caller with a long answer, who leaves at the end of the round."""

    def __init__(self, phase: Phase, number: int, round_index: int) -> None:
        # In the first round all answers have the same length. In the next ones the lengths differ.
        share = 1.0 if round_index == 0 else 0.4 + 0.6 * (number * 7 % 16) / 15
        phase.ledger.offer()
        self._ledger = phase.ledger
        self._socket = socket.create_connection(("127.0.0.1", phase.service.port))
        self._socket.sendall(raw_bytes(long_request(tokens=int(LONG_ANSWER_TOKENS * share))))

    def leave(self) -> None:
        self._socket.close()
        self._ledger.record(LEFT, "a caller of the full queue")
