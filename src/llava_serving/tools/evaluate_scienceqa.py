"""`llava-serving evaluate scienceqa`: ScienceQA's accuracy, in the columns of LLaVA's paper.

  llava-serving evaluate scienceqa --problems problems.json --splits pid_splits.json --pictures images/test \\
      --url http://127.0.0.1:5001/score --output DIR
  llava-serving evaluate scienceqa --answers test_sqa_llava_13b_v0.json

The prompts are those of LLaVA's authors, as raw text. The letter is read by their rule, which guesses, and by a strict
one, which does not. With --judge-url a text model answers too, and decides where the two differ. Its key is in the
environment variable that --judge-key-env names.
"""

import argparse
import json
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..evaluation.answers.answer_file import AnswerFile
from ..evaluation.answers.answer_source import AnswerSource
from ..evaluation.answers.asking import Answers, Question, ask_all
from ..evaluation.judge.answers import ask_judge
from ..evaluation.judge.client import JudgeClient, Messages
from ..evaluation.mlflow_metrics import log_metrics
from ..evaluation.picture_files import check_pictures
from ..evaluation.scienceqa.ensemble import disagreements
from ..evaluation.scienceqa.judge_prompts import answer_messages, decision_messages
from ..evaluation.scienceqa.problems import Problem, read_problems
from ..evaluation.scienceqa.prompts import FORMATS, SEPARATOR, PromptFormat, joined_answer
from ..evaluation.scienceqa.result_file import read_answers, stored_figures
from ..evaluation.scienceqa.summary import Texts, stored_lines, summarize, summarize_stored, summary_lines
from .evaluate_judge import JUDGE_CONCURRENCY, add_judge_arguments, open_judge
from .evaluate_options import add_source_arguments, open_source, sampling_parameters
from .evaluate_output import check_answered, write_summary, write_whole
from .resumable import run_resumable

LETTER_TOKENS = 64  # of the second pass (LLaVA@15f31eb llava/eval/model_vqa_science.py)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=Path, metavar="FILE", help="ScienceQA's problems.json")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="ScienceQA's pid_splits.json")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="the split's pictures: DIR/ID/image.png")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}, in two passes")
    parser.add_argument(
        "--max-new-tokens", type=int, default=1024, metavar="N", help="of an answer's first pass, default: 1024"
    )
    parser.add_argument(
        "--answers", type=Path, metavar="FILE",
        help="take the answers from a file and ask nobody: the authors' result file, or JSON lines",
    )  # fmt: skip
    add_judge_arguments(parser, temperature=None, max_tokens=None)
    parser.add_argument("--judge-answers", type=Path, metavar="FILE", help="the judge's own answers, from a file")
    parser.add_argument("--judge-decisions", type=Path, metavar="FILE", help="the judge's decisions, from a file")
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 with figures, 1 without, 130 if the run was stopped."""
    return run_resumable(partial(_evaluate, arguments))


def _evaluate(arguments: argparse.Namespace) -> str:
    """Returns the figures for people. Raises StartupError, EndpointError, RequestError, OSError, KeyboardInterrupt."""
    if arguments.problems is None and arguments.answers is not None:
        return _report_stored(arguments)
    if arguments.problems is None or arguments.splits is None:
        raise StartupError("--problems and --splits name ScienceQA's problems.json and pid_splits.json")
    client = None if arguments.judge_url is None else _open_judge(arguments)
    problems = read_problems(arguments.problems, arguments.splits, arguments.split)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    settings: dict[str, Any] = {"split": arguments.split}
    if arguments.answers is not None:
        stored = read_answers(arguments.answers)
        model, options = stored.outputs, stored.results
        settings["model"] = str(arguments.answers)
    else:
        model, options = _ask_model(arguments, problems, settings, lines), {}
    if client is not None:
        settings["judge"] = {"model": client.model, "url": client.url, "parameters": dict(client.parameters)}
    judge, decisions = _judge(arguments, problems, model, client, lines)
    summary = {
        "evaluation": "scienceqa", **settings,
        **summarize(problems, Texts(model, judge, decisions, options), arguments.seed),
    }  # fmt: skip
    _save(arguments, summary)
    return "\n".join([*lines, *summary_lines(summary)])


def _report_stored(arguments: argparse.Namespace) -> str:
    """Returns what the authors' result file says about itself."""
    result = read_answers(arguments.answers)
    if not result.results:
        raise StartupError(
            f"{arguments.answers} has texts only: --problems and --splits name the files that say which are right"
        )
    summary = summarize_stored(stored_figures(result))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    _save(arguments, {"evaluation": "scienceqa", "model": str(arguments.answers), **summary})
    return "\n".join(stored_lines(summary))


def _save(arguments: argparse.Namespace, summary: Mapping[str, Any]) -> None:
    if arguments.output is not None:
        write_summary(arguments.output, summary)
    columns = {f"accuracy.{name}": value for name, value in summary.get("accuracy", {}).items()}
    log_metrics({**columns, "accuracy_as_published": summary["accuracy_as_published"]})


