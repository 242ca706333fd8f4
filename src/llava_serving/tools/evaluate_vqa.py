"""`llava-serving evaluate vqa`: how many questions about pictures are answered exactly.

  llava-serving evaluate vqa --questions questions.jsonl --pictures pictures --url URL --output DIR

A line of the questions is {"image": "1.png", "question": "...", "answers": ["..."]}, and optionally "question_id" and
"category". An answer is right if it equals one of the answers after the normalisation of the VQA challenge.
"""

import argparse
from functools import partial
from pathlib import Path

from ..evaluation.answers.answer_file import AnswerFile
from ..evaluation.answers.asking import Question, ask_all
from ..evaluation.mlflow_metrics import log_metrics
from ..evaluation.picture_files import check_pictures
from ..evaluation.vqa.questions import read_vqa_questions
from ..evaluation.vqa.summary import summarize, summary_lines
from .evaluate_options import add_source_arguments, open_source, sampling_parameters
from .evaluate_output import check_answered, write_summary
from .resumable import run_resumable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="of an answer, default: 64")
    parser.add_argument(
        "--prompt-suffix", default="", metavar="TEXT",
        help='added to each question on a line of its own, such as "Answer the question using a single word."',
    )  # fmt: skip
    add_source_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 with figures, 1 without, 130 if the run was stopped."""
    return run_resumable(partial(_evaluate, arguments))


def _evaluate(arguments: argparse.Namespace) -> str:
    """Returns the figures for people. Raises StartupError, EndpointError, RequestError, OSError, KeyboardInterrupt."""
    questions = read_vqa_questions(arguments.questions)
    pictures = {question.image: arguments.pictures / question.image for question in questions}
    check_pictures(pictures.values(), arguments.pictures)
    parameters = {"max_new_tokens": arguments.max_new_tokens, **sampling_parameters(arguments)}
    suffix = f"\n{arguments.prompt_suffix}" if arguments.prompt_suffix else ""
    requests = [
        Question(str(question.question_id), question.question + suffix, pictures[question.image], parameters)
        for question in questions
    ]
    source = open_source(arguments)
    with AnswerFile(arguments.output / "answers.jsonl") as file:
        answers = ask_all("vqa", requests, source, file)
    lines = check_answered(answers)
    summary = {
        "evaluation": "vqa",
        "model": source.model,
        "parameters": parameters,
        **summarize(questions, answers.texts),
    }
    write_summary(arguments.output, summary)
    log_metrics({f"accuracy.{name}": value for name, value in summary["accuracy"].items()})
    return "\n".join([*lines, *summary_lines(summary)])
