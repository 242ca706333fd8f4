"""The command `llava-serving`, with a subcommand for each task. `llava-serving COMMAND --help` describes one."""

import argparse
import os
import signal
import sys

from . import batch, batch_collect, batch_split, bench, check, evaluate, merge, playground, score, serve

# Each module has `add_arguments(parser)` and `run(arguments)`, which returns the exit status.
COMMANDS = {
    "serve": (serve, "serve a model on this machine with azureml-inference-server-http"),
    "score": (score, "ask an endpoint on Azure or on this machine"),
    "playground": (playground, "open a web page to talk to an endpoint"),
    "batch": (batch, "answer files of requests on this machine, as the batch endpoint does"),
    "batch split": (batch_split, "split big files of rows into parts for several machines"),
    "batch collect": (batch_collect, "merge the results of several machines, and name the rows that are missing"),
    "bench": (bench, "measure this server or an OpenAI-compatible one"),
    "evaluate": (evaluate, "measure how good the answers of an endpoint or of a model folder are"),
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
    arguments = parser.parse_args(_join_command(sys.argv[1:]))
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _join_command(words: list[str]) -> list[str]:
    """Returns the words with a command of two words as one. `batch ./split` answers a file with such a name."""
    command = " ".join(words[:2])
    return [command, *words[2:]] if command in COMMANDS else words


if __name__ == "__main__":
    sys.exit(main())
