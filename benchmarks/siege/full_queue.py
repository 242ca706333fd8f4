"""A full queue: what Retry-After says, and how long it takes until a request is admitted.

In the first round all answers under way have the same length, in the second the lengths differ, and in the third the
request that waits is for many sequences.
"""

import socket
import time
from typing import Any

from .bodies import long_request, score_body
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
    num_seqs = 1 if index < 2 else min(phase.service.capacity // 2, phase.service.settings.max_sequences)
    refusals, admitted = _poll(phase, num_seqs)
    for filler in fillers:
        filler.leave()
    phase.service.wait_until_idle(30)
    # (Retry-After in seconds, seconds that it really took): the first refusal, and each later one
    pairs = [(retry_after, admitted - at) for at, retry_after in refusals]
    ratios = [retry_after / max(1.0, waited) for retry_after, waited in pairs]  # Retry-After is at least a second
    result: dict[str, Any] = {"sequences": num_seqs, "pairs": pairs, "ratios": ratios}
    if not pairs:
        phase.require(False, "a request is admitted although the queue is full")
        return result
    result["share_within_factor"] = sum(1 / FACTOR <= ratio <= FACTOR for ratio in ratios) / len(ratios)
    retry_after, waited = pairs[0]
    first = f"Retry-After for {num_seqs} sequences is {retry_after} where the wait is {waited:.1f} s"
    phase.report(f"{first}; {result['share_within_factor']:.0%} of {len(pairs)} refusals are within a factor of two")
    phase.require(1 / FACTOR <= ratios[0] <= FACTOR, f"{first}, required: within a factor of two")
    return result


def _poll(phase: Phase, num_seqs: int) -> tuple[list[tuple[float, int]], float]:
    """Returns (time, Retry-After) of each refusal, and the time at which a request was sent that was admitted."""
    refusals: list[tuple[float, int]] = []
    caller = Caller(phase.service.port, phase.ledger)
    request = Request(score_body(text="the sky is", max_new_tokens=1, n=num_seqs, temperature=1))
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
        share = 1.0 if round_index != 1 else 0.4 + 0.6 * (number * 7 % 16) / 15
        phase.ledger.offer()
        self._ledger = phase.ledger
        self._socket = socket.create_connection(("127.0.0.1", phase.service.port))
        self._socket.sendall(raw_bytes(long_request(tokens=int(phase.sizes.answer_tokens * share))))

    def leave(self) -> None:
        self._socket.close()
        self._ledger.record(LEFT, "a caller of the full queue")
