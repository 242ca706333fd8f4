"""Reads the two scores of a judge's reply, by the authors' rule and by one that is more tolerant but never guesses."""

import math
import re

Scores = tuple[float, float]

LOWEST, HIGHEST = 0.0, 10.0  # the rule says 1 to 10, but GPT-4 gave a 0 too
UNPARSABLE: Scores = (-1.0, -1.0)  # what the authors' scripts counted
# Some models write their reasoning before the reply.
_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_MARKUP = re.compile(r"[*_`#\[\](){}]")
_LABELS = re.compile(
    r"\b(?:assistant|answer)\s*[12ab]?\b(?:'s)?|\b(?:overall|scores?|ratings?|and|vs)\b\.?", re.IGNORECASE
)
_OUT_OF_TEN = re.compile(r"(?:/|\bout of)\s*10\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")
_SEPARATORS = re.compile(r"[\s,;:|/&.=-]*")


def published_scores(text: str) -> Scores:
    """Returns the scores by the rule of LLaVA's scripts (LLaVA@15f31eb llava/eval/eval_gpt_review_visual.py).

    The first line, with its commas as spaces, is two numbers with one space between them. Else both scores are -1.
    """
    pieces = text.split("\n")[0].replace(",", " ").split(" ")
    try:
        first, second = map(float, pieces)
    except ValueError:  # another number of pieces, or pieces that are no numbers
        return UNPARSABLE
    return (first, second) if math.isfinite(first) and math.isfinite(second) else UNPARSABLE


def tolerant_scores(text: str) -> Scores | None:
    """Returns the two scores of the first line that is not blank, or None.

    The line may have more spaces, commas, `/10`, labels such as `Assistant 1:` and Markdown, but no other words, and
    exactly two numbers from 0 to 10.
    """
    lines = (line for line in _REASONING.sub("", text).splitlines() if line.strip())
    line = _MARKUP.sub(" ", next(lines, ""))
    line = _OUT_OF_TEN.sub(" ", _LABELS.sub(" ", line))
    numbers = [float(number) for number in _NUMBER.findall(line)]
    has_other_words = _SEPARATORS.fullmatch(_NUMBER.sub(" ", line)) is None
    if has_other_words or len(numbers) != 2 or not all(LOWEST <= number <= HIGHEST for number in numbers):
        return None
    return numbers[0], numbers[1]
