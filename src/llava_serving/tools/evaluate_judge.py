"""The options of every evaluation with a judge: who judges, and how it is asked."""

import argparse

from ..errors import StartupError
from ..evaluation.judge.client import JudgeClient, judge_token

JUDGE_CONCURRENCY = 8


def add_judge_arguments(parser: argparse.ArgumentParser, temperature: float | None, max_tokens: int | None) -> None:
    """Adds the options of the judge. `temperature` and `max_tokens` are the defaults; None is not sent."""
    judge = parser.add_argument_group("judge")
    judge.add_argument("--judge-url", help="the base of an OpenAI-compatible API, such as https://api.openai.com/v1")
    judge.add_argument("--judge-model", help="the judge's name in that API; none is built in")
    judge.add_argument(
        "--judge-key-env", metavar="NAME", help="the environment variable with the judge's key; default: no key"
    )
    judge.add_argument("--judge-entra", action="store_true", help="use a Microsoft Entra token for Azure OpenAI")
    judge.add_argument("--judge-temperature", type=float, default=temperature, help=f"default: {_shown(temperature)}")
    judge.add_argument(
        "--judge-max-tokens", type=int, default=max_tokens, metavar="N",
        help=f"of one reply, default: {_shown(max_tokens)}",
    )  # fmt: skip
    judge.add_argument(
        "--judge-timeout", type=float, default=180.0, metavar="SECONDS",
        help="longest time in which the judge sends nothing, default: 180",
    )  # fmt: skip


def open_judge(arguments: argparse.Namespace) -> JudgeClient:
    """Returns the judge at --judge-url. Raises StartupError for wrong options."""
    if arguments.judge_model is None:
        raise StartupError("--judge-model names the judge: scores of different judges are not comparable")
    given = {"temperature": arguments.judge_temperature, "max_tokens": arguments.judge_max_tokens}
    parameters = {name: value for name, value in given.items() if value is not None}
    token = judge_token(arguments.judge_key_env, arguments.judge_entra)
    return JudgeClient(arguments.judge_url, arguments.judge_model, token, parameters, arguments.judge_timeout)


def _shown(default: float | None) -> str:
    return "the judge's own" if default is None else f"{default}, as the authors had it"
