"""The batch runner with answers that a function gives, and the answers that it saves."""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_cases import DEFAULTS, refuse, run_columns, saved_lines

from llava_serving.batch.input_row import InputRow, RowDefaults
from llava_serving.batch.runner import BatchRunner
from llava_serving.batch.saved_answers import SavedAnswers
from llava_serving.errors import InternalError, Unavailable
from llava_serving.tools.batch import answer_files

TEXTS = [f"{name}{row}" for name in "abc" for row in range(3)]


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, str]]:
    """Returns three files of three requests. The text of each is its file and row, as in TEXTS."""
    files = []
    for name in "abc":
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'["{name}{row}"]\n' for row in range(3)))
        files.append((path, path.name))
    return files


def test_rows_of_all_files_run_at_the_same_time_and_their_results_are_in_order(files: list[tuple[Path, str]]) -> None:
    all_rows = threading.Barrier(9, timeout=30)

    def answer(body: bytes) -> Any:
        all_rows.wait()
        time.sleep(random.random() / 20)
        return json.loads(body)

    results = run_columns(BatchRunner(answer, 9, DEFAULTS), *files)
    assert [row[2] for row in results] == TEXTS


def test_a_failed_row_is_an_error_and_only_it_runs_again_in_the_next_run(
    files: list[tuple[Path, str]], tmp_path: Path
) -> None:
    requests: list[bytes] = []

    def failing(body: bytes) -> Any:
        if body == b'["b1"]':
            raise InternalError("generation_failed", "the step failed")
        if body == b'["b2"]':
            raise ZeroDivisionError
        return json.loads(body)

    def working(body: bytes) -> Any:
        requests.append(body)
        return json.loads(body)

    results = run_columns(BatchRunner(failing, 2, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    assert [row[3] for row in results if row[3]] == [
        "generation_failed: the step failed",
        "internal_error: the service failed on this row; its log says why",
    ]
    results = run_columns(BatchRunner(working, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    assert [row[2] for row in results] == TEXTS
    assert requests == [b'["b1"]', b'["b2"]']


def test_a_shutdown_ends_the_run_and_no_row_is_saved_as_an_error(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    def answer(body: bytes) -> Any:
        if body == b'["b1"]':
            raise Unavailable("draining", "the service is being shut down")
        return json.loads(body)

    runner, results = BatchRunner(answer, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), []
    with pytest.raises(Unavailable):
        results += [result.columns() for result in runner.run(files)]
    assert all(line["row"] != 1 or line["file"] != "b.jsonl" for line in saved_lines(tmp_path))


def test_a_changed_request_in_the_same_row_is_answered_again(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    def texts() -> list[str]:
        runner = BatchRunner(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept"))
        return [row[2] for row in run_columns(runner, files[0])]

    assert texts()[1] == "a1"
    files[0][0].write_text('["a0"]\n["other"]\n["a2"]\n')
    assert texts()[1] == "other"


def test_errors_are_not_saved_but_found_again_in_each_run(tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes(b"not an image")
    codes = []
    for prompt in (None, "What is this?"):
        for max_bytes in (1, 1_000):
            runner = BatchRunner(refuse, 1, RowDefaults(prompt, {}, max_bytes), SavedAnswers(tmp_path / "kept"))
            codes += [row[3].partition(":")[0] for row in run_columns(runner, (image, image.name))]
    assert codes == ["no_prompt", "no_prompt", "image_too_large", "invalid_image"]


def test_a_second_run_of_the_same_runner_uses_its_saved_answers(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    requests: list[bytes] = []

    def answer(body: bytes) -> Any:
        requests.append(body)
        return json.loads(body)

    runner = BatchRunner(answer, 1, DEFAULTS, SavedAnswers(tmp_path / "kept"))
    first, second = run_columns(runner, *files), run_columns(runner, *files)
    assert first == second
    assert len(requests) == 9


def test_saved_answers_start_a_new_file_from_time_to_time_and_all_files_are_read(
    files: list[tuple[Path, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_serving.batch.saved_answers.FILE_SECONDS", 0.0)
    run_columns(BatchRunner(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    assert len(list((tmp_path / "kept").iterdir())) == 9
    results = run_columns(BatchRunner(refuse, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    assert [row[2] for row in results] == TEXTS


def test_a_run_answers_every_row_if_answers_cannot_be_saved(
    files: list[tuple[Path, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    results = run_columns(BatchRunner(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "file" / "kept")), *files)
    assert [row[3] for row in results] == [None] * 9
    assert caplog.text.count("answers are not saved") == 1


def test_a_full_disk_is_logged_once(
    files: list[tuple[Path, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved_answers = SavedAnswers(tmp_path / "kept")
    assert len(run_columns(BatchRunner(json.loads, 1, DEFAULTS, saved_answers), files[0])) == 3
    saved_answers._file = open("/dev/full", "wb")  # noqa: SIM115
    results = run_columns(BatchRunner(json.loads, 1, DEFAULTS, saved_answers), *files[1:])
    assert [row[3] for row in results] == [None] * 6
    assert caplog.text.count("answers are not saved") == 1


def test_running_requests_are_stopped_if_results_cannot_be_written(files: list[tuple[Path, str]]) -> None:
    stopped = threading.Event()

    class FullDisk:
        def write(self, results: Iterator[Any]) -> Any:
            next(results)
            raise OSError("No space left on device")

    def answer(body: bytes) -> Any:
        is_first_or_stopped = body == b'["a0"]' or stopped.wait(60)
        assert is_first_or_stopped
        return json.loads(body)

    runner = BatchRunner(answer, 4, DEFAULTS, stop=stopped.set)
    with pytest.raises(OSError, match="No space left"):
        answer_files(runner, files, FullDisk())  # type: ignore[arg-type]
    assert stopped.is_set()


def test_no_file_stays_open_after_a_run(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    saved_answers = SavedAnswers(tmp_path / "kept")
    for answer in (json.loads, refuse):
        assert run_columns(BatchRunner(answer, 1, DEFAULTS, saved_answers), *files)[0][2] == "a0"
        open_files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        assert not [path for path in open_files if path.startswith(str(tmp_path))]


def test_rows_are_read_only_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    num_read, may_answer = [0], threading.Event()

    def thousand_rows(path: Path, name: str, defaults: RowDefaults) -> Iterator[InputRow]:
        for index in range(1000):
            num_read[0] += 1
            yield InputRow(name, index, b"[1]")

    def answer(body: bytes) -> Any:
        released = may_answer.wait(60)
        assert released
        return json.loads(body)

    monkeypatch.setattr("llava_serving.batch.runner.read_input_rows", thousand_rows)
    results = BatchRunner(answer, 2, DEFAULTS).run([(Path("a"), "a")])
    threading.Timer(0.5, may_answer.set).start()
    next(results)
    assert num_read[0] <= 9
    assert sum(1 for _ in results) == 999


def test_the_bytes_of_pending_requests_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_serving.batch.runner.MAX_PENDING_BYTES", 100)
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'["{"x" * length}"]\n' for length in (40, 40, 90, 300, 10)))
    num_pending, max_pending = [0], [0]
    lock = threading.Lock()

    def answer(body: bytes) -> Any:
        with lock:
            num_pending[0] += len(body)
            max_pending[0] = max(max_pending[0], num_pending[0])
        time.sleep(0.05)
        with lock:
            num_pending[0] -= len(body)
        return json.loads(body)

    results = run_columns(BatchRunner(answer, 8, DEFAULTS), (path, "a"))
    assert [len(row[2]) for row in results] == [40, 40, 90, 300, 10]
    assert max_pending[0] == 304, "a request above the limit runs alone"


def test_a_saved_line_that_a_kill_cut_off_is_skipped(files: list[tuple[Path, str]], tmp_path: Path) -> None:
    run_columns(BatchRunner(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    (path,) = (tmp_path / "kept").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    results = run_columns(BatchRunner(json.loads, 1, DEFAULTS, SavedAnswers(tmp_path / "kept")), *files)
    assert [row[2] for row in results] == TEXTS
