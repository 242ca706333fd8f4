"""Stops `llava-serving merge` and runs it again."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import Shape, write_parts
from merge_cases import Merge, assert_bits_equal, merge_command, merged_tensors
from reference import stock_names


@pytest.fixture(scope="session")
def large_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns parts with 130 MB in base and delta each."""
    return write_parts(
        tmp_path_factory.mktemp("large") / "parts", Shape(hidden=768, intermediate=2048, layers=8, heads=8)
    )


SLOW_MERGE = """
import sys, time
from llava_serving.tools import cli
from llava_serving.export import shard_writer
from llava_serving.weights.chunk_reader import RowChunk
shard_writer.plan_shards.__defaults__ = (20_000_000,)
rows = RowChunk.rows
def slowly(*arguments):
    time.sleep(0.03)
    return rows(*arguments)
RowChunk.rows = slowly
sys.exit(cli.main())
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_or_killed_merge_continues_after_its_last_complete_shard(
    large_parts: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    output, partial = tmp_path / "llava", tmp_path / "llava.partial"
    run = [sys.executable, "-c", SLOW_MERGE, *merge_command(large_parts, output)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(run, env=environment, stderr=subprocess.PIPE, text=True)
    while len(list(partial.glob("*.safetensors"))) < 2:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal_number)
    messages = first.communicate()[1]
    assert not output.exists()
    if signal_number != signal.SIGKILL:
        assert first.returncode == 130
        assert "run the same command again to continue" in messages
    complete_shards = {file.name: file.stat().st_mtime_ns for file in partial.glob("*.safetensors")}
    second = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "are merged already" in second.stderr
    assert not partial.exists()
    assert {name: (output / name).stat().st_mtime_ns for name in complete_shards} == complete_shards
    assert not list(output.glob("*.writing"))
    assert_bits_equal(merged_tensors(output), stock_names(large_parts))


def test_two_merges_cannot_write_one_folder_at_the_same_time(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    (tmp_path / "llava").rename(tmp_path / "llava.partial")
    with (tmp_path / "llava.partial" / "llava_merge.json").open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        assert "another merge is writing" in merge(parts_dir, tmp_path / "llava", status=1)
    merge(parts_dir, tmp_path / "llava")


def test_an_unfinished_merge_with_another_dtype_is_not_continued(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    merge(parts_dir, tmp_path / "llava")
    (tmp_path / "llava").rename(tmp_path / "llava.partial")
    assert "of other parts or settings" in merge(parts_dir, tmp_path / "llava", "--dtype", "bfloat16", status=1)
    merge(parts_dir, tmp_path / "llava")


def test_a_merge_killed_before_it_wrote_anything_starts_again(parts_dir: Path, tmp_path: Path, merge: Merge) -> None:
    (tmp_path / "llava.partial").mkdir()
    (tmp_path / "llava.partial" / "llava_merge.json").touch()
    merge(parts_dir, tmp_path / "llava")
    assert_bits_equal(merged_tensors(tmp_path / "llava"), stock_names(parts_dir))
    assert json.loads((tmp_path / "llava" / "llava_merge.json").read_text())["dtype"] == "float16"


MERGE_AND_PRINT_PEAK_MEMORY = """
import sys
from pathlib import Path
from llava_serving.tools import cli
status = cli.main()
assert status == 0
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_memory_of_a_merge_does_not_grow_with_the_model(parts_dir: Path, large_parts: Path, tmp_path: Path) -> None:
    def peak_mib(parts: Path) -> float:
        run = [sys.executable, "-c", MERGE_AND_PRINT_PEAK_MEMORY, *merge_command(parts, tmp_path / parts.parent.name)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
        return int(out.split()[-1]) / 1024

    # 400 MB are read and written. The merge holds sixteen chunks of up to a tensor, which has 3 MB.
    assert peak_mib(large_parts) - peak_mib(parts_dir) < 80
