"""Runs `llava-serving batch`, and Azure's entry script batch/score.py, on the demo model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batch_cases import IMAGES, MEANING, ROOT, SHAPES, encoded_image, read_csv, saved_lines, wait_for

SAMPLES = ROOT / "batch" / "samples"
COMMAND = [str(Path(sys.executable).parent / "llava-serving"), "batch"]


def run(command: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def test_answers_the_samples(tmp_path: Path) -> None:
    done = run([*COMMAND, SAMPLES, "--output", tmp_path / "out"])
    assert done.returncode == 0, done.stderr
    assert read_csv(tmp_path / "out" / "predictions.csv") == [
        ["pictures/shapes.png", "0", SHAPES, ""],  # questions.csv names the two other pictures
        ["questions.csv", "0", "the digit 3", ""],
        ["questions.csv", "1", "circle", ""],
        ["questions.csv", "2", MEANING, ""],
        ["requests.jsonl", "0", MEANING, ""],
        ["requests.jsonl", "1", SHAPES, ""],
        ["requests.jsonl", "2", "three", ""],
        ["requests.jsonl", "3", "red", ""],
    ]
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert answers[4]["answer"] == [{"0": MEANING}]
    assert answers[7]["answer"]["usage"]["completion_tokens"] > 0


def test_another_model_does_not_use_the_answers_saved_by_the_first(parts_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("input_string\nthe meaning of life is\n")
    command = [*COMMAND, tmp_path / "in.csv", "--output", tmp_path / "out"]
    other = tmp_path / "other"
    shutil.copytree(parts_dir, other)
    (other / "delta" / "config.json").write_text(
        json.dumps(json.loads((parts_dir / "delta" / "config.json").read_text()))
    )
    predictions = []
    for options in ([], ["--model-dir", parts_dir], ["--model-dir", other]):
        done = run([*command, *options], LLAVA_SELF_CHECK="false")
        assert done.returncode == 0, done.stderr
        predictions += [row[2] for row in read_csv(tmp_path / "out" / "predictions.csv")]
    assert predictions[0] == MEANING
    assert predictions[1] not in ("", MEANING)
    assert len(list((tmp_path / "out" / "kept").iterdir())) == 3, "a model whose config changed is another model"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_at_once_and_it_says_how_to_continue(tmp_path: Path, number: signal.Signals) -> None:
    long_request = {"input_data": ["the"], "params": {"max_new_tokens": 400, "ignore_eos": True}}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(long_request)}\n" * 200)
    output = tmp_path / "out"
    process = subprocess.Popen(
        list(map(str, [*COMMAND, tmp_path / "in.jsonl", "--output", output])), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(saved_lines(output)) >= 1)
    process.send_signal(number)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130
    assert messages.endswith("llava-serving: stopped; run the same command again to continue\n")
    assert "Traceback" not in messages
    assert len(saved_lines(output)) < 80, "80 requests are admitted at a time"


def test_two_runs_cannot_write_one_output_at_the_same_time(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "in.jsonl").write_text('{"input_data": ["a\\rb"], "params": {"max_new_tokens": 3}}\n' * 2)
    command = list(map(str, [*COMMAND, tmp_path / "in.jsonl", "--output", output]))
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(lambda: (output / "predictions.csv").exists())
    second = run(command)
    assert second.returncode == 2
    assert f"another run writes into {output}" in second.stderr
    assert first.wait(120) == 0
    rows = read_csv(output / "predictions.csv")
    assert [row[:2] for row in rows] == [["in.jsonl", "0"], ["in.jsonl", "1"]]
    assert rows[0][2].startswith("a\nb"), "an unquoted carriage return would end the row"
    assert json.loads((output / "answers.jsonl").read_text().splitlines()[0])["answer"][0].startswith("a\rb")


def test_wrong_inputs_outputs_and_settings_end_with_status_2_and_a_message(tmp_path: Path) -> None:
    missing = run([*COMMAND, tmp_path / "nothing", "--output", tmp_path / "out"])
    assert missing.returncode == 2
    assert f"{tmp_path / 'nothing'} does not exist" in missing.stderr
    not_a_folder = run([*COMMAND, SAMPLES, "--output", Path(__file__)])
    assert not_a_folder.returncode == 2
    assert "File exists" in not_a_folder.stderr
    (tmp_path / "full" / "answers.jsonl").mkdir(parents=True)
    not_a_file = run([*COMMAND, SAMPLES, "--output", tmp_path / "full"])
    assert not_a_file.returncode == 2
    assert "Is a directory" in not_a_file.stderr
    assert "Traceback" not in not_a_file.stderr
    wrong_setting = run([*COMMAND, SAMPLES, "--output", tmp_path / "out", "--parameters", "64"])
    assert wrong_setting.returncode == 2
    assert "LLAVA_BATCH_PARAMETERS" in wrong_setting.stderr
    assert "to continue" not in wrong_setting.stderr


@pytest.fixture(scope="module")
def thousand_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Returns a folder of 1,000 requests of every kind, 53 of them wrong, and the expected results.

    The expected error of a wrong request is only its code.
    """
    folder = tmp_path_factory.mktemp("thousand") / "input"
    for name in ("images", "lines", "tables", "wrong"):
        (folder / name).mkdir(parents=True)
    expected = write_images(folder) | write_json_lines(folder) | write_tables(folder) | write_wrong_files(folder)
    return folder, [row for name in sorted(expected, key=lambda name: str(folder / name)) for row in expected[name]]


