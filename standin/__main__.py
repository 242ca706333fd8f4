"""python -m standin: runs until SIGTERM, Ctrl-C or the end of its standard input."""

import argparse
import json
import signal
import sys
import tempfile
import threading
from pathlib import Path

from .app import StandIn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free port")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llava-standin-") as folder:
        try:
            stand_in = StandIn(Path(folder), arguments.port)
        except OSError as error:
            raise SystemExit(f"standin: port {arguments.port}: {error.strerror}") from None
        threading.Thread(target=stand_in.server.serve_forever, daemon=True).start()
        print(json.dumps({"url": stand_in.server.url, "certificate": str(stand_in.certificate)}), flush=True)
        stopped = threading.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: stopped.set())
        # When the parent process dies, the pipe closes: no service outlives its test or its notebook.
        threading.Thread(target=_set_when_closed, args=(stopped,), daemon=True).start()
        stopped.wait()
        stand_in.server.shutdown()
        stand_in.stop()


def _set_when_closed(stopped: threading.Event) -> None:
    sys.stdin.read()
    stopped.set()


if __name__ == "__main__":
    main()
