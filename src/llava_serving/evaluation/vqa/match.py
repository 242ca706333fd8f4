"""Whether an answer to a question about a picture is right: equal to one of the reference answers after normalisation.

The rules are those of the VQA challenge (GT-Vision-Lab/VQA PythonEvaluationTools/vqaEvaluation/vqaEval.py), with the
marks of its evaluation on EvalAI (LLaVA@c121f04 llava/eval/m4c_evaluator.py), and with two differences. The challenge
corrects contractions that lack their apostrophe by a table; here both sides lose their apostrophes. The challenge
normalises only if its ten reference answers differ; here every answer is normalised.
"""

import re
from collections.abc import Iterable

# processPunctuation
MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,+\d")
FULL_STOP = re.compile(r"\.(?!\d)")
# processDigitArticle
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
APOSTROPHES = re.compile("['\u2019]")


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without articles and most punctuation, and with its number words as digits."""
    text = APOSTROPHES.sub("", _without_marks(" ".join(text.split())))
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(word for word in words if word not in ARTICLES)


def is_match(answer: str, references: Iterable[str]) -> bool:
    """Returns whether the normalised answer equals a normalised reference answer."""
    normalized = normalize_answer(answer)
    return any(normalized == normalize_answer(reference) for reference in references)


def _without_marks(text: str) -> str:
    """Removes a mark that touches a space anywhere in the text, and every mark if the text has a number such as 1,000.

    Replaces the other marks with spaces. Removes full stops that no digit follows.
    """
    removes_all = COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in MARKS:
        touches_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if removes_all or touches_space else " ")
    return FULL_STOP.sub("", cleaned)
