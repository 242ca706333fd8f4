"""The division of a step's time, on a clock that only the test moves."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.profiling.profile_table import ATTENTION, LINEAR, OTHER, PARTS, SCHEDULE, STEP, profile
from llava_serving.profiling.step_timer import StepTimer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_time_of_an_inner_part_is_not_time_of_the_outer_one() -> None:
    clock = Clock()
    timer = StepTimer(clock)
    inner = timer.part(LINEAR, clock.wait)

    def outer() -> None:
        clock.wait(1)
        inner(10)
        clock.wait(2)

    def step() -> None:
        clock.wait(100)
        timer.part(ATTENTION, outer)()
        clock.wait(200)

    timer.step(step)()
    assert timer.steps[0].parts == {OTHER: 300, ATTENTION: 3, LINEAR: 10}
    assert timer.steps[0].seconds == 313


def test_a_part_outside_a_step_is_not_measured() -> None:
    clock = Clock()
    timer = StepTimer(clock)
    timer.part(LINEAR, clock.wait)(5)
    timer.step(clock.wait)(1)
    assert [(step.seconds, step.parts) for step in timer.steps] == [(1, {OTHER: 1})]


def test_an_error_ends_its_part_and_its_step() -> None:
    clock = Clock()
    timer = StepTimer(clock)

    def fail() -> None:
        clock.wait(3)
        raise ValueError("this step fails")

    def step() -> None:
        with pytest.raises(ValueError, match="this step fails"):
            timer.part(LINEAR, fail)()
        clock.wait(4)

    timer.step(step)()
    with pytest.raises(ValueError, match="this step fails"):
        timer.step(fail)()
    timer.step(step)()
    assert [step.parts for step in timer.steps] == [{LINEAR: 3, OTHER: 4}, {OTHER: 3}, {LINEAR: 3, OTHER: 4}]


def test_time_of_the_device_belongs_to_the_part_that_launched_the_work() -> None:
    clock = Clock()
    launched = [0.0]

    def synchronize() -> None:
        clock.wait(launched[0])
        launched[0] = 0.0

    def launch() -> None:
        launched[0] = 7.0

    timer = StepTimer(clock, synchronize)
    timer.step(timer.part(LINEAR, launch))()
    assert timer.steps[0].parts == {OTHER: 0, LINEAR: 7}


Calls = list[tuple[str, float, "Calls"]]
CALLS = st.recursive(
    st.just([]),
    lambda calls: st.lists(st.tuples(st.sampled_from(PARTS), st.floats(0, 10), calls), max_size=3),
    max_leaves=10,
)


@given(st.lists(CALLS, min_size=1, max_size=4))
def test_means_of_the_parts_add_up_to_the_step(steps: list[Calls]) -> None:
    clock = Clock()
    timer = StepTimer(clock)

    def run(calls: Calls) -> None:
        for part, seconds, inner in calls:
            clock.wait(seconds)
            timer.part(part, run)(inner)

    timer.kind = "decode only"
    step: Callable[[Calls], None] = timer.step(run)
    for calls in steps:
        clock.wait(0.5)
        step([(SCHEDULE, 1.0, []), *calls])
    times = profile(timer.steps)["decode only"]
    parts = times["parts"]
    assert times["steps"] == len(steps)
    assert sum(parts[part]["mean_ms"] for part in PARTS) == pytest.approx(parts[STEP]["mean_ms"])
    assert sum(parts[part]["share"] for part in PARTS) == pytest.approx(1)
