"""`llava-serving evaluate coco`: answers questions about pictures, and lets a text model judge the answers.

  llava-serving evaluate coco --questions qa90_questions.jsonl --pictures val2014 --url URL --output DIR \\
      --reference qa90_gpt4_answer.jsonl --context caps_boxes_coco2014_val_80.jsonl \\
      --judge-url https://api.openai.com/v1 --judge-model MODEL --judge-key-env OPENAI_API_KEY

The protocol is that of LLaVA-Bench (COCO). Without --judge-url the command stops after the answers, and judges them
when it runs again with one. Every answer and every verdict is kept as it comes, and never asked for twice. The output
folder gets answers.jsonl, reviews.jsonl, summary.json, results.json (everything) and report.html.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import StartupError
from ..evaluation.answers.answer_file import AnswerFile
from ..evaluation.answers.asking import Answers, Question, ask_all
from ..evaluation.coco.files import CocoQuestion, picture_name, read_answers, read_contexts, read_questions
from ..evaluation.coco.judge_prompt import Order
from ..evaluation.coco.judged_question import JudgedQuestion, judged_questions
from ..evaluation.coco.published_files import NUM_PICTURES, differences
from ..evaluation.coco.released_reviews import read_released_reviews
from ..evaluation.coco.result_rows import RESULTS, result_rows
from ..evaluation.coco.review_file import ReviewFile
from ..evaluation.coco.reviewing import review_all, review_requests
from ..evaluation.coco.score_table import score_table, table_lines
from ..evaluation.coco.summary import NOT_COMPARABLE, summary_lines, summary_of
from ..evaluation.judge.client import JudgeClient
from ..evaluation.picture_files import coco_pictures
from ..evaluation.report.page import REPORT, report_page
from .evaluate_judge import JUDGE_CONCURRENCY, add_judge_arguments, open_judge
from .evaluate_options import add_source_arguments, open_source, sampling_parameters
from .evaluate_output import write_json, write_summary, write_whole
from .resumable import run_resumable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", type=Path, metavar="FILE", help="question_id, image, text and category in a row")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="names may begin with COCO_val2014_")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="the answers of Assistant 1")
    parser.add_argument("--context", type=Path, metavar="FILE", help="captions and boxes, which the judge reads")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="of an answer, default: 1024")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="judge the answers of this file, and ask no model")
    parser.add_argument(
        "--reviews", type=Path, metavar="FILE",
        help="print the figures of a review file that the authors' scripts wrote, and do nothing else",
    )  # fmt: skip
    add_judge_arguments(parser, temperature=0.2, max_tokens=1024)
    parser.add_argument("--both-orders", action="store_true", help="judge each pair in both orders, and take the mean")
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if the run failed or a question has no answer or verdict yet, 130 if stopped."""
    if arguments.reviews is not None:
        return run_resumable(partial(_released_figures, arguments.reviews))
    failures: list[str] = []
    status = run_resumable(partial(_evaluate, arguments, failures))
    for line in failures:
        print(f"llava-serving: {line}", file=sys.stderr)
    return status or bool(failures)


def _released_figures(path: Path) -> str:
    rows = read_released_reviews(path)
    first, second = (sum(row.published[side] for row in rows if row.published is not None) for side in (0, 1))
    totals = f"sums of the scores as published: {first:g} and {second:g}"
    return "\n".join([*table_lines(score_table(rows)), totals, NOT_COMPARABLE])


@dataclass(frozen=True)
class _Inputs:
    """The content of the input files, and the picture of each question by its id."""

    questions: list[CocoQuestion]
    references: dict[str, str]
    contexts: dict[str, Any]
    pictures: dict[str, Path]


def _evaluate(arguments: argparse.Namespace, failures: list[str]) -> str:
    """Returns the figures for people. Raises StartupError, EndpointError, RequestError, OSError, KeyboardInterrupt."""
    inputs = _read_inputs(arguments)
    judge = None if arguments.judge_url is None else _judge(arguments, inputs)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model, parameters, candidates = _candidates(arguments, inputs, failures)
    orders = list(Order) if arguments.both_orders else [Order.REFERENCE_FIRST]
    rows = _judged(arguments, inputs, candidates, judge, orders, failures)
    described = None if judge is None else _described(judge, orders)
    summary = {"evaluation": "coco", "model": model, "parameters": parameters, **summary_of(rows, described)}
    _write(arguments.output, rows, summary, inputs)
    return "\n".join([*summary_lines(summary), f"{arguments.output / REPORT}"])


