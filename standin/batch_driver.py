"""Runs a batch deployment's entry script as Azure does.

Each worker process calls init() once, and run() for each mini-batch of files that it gets. A mini-batch fails if run()
raises, if it returns fewer items than the mini-batch has files, or if its worker dies. It is then run again.
`append_row` appends what run() returns, a table, to one CSV without a header.
"""

import argparse
import importlib.util
import multiprocessing
import os
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("source", type=Path, help="an input file, or a folder of input files")
    parser.add_argument("output", type=Path, help="the CSV file of the results, in the job's output folder")
    parser.add_argument("--output-action", choices=("append_row", "summary_only"), default="append_row")
    parser.add_argument("--mini-batch-size", type=int, default=10, help="number of files in a mini-batch")
    parser.add_argument("--workers", type=int, default=1, help="number of processes, on all machines together")
    parser.add_argument("--max-retries", type=int, default=3, help="retries of each mini-batch")
    parser.add_argument("--error-threshold", type=int, default=-1, help="files that may fail; -1 is any number")
    arguments = parser.parse_args()
    os.environ.setdefault("AZUREML_BI_OUTPUT_PATH", str(arguments.output.absolute().parent))
    os.environ.setdefault("AZURE_ML_INPUT_job_input", str(arguments.source.absolute()))
    files = sorted(map(str, _files(arguments.source)))
    size = arguments.mini_batch_size
    driver = Driver([files[start : start + size] for start in range(0, len(files), size)], arguments)
    driver.run()
    if files and driver.num_failed_files == len(files):
        raise SystemExit("No succeeded mini batch item returned")


class Driver:
    """Gives mini-batches to the workers, and collects what they return. One thread waits for each worker."""

    def __init__(self, mini_batches: list[list[str]], arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._waiting = deque((mini_batch, 0) for mini_batch in mini_batches)  # each with the number of its failures
        self._num_left = len(mini_batches)
        self._lock = threading.Lock()
        self.num_failed_files = 0

    def run(self) -> None:
        """Returns when every mini-batch is done or has failed. Raises SystemExit if too many files fail."""
        threads = [threading.Thread(target=self._run_worker, daemon=True) for _ in range(self._arguments.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        threshold = self._arguments.error_threshold
        if 0 <= threshold < self.num_failed_files:
            raise SystemExit(f"{self.num_failed_files} files failed, and error_threshold is {threshold}")
        if self._num_left:
            raise SystemExit("no worker is left")

    def _run_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        connection, worker_end = context.Pipe()
        worker = context.Process(target=_work, args=(self._arguments.script, worker_end), daemon=True)
        worker.start()
        worker_end.close()
        print(f"started worker {worker.pid}", flush=True)
        while (task := self._next()) is not None:
            mini_batch, num_failures = task
            try:
                connection.send(mini_batch)
                returned = connection.recv()
            except (EOFError, OSError):
                print(f"worker {worker.pid} died", flush=True)
                self._end(mini_batch, num_failures, None)
                return
            self._end(mini_batch, num_failures, returned)
        worker.kill()
        worker.join()

    def _next(self) -> tuple[list[str], int] | None:
        """Waits for a mini-batch: one that another worker has may fail. Returns None if all are done."""
        while True:
            with self._lock:
                threshold = self._arguments.error_threshold
                if not self._num_left or 0 <= threshold < self.num_failed_files:
                    return None
                if self._waiting:
                    return self._waiting.popleft()
            time.sleep(0.02)

    def _end(self, mini_batch: list[str], num_failures: int, returned: Any) -> None:
        if returned is not None and len(returned) < len(mini_batch):
            print(f"run() returned {len(returned)} items for {len(mini_batch)} files", flush=True)
            returned = None
        with self._lock:
            if returned is None and num_failures < self._arguments.max_retries:
                self._waiting.appendleft((mini_batch, num_failures + 1))
                return
            self._num_left -= 1
            if returned is None:
                self.num_failed_files += len(mini_batch)
            elif self._arguments.output_action == "append_row":
                returned.to_csv(self._arguments.output, mode="a", header=False, index=False)


def _work(script: Path, connection: Connection) -> None:
    """Runs the mini-batches that arrive. Sends what run() returns, or None if it raises."""
    entry = _load_module(script)
    entry.init()
    while True:
        try:
            mini_batch = connection.recv()
        except EOFError:
            return
        try:
            returned = entry.run(mini_batch)
        except Exception:
            traceback.print_exc()
            returned = None
        connection.send(returned)


def _load_module(script: Path) -> Any:
    spec = importlib.util.spec_from_file_location("entry", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