def _ask_model(
    arguments: argparse.Namespace, problems: Mapping[str, Problem], settings: dict[str, Any], lines: list[str]
) -> dict[str, str]:
    """Returns the texts of the model's answers. The prompts are raw, so that they are the authors' whatever it is."""
    pictures = _pictures(arguments.pictures, problems)
    prompt_format = PromptFormat(arguments.format)
    parameters = {
        "template": "none", "return_full_text": False, "stop": [SEPARATOR], **sampling_parameters(arguments),
        "max_new_tokens": arguments.max_new_tokens,
    }  # fmt: skip
    source = open_source(arguments)
    settings |= {"model": source.model, "format": prompt_format.name, "parameters": parameters}
    first = [
        Question(problem_id, prompt_format.prompt(problem), pictures.get(problem_id), parameters)
        for problem_id, problem in problems.items()
    ]
    if not prompt_format.has_second_pass:
        return _texts(arguments.output / "answers.jsonl", "answers", first, source, lines)
    reasoning = _texts(arguments.output / "reasoning.jsonl", "reasoning", first, source, lines)
    second = [
        Question(
            problem_id, prompt_format.second_prompt(problems[problem_id], text), pictures.get(problem_id),
            {**parameters, "max_new_tokens": LETTER_TOKENS},
        )
        for problem_id, text in reasoning.items()
    ]  # fmt: skip
    letters = _texts(arguments.output / "letters.jsonl", "letters", second, source, lines)
    joined = {problem_id: joined_answer(reasoning[problem_id], text) for problem_id, text in letters.items()}
    prompts = {question.question_id: question.prompt for question in first}
    write_whole(arguments.output / "answers.jsonl", _lines_of(joined, prompts, source.model))
    return joined


def _lines_of(texts: Mapping[str, str], prompts: Mapping[str, str], model: str) -> str:
    """Returns the answers of both passes together, in the format of LLaVA's answer files."""
    rows = (
        {
            "question_id": problem_id, "prompt": prompts[problem_id], "text": text, "answer_id": uuid.uuid4().hex,
            "model_id": model, "metadata": {},
        }
        for problem_id, text in texts.items()
    )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def _pictures(folder: Path | None, problems: Mapping[str, Problem]) -> dict[str, Path]:
    """Returns the pictures of the problems that have one. Raises StartupError if any is missing."""
    names = {problem_id: problem.image for problem_id, problem in problems.items() if problem.image}
    if not names:
        return {}
    if folder is None:
        raise StartupError("--pictures names the folder of the split's pictures, such as images/test")
    pictures = {problem_id: folder / problem_id / name for problem_id, name in names.items()}
    check_pictures(pictures.values(), folder)
    return pictures


def _open_judge(arguments: argparse.Namespace) -> JudgeClient:
    if arguments.output is None:
        raise StartupError("--output names the folder that gets the judge's answers")
    return open_judge(arguments)


def _judge(
    arguments: argparse.Namespace, problems: Mapping[str, Problem], model: Mapping[str, str],
    client: JudgeClient | None, lines: list[str],
) -> tuple[Mapping[str, str], Mapping[str, str]]:  # fmt: skip
    """Returns the judge's own answers and its decisions, from files or from the judge."""
    questions = {problem_id: answer_messages(problem) for problem_id, problem in problems.items()}
    own = _judge_texts(arguments, arguments.judge_answers, client, "judge_answers", questions, lines)
    differ = {
        problem_id: decision_messages(problems[problem_id], own[problem_id], model[problem_id])
        for problem_id in disagreements(problems, model, own)
    }
    return own, _judge_texts(arguments, arguments.judge_decisions, client, "reviews", differ, lines)


def _judge_texts(
    arguments: argparse.Namespace, given: Path | None, client: JudgeClient | None, name: str,
    questions: Mapping[str, Messages], lines: list[str],
) -> Mapping[str, str]:  # fmt: skip
    if given is not None:
        return read_answers(given).outputs
    if client is None or not questions:
        return {}
    concurrency = arguments.concurrency or JUDGE_CONCURRENCY
    with AnswerFile(arguments.output / f"{name}.jsonl") as file:
        answers = ask_judge(name.replace("_", " "), questions, client, file, concurrency)
    return _stripped(answers, lines)


def _texts(
    path: Path, description: str, questions: Sequence[Question], source: AnswerSource, lines: list[str]
) -> dict[str, str]:
    with AnswerFile(path) as file:
        return _stripped(ask_all(description, questions, source, file), lines)


def _stripped(answers: Answers, lines: list[str]) -> dict[str, str]:
    """Returns the stripped texts of the answers, by problem id."""
    lines += check_answered(answers)
    return {problem_id: text.strip() for problem_id, text in answers.texts.items()}
