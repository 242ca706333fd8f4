"""The command `llava-serving`.

`serve` runs Azure's own inference server on score.py, on this machine; `score` asks an endpoint; `batch` answers files
of requests; `bench` measures a server; `merge` makes one folder of a LLaMA, a LLaVA delta and a CLIP; `check` says what
a folder is and whether it can talk.
"""

import argparse
import os
import signal
import sys

from . import batch, bench, check, merge, score, serve

# Each module has `add_arguments(parser)` and `run(arguments)`, which returns the exit status.
COMMANDS = {
    "serve": (serve, "serve a model on this machine through azureml-inference-server-http"),
    "bench": (bench, "measure a server, this one or one that speaks OpenAI's chat completions"),
    "score": (score, "ask an endpoint, one of Azure's or this machine's"),
    "batch": (batch, "answer files of requests, as the batch endpoint does"),
    "merge": (merge, "make one model folder of the base, the delta and the vision tower"),
    "check": (check, "say what a model folder is, whether it is whole, and whether it can talk"),
}


def main() -> int:
    """Runs the command that is typed, and returns its exit status."""
    parser = argparse.ArgumentParser(prog="llava-serving", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for one, has closed its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


if __name__ == "__main__":
    sys.exit(main())