def write_images(folder: Path) -> dict[str, list[list[str]]]:
    (folder / "images" / "prompt.txt").write_text("What is in the image?\n")
    images = [("shapes.png", SHAPES), ("digit.png", "the digit 3"), ("easyvqa.png", "a green circle")]
    expected = {}
    for number in range(92):
        source, answer = images[number % 3]
        name = f"images/{number:03}.png"
        (folder / name).write_bytes((IMAGES / source).read_bytes())
        expected[name] = [[name, "0", answer, ""]]
    return expected


def write_json_lines(folder: Path) -> dict[str, list[list[str]]]:
    expected = {}
    for number in range(12):
        name = f"lines/{number:02}.jsonl"
        rows = [json_line(row, number) for row in range(60)]
        (folder / name).write_text("".join(line + "\n" for line, _, _ in rows))
        expected[name] = [[name, str(row), answer, code] for row, (_, answer, code) in enumerate(rows)]
    return expected


def write_tables(folder: Path) -> dict[str, list[list[str]]]:
    expected = {}
    for number in range(3):
        name = f"tables/{number}.csv"
        rows = [csv_record(row) for row in range(60)]
        (folder / name).write_bytes(b"input_string,image\n" + b"".join(record + b"\n" for record, _, _ in rows))
        expected[name] = [[name, str(row), answer, code] for row, (_, answer, code) in enumerate(rows)]
    return expected


def write_wrong_files(folder: Path) -> dict[str, list[list[str]]]:
    expected = {}
    for name, content, code in (
        ("wrong/a.csv", b"\0\1\2garbage", "invalid_table"),
        ("wrong/b.jsonl", b"\x89PNG\r\n\x1a\n", "invalid_json"),
        ("wrong/c.xlsx", b"PK\3\4", "unsupported_input"),
        ("wrong/d.csv", b"question\nwhat?\n", "invalid_table"),
        ("wrong/e.csv", b"", "invalid_table"),
        ("wrong/f.png", b"not a picture", "no_prompt"),
        ("wrong/g.parquet", b"PAR1", "unsupported_input"),
    ):
        (folder / name).write_bytes(content)
        index = "" if code in ("invalid_table", "unsupported_input") else "0"
        expected[name] = [[name, index, "", code]]
    # The first bytes of a PNG are two lines.
    expected["wrong/b.jsonl"] = [["wrong/b.jsonl", str(i), "", "invalid_json"] for i in range(2)]
    return expected


def json_line(row: int, number: int) -> tuple[str, str, str]:
    """Returns a line of JSON, its expected prediction and its expected error code."""
    if row % 20 == 7:  # 5%
        wrong_lines = [
            ("{not JSON", "invalid_json"),
            ('{"input_data": {"input_string": []}}', "invalid_request"),
            (json.dumps({"input_data": {"input_string": ["?"], "images": ["AAAA"]}}), "invalid_image"),
            (json.dumps({"input_data": {"input_string": ["a " * 3000]}}), "context_length_exceeded"),
            ('{"input_data": ["?"], "params": {"temprature": 1}}', "unknown_parameter"),
        ]
        line, code = wrong_lines[number % len(wrong_lines)]
        return line, "", code
    requests: list[tuple[Any, str]] = [
        ({"input_data": {"input_string": ["the meaning of life is"]}}, MEANING),
        ({"input_data": {"input_string": ["What is in the image?"], "images": [encoded_image("shapes.png")]}}, SHAPES),
        (
            {
                "input_data": {
                    "columns": ["image", "text"],
                    "data": [[encoded_image("digit.png"), "What is in the image?"]],
                }
            },
            "the digit 3",
        ),
        ({"input_data": ["the meaning of life is"], "params": {"return_full_text": True}}, MEANING),
        (
            {
                "input_data": {
                    "input_string": ["What is in the image?"] * 2,
                    "images": [encoded_image("shapes.png")] * 2,
                }
            },
            json.dumps([{"0": SHAPES}, {"0": SHAPES}]),
        ),
    ]
    body, answer = requests[row % len(requests)]
    return json.dumps(body), answer, ""


