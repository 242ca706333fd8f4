"""The progress of one answer without a browser, with an endpoint that is busy, behind a broken gateway, or dead."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from scripted_endpoint import KEY, ScriptedEndpoint

from llava_serving.client.endpoint import Endpoint
from llava_serving.playground.answer import Progress, answer_progress


def progress_until(endpoint: Endpoint, is_last: Callable[[Progress], bool]) -> list[Progress]:
    """Returns the progress of an answer until `is_last`, and ends it then."""

    async def collect() -> list[Progress]:
        collected = []
        generator = answer_progress(endpoint, {})
        async for progress in generator:
            collected.append(progress)
            if is_last(progress):
                break
        await generator.aclose()
        return collected

    return asyncio.run(collect())


@pytest.mark.parametrize(("behavior", "cause"), [("busy", "429 overloaded"), ("gateway timeout", "504: upstream")])
def test_transient_status_is_waited_for_with_a_countdown(behavior: str, cause: str) -> None:
    endpoint = ScriptedEndpoint()
    endpoint.behaviors = [behavior, behavior]
    progress = progress_until(Endpoint(endpoint.url, KEY), lambda step: step.text is not None and "word1" in step.text)
    waits = [step for step in progress if step.title.startswith("The service is busy: next attempt in ")]
    assert len(waits) >= 2
    assert all(cause in step.details for step in waits)
    assert len(endpoint.bodies) == 3
    assert not any(step.is_error for step in progress)


@pytest.mark.parametrize("behavior", ["deadline", "reset"])
def test_another_failure_ends_the_answer_and_the_person_decides(behavior: str) -> None:
    endpoint = ScriptedEndpoint()
    endpoint.behaviors = [behavior]
    progress = progress_until(Endpoint(endpoint.url, KEY), lambda step: step.is_final)
    assert progress[-1].is_error
    assert len(endpoint.bodies) == 1


def test_refused_connection_is_reported_at_once() -> None:
    final: Any = progress_until(Endpoint("http://127.0.0.1:9/score"), lambda step: step.is_final)[-1]
    assert final.is_error
    assert "Connection refused" in final.details
