"""Worker processes that claim GPUs."""

import os
import subprocess
import sys
from pathlib import Path

CLAIM = """
import sys
from pathlib import Path
from llava_serving.weights.device import claim_gpu
print(claim_gpu(2, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start_worker(lock_dir: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CLAIM, str(lock_dir)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def claimed_gpu(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def test_each_worker_claims_its_own_gpu_and_the_end_of_a_worker_frees_it(tmp_path: Path) -> None:
    first, second = start_worker(tmp_path), start_worker(tmp_path)
    claimed = {claimed_gpu(first), claimed_gpu(second)}
    assert claimed == {"0", "1"}
    third = start_worker(tmp_path)
    error_text = third.communicate()[1]
    assert "WORKER_COUNT may be at most 2" in error_text
    second.kill()
    second.communicate()
    fourth = start_worker(tmp_path)
    claim_after_kill = claimed_gpu(fourth)
    assert claim_after_kill in ("0", "1")
    for worker in (first, fourth):
        worker.communicate()
