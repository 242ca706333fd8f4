"""`llava-serving evaluate`: how good the answers of an endpoint or of a model folder are.

  llava-serving evaluate coco --questions questions.jsonl --pictures val2014 --url URL --output DIR ...
  llava-serving evaluate compare DIR_A DIR_B
  llava-serving evaluate vqa --questions questions.jsonl --pictures pictures --url URL --output DIR
  llava-serving evaluate scienceqa --problems problems.json --splits pid_splits.json --pictures images/test ...

Every answer is kept in the output folder as it comes. If the command is stopped or killed, run it again to continue.
"""

import argparse
import logging
import signal

from . import evaluate_coco, evaluate_compare, evaluate_scienceqa, evaluate_vqa

EVALUATIONS = {
    "coco": (evaluate_coco, "questions about pictures, judged by a text model: LLaVA-Bench (COCO)"),
    "compare": (evaluate_compare, "the difference between two runs of coco, question by question"),
    "scienceqa": (evaluate_scienceqa, "ScienceQA, as LLaVA's authors measured it"),
    "vqa": (evaluate_vqa, "exact answers to questions about pictures"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    evaluations = parser.add_subparsers(required=True, metavar="EVALUATION")
    for name, (module, summary) in EVALUATIONS.items():
        command = evaluations.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(evaluate=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status of the evaluation."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    # Hundreds of callers wait for a busy endpoint, and each one would log each of its attempts.
    logging.getLogger("llava_serving.client.endpoint").setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as Ctrl-C does
    status: int = arguments.evaluate(arguments)
    return status
