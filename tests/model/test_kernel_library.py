"""Compiling the CPU kernels beside the reading of weights."""

import ctypes
import functools
import logging
import time

import pytest

from llava_serving.model.cpu_kernels import library


@pytest.fixture(autouse=True)
def _nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load_kernels", functools.cache(library._load_kernels.__wrapped__))


def test_kernels_compiled_in_the_background_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, kernels = [], library.compile_kernels()

    def compile_slowly() -> ctypes.CDLL:
        time.sleep(0.2)
        compiled.append(kernels)
        return kernels

    monkeypatch.setattr(library, "compile_kernels", compile_slowly)
    started = time.monotonic()
    library.load_in_background()
    assert time.monotonic() - started < 0.2
    assert library.load_kernels() is kernels
    assert compiled == [kernels]


def test_a_compiler_that_fails_in_the_background_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "false")
    with caplog.at_level(logging.WARNING):
        library.load_in_background()
        assert library.load_kernels() is None
    assert "torch's operators, slower: " in caplog.text
    assert "false fails" in caplog.text
