"""ScienceQA's prompts as LLaVA's authors wrote them.

The sources are LLaVA@15f31eb scripts/convert_sqa_to_llava.py and llava/eval/model_vqa_science.py. A format names the
order of the input (Q question, C context, M multiple choice) and of the output (L lecture, E explanation, P prompter,
A answer). With P the model reasons first. A second prompt, the answer prompter, then asks for the letter.
"""

from dataclasses import dataclass
from typing import Literal

from ...inputs.prompt import IMAGE_PLACEHOLDER
from ...inputs.templates import SIMPLE, Template
from .problems import Problem

Format = Literal["QCM-LEPA", "QCM-LEA", "CQM-A"]
FORMATS: tuple[Format, ...] = ("QCM-LEPA", "QCM-LEA", "CQM-A")
SEPARATOR = "###"
ANSWER_PROMPTER = f" {SEPARATOR}\nANSWER:"


@dataclass(frozen=True)
class PromptFormat:
    """A format, and the template that its prompts are put into."""

    name: Format
    template: Template = SIMPLE

    @property
    def has_second_pass(self) -> bool:
        return self.name == "QCM-LEPA"

    def prompt(self, problem: Problem) -> str:
        """Returns the raw prompt of a problem, with `<image>` for its picture.

        It ends with the separator, and not with the beginning of an answer: the authors let the model write
        "Assistant:" itself.
        """
        question = question_text(problem, self.name)
        image = f"\n{IMAGE_PLACEHOLDER}" if problem.image else ""
        template = self.template
        return f"{template.system}{template.greeting}{template.user_prefix}{question}{image}{SEPARATOR}"

    def second_prompt(self, problem: Problem, reasoning: str) -> str:
        """Returns the raw prompt of the second pass, after the reasoning of the first one."""
        return f"{self.prompt(problem)}{reasoning}{ANSWER_PROMPTER}"


def question_text(problem: Problem, name: Format) -> str:
    """Returns the text of a problem, without its picture.

    Each pair of spaces becomes one, once, and "Question: " is removed wherever it occurs, as the authors did.
    """
    context = problem.hint.strip() or "N/A"
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(problem.letters, problem.choices, strict=True))
    if name.startswith("CQM"):
        text = f"Context: {context}\nQuestion: {problem.question}\nOptions: {options}\n"
    else:
        text = f"Question: {problem.question}\nContext: {context}\nOptions: {options}\n"
    text = text.replace("  ", " ").strip()
    if text.startswith("Question: "):
        text = text.replace("Question: ", "")
    return text.replace(IMAGE_PLACEHOLDER, "").strip()


def joined_answer(reasoning: str, letter: str) -> str:
    """Returns the text of a problem's answer from the texts of its two passes."""
    return f"{reasoning}\n The answer is {letter}"
