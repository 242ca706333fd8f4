"""The options that every evaluation has: who is asked, and where the output goes."""

import argparse
from pathlib import Path

from ..errors import StartupError
from ..evaluation.answers.answer_source import AnswerSource, endpoint_source, local_source

URL_CONCURRENCY = 32


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the source and of sampling."""
    parser.add_argument("--url", help="the scoring URI of an endpoint, which ends in /score")
    parser.add_argument("--entra", action="store_true", help="authenticate with a Microsoft Entra token")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="load this model folder instead of asking a URL")
    parser.add_argument(
        "--model-name", metavar="NAME",
        help="names the model in the output. Answers are kept by this name: give a new one when a URL has a new model",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="gets answers.jsonl and summary.json")
    parser.add_argument(
        "--concurrency", type=int, metavar="N",
        help=f"requests at a time; default: {URL_CONCURRENCY}, or as many as the engine takes with --model-dir",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, which is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of random choices, default: 0")


def open_source(arguments: argparse.Namespace) -> AnswerSource:
    """Returns the source that the options name, and makes the output folder. Raises StartupError and OSError."""
    if arguments.output is None:
        raise StartupError("--output names the folder that gets the answers and the figures")
    if (arguments.url is None) == (arguments.model_dir is None):
        raise StartupError("give either --url, which asks an endpoint, or --model-dir, which loads a model")
    if arguments.concurrency is not None and arguments.concurrency < 1:
        raise StartupError(f"--concurrency must be 1 or more, not {arguments.concurrency}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = arguments.model_name
    if arguments.url is not None:
        return endpoint_source(arguments.url, arguments.entra, arguments.concurrency or URL_CONCURRENCY, name)
    return local_source(arguments.model_dir, arguments.concurrency, name)


def sampling_parameters(arguments: argparse.Namespace) -> dict[str, float | int]:
    """Returns the parameters of requests. A greedy request has no seed, which would change nothing but the key."""
    if arguments.temperature == 0:
        return {"temperature": 0.0}
    return {"temperature": arguments.temperature, "seed": arguments.seed}
