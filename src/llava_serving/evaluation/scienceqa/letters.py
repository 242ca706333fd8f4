"""From the text of an answer to the index of an option: the authors' rule, and a strict one that never guesses."""

import random
import re

from .problems import LETTERS, Problem

# LLaVA@15f31eb llava/eval/eval_science_qa.py. Its full stop is not escaped: it stands for any character.
PUBLISHED = re.compile(r"The answer is ([A-Z]).")
# The whole word that begins with a capital letter. It may end the text.
STRICT = re.compile(r"The answer is ([A-Z]\w*)")


def published_letter(text: str) -> str | None:
    """Returns the letter that the authors' expression finds, or None unless it occurs exactly once."""
    found: list[str] = PUBLISHED.findall(text)
    return found[0] if len(found) == 1 else None


def published_index(text: str, problem: Problem, problem_id: str, seed: int) -> int:
    """Returns the option that the authors' rule chooses: at random if there is no letter, or none of an option.

    The authors' random numbers have no seed. Here they follow from the seed and the problem's id, so that a summary is
    the same every time, whatever other problems it has.
    """
    letter = published_letter(text)
    if letter is not None and letter in problem.letters:
        return problem.letters.index(letter)
    return random.Random(f"{seed} {problem_id}").randrange(len(problem.choices))


def strict_index(text: str, problem: Problem) -> int | None:
    """Returns the option whose letter the text names as the answer. None if it names none, several, or no option."""
    found: set[str] = set(STRICT.findall(text))
    letters = list(problem.letters)
    return letters.index(found.pop()) if len(found) == 1 and found <= set(letters) else None


def letter_index(text: str) -> int | None:
    """Returns the index of the letter that the authors' expression finds, whatever options there are. None without."""
    letter = published_letter(text)
    return LETTERS.index(letter) if letter is not None and letter in LETTERS else None
