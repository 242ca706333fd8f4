"""The command `llava-serving`, with a subcommand for each task. `llava-serving COMMAND --help` describes one."""

import argparse
import os
import signal
import sys

from . import batch, bench, check, evaluate, merge, playground, score, serve

# Each module has `add_arguments(parser)` and `run(arguments)`, which returns the exit status.
COMMANDS = {
    "serve": (serve, "serve a model on this machine with azureml-inference-server-http"),
    "score": (score, "ask an endpoint on Azure or on this machine"),
    "playground": (playground, "open a web page to talk to an endpoint"),
    "batch": (batch, "answer files of requests on this machine, as the batch endpoint does"),
    "bench": (bench, "measure this server or an OpenAI-compatible one"),
    "evaluate": (evaluate, "measure how good a model's answers are"),
    "merge": (merge, "merge base LLaMA, LLaVA delta and CLIP into one model folder"),
    "check": (check, "say what a model folder is, whether it is complete and whether the model can talk"),
}


def main() -> int:
    """Runs the command line and returns its exit status."""
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
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


if __name__ == "__main__":
    sys.exit(main())
