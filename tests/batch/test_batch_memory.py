"""The memory of a batch run does not grow with its rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FEW, MANY = 5_000, 60_000
ANSWER_BYTES = 1_000
# Runs one job in a process of its own: prints its peak of memory, and how many rows it did not find saved.
JOB = """
import json, re, sys
from pathlib import Path
from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.result_files import ResultFiles
from llava_serving.batch.runner import BatchRunner
from llava_serving.batch.saved_answers import SavedAnswers

folder, answer_bytes, num_computed = Path(sys.argv[1]), int(sys.argv[2]), 0

def answer(body):
    global num_computed
    num_computed += 1
    return [json.loads(body)[0] + "x" * answer_bytes]

runner = BatchRunner(answer, 2, RowDefaults(None, {}, 1_000_000), SavedAnswers(folder / "kept"))
num_rows, num_errors = ResultFiles(folder).write(runner.run([(folder / "in.jsonl", "in.jsonl")]))
assert num_errors == 0
# The peak of getrusage begins with that of the process that started this one.
(peak_kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"rows": num_rows, "computed": num_computed, "peak_bytes": int(peak_kib) * 1024}))
"""


def run_job(folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(folder), str(ANSWER_BYTES)], capture_output=True, text=True, check=True
    )
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_of_a_job_that_starts_or_continues(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (FEW, MANY):
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        (folder / "in.jsonl").write_text("".join(f'["row {row} "]\n' for row in range(num_rows)))
        first, second = run_job(folder), run_job(folder)
        assert (first["rows"], first["computed"]) == (num_rows, num_rows)
        assert (second["rows"], second["computed"]) == (num_rows, 0)
        answers = [json.loads(line)["answer"][0] for line in (folder / "answers.jsonl").open(encoding="utf-8")]
        assert [answer.rstrip("x") for answer in answers] == [f"row {row} " for row in range(num_rows)]
        peaks.append((first["peak_bytes"], second["peak_bytes"]))
    (few_first, few_second), (many_first, many_second) = peaks
    added = (MANY - FEW) * ANSWER_BYTES
    assert many_first - few_first < added / 5
    assert many_second - few_second < added / 5
