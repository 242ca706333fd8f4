"""The forecast behind Retry-After, against a simulation step by step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llava_serving.engine.wait_forecast import WaitForecast


def simulated_finishes(running: list[int], waiting: list[int], max_running: int) -> list[int]:
    """Returns after how many steps each sequence ends, if each step serves `max_running` of them in order."""
    remaining, queue, step, finishes = list(running), list(waiting), 0, []
    while remaining or queue:
        while queue and len(remaining) < max_running:
            remaining.append(queue.pop(0))
        step += 1
        finishes += [step] * sum(steps == 1 for steps in remaining)
        remaining = [steps - 1 for steps in remaining if steps > 1]
    return finishes


@settings(max_examples=200, deadline=None)
@given(
    max_running=st.integers(1, 4),
    running=st.lists(st.integers(1, 20), max_size=4),
    waiting=st.lists(st.integers(1, 20), max_size=6),
    num_unknown=st.integers(0, 3),
    count=st.integers(1, 10),
)
def test_the_forecast_equals_a_simulation(
    max_running: int, running: list[int], waiting: list[int], num_unknown: int, count: int
) -> None:
    running = running[:max_running]
    forecast = WaitForecast(100.0, {1: 0.5}, max_running, tuple(running), tuple(waiting), typical=7)
    finishes = simulated_finishes(running, waiting + [7] * num_unknown, max_running)
    expected = 0.5 * finishes[min(count, len(finishes)) - 1] if finishes else 0.0
    num_live = len(running) + len(waiting) + num_unknown
    assert forecast.seconds_until(count, num_live, now=100.0) == expected
    assert forecast.seconds_until(count, num_live, now=100.0 + expected + 1) == 0.0