def _described(judge: JudgeClient, orders: Sequence[Order]) -> dict[str, Any]:
    return {"model": judge.model, "url": judge.url, "parameters": dict(judge.parameters), "orders": list(orders)}


def _read_inputs(arguments: argparse.Namespace) -> _Inputs:
    """Raises StartupError for wrong files and options. Warns of files that are not LLaVA's own."""
    for option in ("questions", "pictures", "output"):
        if getattr(arguments, option) is None:
            raise StartupError(f"--{option} is missing")
    questions = read_questions(arguments.questions)
    by_name = coco_pictures({question.image for question in questions}, arguments.pictures)
    references = {} if arguments.reference is None else read_answers(arguments.reference)
    contexts = {} if arguments.context is None else read_contexts(arguments.context)
    given = {f"--{name}": getattr(arguments, name) for name in ("questions", "reference", "context")}
    for line in differences(given):
        print(f"warning: {line}", file=sys.stderr)
    if len(by_name) != NUM_PICTURES:
        print(
            f"warning: the questions are about {len(by_name)} pictures, LLaVA's about {NUM_PICTURES}", file=sys.stderr
        )
    return _Inputs(questions, references, contexts, {row.id: by_name[row.image] for row in questions})


def _judge(arguments: argparse.Namespace, inputs: _Inputs) -> JudgeClient:
    """Returns the judge. Raises StartupError before the first question if it could not judge them."""
    judge = open_judge(arguments)
    if arguments.reference is None:
        raise StartupError("--reference names the answers of Assistant 1, which the judge compares with")
    ids = [question.id for question in inputs.questions]
    _check_covers(ids, inputs.references, arguments.reference, "question_id")
    if arguments.context is not None:
        pictures = [picture_name(question.image) for question in inputs.questions]
        _check_covers(pictures, inputs.contexts, arguments.context, "image")
    return judge


def _check_covers(wanted: Sequence[str], known: Mapping[str, object], path: Path, field: str) -> None:
    missing = [value for value in wanted if value not in known]
    if missing:
        raise StartupError(f"{path} has no row for {len(missing)} of {len(wanted)}: the first has {field} {missing[0]}")


def _candidates(
    arguments: argparse.Namespace, inputs: _Inputs, failures: list[str]
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Returns the model's name, the parameters of its answers, and its answers by question id."""
    if arguments.answers is not None:
        return arguments.model_name or str(arguments.answers), {}, read_answers(arguments.answers)
    parameters = {"max_new_tokens": arguments.max_new_tokens, **sampling_parameters(arguments)}
    questions = [
        Question(row.id, row.text, inputs.pictures[row.id], parameters, row.question_id) for row in inputs.questions
    ]
    source = open_source(arguments)
    with AnswerFile(arguments.output / "answers.jsonl") as file:
        answers: Answers = ask_all("answers", questions, source, file)
    failures += _failure_lines("have no answer", answers.refusals)
    return source.model, parameters, answers.texts


def _judged(
    arguments: argparse.Namespace,
    inputs: _Inputs,
    candidates: Mapping[str, str],
    judge: JudgeClient | None,
    orders: Sequence[Order],
    failures: list[str],
) -> list[JudgedQuestion]:
    """Returns all questions, with the judge's verdicts if there is one."""
    if judge is None:
        return [JudgedQuestion(row, inputs.references.get(row.id), candidates.get(row.id)) for row in inputs.questions]
    requests = review_requests(inputs.questions, inputs.contexts, inputs.references, candidates, judge, orders)
    with ReviewFile(arguments.output / "reviews.jsonl") as file:
        failed = review_all(requests, judge, file, arguments.concurrency or JUDGE_CONCURRENCY)
        failures += _failure_lines("have no verdict", failed)
        return judged_questions(inputs.questions, inputs.references, candidates, requests, file)


def _failure_lines(what: str, failed: Mapping[str, str]) -> list[str]:
    if not failed:
        return []
    question_id, message = next(iter(failed.items()))
    return [f"{len(failed)} questions {what}, the first is {question_id}: {message}; run again to ask for them again"]


def _write(output: Path, rows: Sequence[JudgedQuestion], summary: dict[str, Any], inputs: _Inputs) -> None:
    dated = write_summary(output, summary)
    write_json(output / RESULTS, {"summary": dated, "questions": result_rows(rows)})
    write_whole(output / REPORT, report_page(rows, dated, inputs.pictures, inputs.contexts))