def csv_record(row: int) -> tuple[bytes, str, str]:
    """Returns a line of CSV, its expected prediction and its expected error code."""
    if row % 20 == 3:
        wrong_records = [
            (b"What is this?,../images/nothing.png", "invalid_image"),
            (b"one,two,three", "invalid_table"),
            (b"caf\xe9,", "invalid_table"),
        ]
        record, code = wrong_records[row // 20]
        return record, "", code
    if row % 2:
        return b"the meaning of life is,", MEANING, ""
    return b"What is in the image?," + encoded_image("easyvqa.png").encode(), "a green circle", ""


def with_error_codes(rows: list[list[str]]) -> list[list[str]]:
    """Returns the rows with only the code of each error."""
    return [[file, row, prediction, error.partition(":")[0]] for file, row, prediction, error in rows]


def batch_driver(folder: Path, output: Path) -> list[Any]:
    """Returns the command that runs the entry script over the folder as Azure does, with results in `output`."""
    command = [sys.executable, ROOT / "standin" / "batch_driver.py", ROOT / "batch" / "score.py", folder]
    return [*command, output / "predictions.csv", "--output-action", "summary_only"]


def mini_batch_results(output: Path) -> list[list[str]]:
    return [row for path in (output / "predictions").iterdir() for row in read_csv(path)]


def test_the_entry_script_answers_a_thousand_requests_53_of_them_wrong(
    thousand_rows: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder, expected = thousand_rows
    assert len(expected) == 1000
    assert sum(1 for row in expected if row[3]) == 53
    done = run([*batch_driver(folder, tmp_path), "--mini-batch-size", 200])
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "predictions").iterdir()
    assert with_error_codes(read_csv(results)) == expected
    assert "items for" not in done.stdout, "a mini-batch has an item for each file"
    assert "115 of 115 files read" in done.stderr


def test_a_killed_run_continues_and_answers_no_row_twice(
    thousand_rows: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder, expected = thousand_rows
    output = tmp_path / "out"
    command = list(map(str, [*COMMAND, folder, "--output", output]))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: len(saved_lines(output)) >= 100)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = saved_lines(output)
    assert 100 <= len(before) < 947
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert with_error_codes(read_csv(output / "predictions.csv")) == expected
    rows = [(line["file"], line["row"]) for line in saved_lines(output)]
    assert len(set(rows)) == len(rows) == 947


@pytest.mark.slow
def test_several_workers_one_killed_answer_each_row_of_a_split_input_once(
    thousand_rows: tuple[Path, list[list[str]]], tmp_path: Path
) -> None:
    folder, expected = thousand_rows
    output = tmp_path / "out"
    output.mkdir()
    command = [*batch_driver(folder, output), "--workers", 2, "--mini-batch-size", 5]
    with (tmp_path / "log").open("w+b") as log:
        driver = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: len(saved_lines(output)) >= 100)
        worker = re.findall(r"started worker (\d+)", (tmp_path / "log").read_text())[0]
        os.kill(int(worker), signal.SIGKILL)
        assert driver.wait(120) == 0, (tmp_path / "log").read_text()
    assert f"worker {worker} died" in (tmp_path / "log").read_text()
    assert len(list((output / "predictions").iterdir())) == 23, "115 files, five in each mini-batch"
    rows = sorted(with_error_codes(mini_batch_results(output)))
    assert rows == sorted(expected), "each row once"
    collected = run([COMMAND[0], "batch", "collect", output, "--input", folder, "--output", tmp_path / "all.csv"])
    assert collected.returncode == 0, collected.stderr
    assert sorted(with_error_codes(read_csv(tmp_path / "all.csv"))) == rows
