"""What a text model is asked about ScienceQA: for an answer of its own, and for a decision between two answers.

LLaVA's repository has neither prompt of its authors (llava/eval/eval_science_qa_gpt4_requery.py reads only their
results), so the wording is this project's. The text model sees no picture, as in the paper.
"""

from ..judge.client import Messages
from .problems import Problem
from .prompts import question_text

SYSTEM = "You are a helpful assistant that answers multiple-choice questions."
ENDING = 'End with the sentence "The answer is X." where X is the letter of the option.'
NO_PICTURE = "The question has a picture that you cannot see."


def answer_messages(problem: Problem) -> Messages:
    """Returns the messages that ask the text model for an answer of its own."""
    return _messages([*_question(problem), "", f"Explain your answer. {ENDING}"])


def decision_messages(problem: Problem, own: str, llava: str) -> Messages:
    """Returns the messages that ask the text model to decide, from its own answer's text and from LLaVA's."""
    picture = "It has seen the picture. " if problem.image else ""
    return _messages(
        [
            *_question(problem),
            "",
            "[Your earlier answer]",
            own,
            "",
            f"[The answer of another model. {picture}It may be wrong]",
            llava,
            "",
            f"The two answers differ. Decide which option is right, and say why. {ENDING}",
        ]
    )


def _messages(lines: list[str]) -> Messages:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


def _question(problem: Problem) -> list[str]:
    text = question_text(problem, "QCM-LEPA")
    return [f"Question: {text}", *([NO_PICTURE] if problem.image else [])]
