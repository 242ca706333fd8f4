"""The paper's two ensembles of LLaVA and a text model.

The sources are LLaVA@15f31eb llava/eval/eval_science_qa_gpt4.py and eval_science_qa_gpt4_requery.py. Complement: the
text model's answer, and LLaVA's where the text model's names no letter. Judge: where the two answers differ, the text
model is asked again and sees both; LLaVA's answer counts where the second one names no letter.
"""

from collections.abc import Mapping

from .letters import published_index, published_letter, strict_index
from .problems import Problem


def complement(
    problems: Mapping[str, Problem], llava: Mapping[str, str], judge: Mapping[str, str], seed: int
) -> dict[str, int]:
    """Returns the option of each problem that both have answered. `llava` and `judge` have the texts of answers."""
    return {
        problem_id: _first_with_letter(problem, problem_id, judge[problem_id], llava[problem_id], seed)
        for problem_id, problem in problems.items()
        if problem_id in llava and problem_id in judge
    }


def judged(
    problems: Mapping[str, Problem], llava: Mapping[str, str], verdicts: Mapping[str, str], seed: int
) -> dict[str, int]:
    """Returns the option of each problem that LLaVA has answered. `verdicts` has the texts of the judge's verdicts."""
    return {
        problem_id: _first_with_letter(problem, problem_id, verdicts.get(problem_id, ""), llava[problem_id], seed)
        for problem_id, problem in problems.items()
        if problem_id in llava
    }


def disagreements(problems: Mapping[str, Problem], llava: Mapping[str, str], judge: Mapping[str, str]) -> list[str]:
    """Returns the problems that the judge decides: both have answered, and do not name the same option."""
    return [
        problem_id
        for problem_id, problem in problems.items()
        if problem_id in llava and problem_id in judge and not _agree(problem, llava[problem_id], judge[problem_id])
    ]


def _agree(problem: Problem, first: str, second: str) -> bool:
    option = strict_index(first, problem)
    return option is not None and option == strict_index(second, problem)


def _first_with_letter(problem: Problem, problem_id: str, first: str, last: str, seed: int) -> int:
    """Returns the option of the first text if it has a letter, else that of the last one."""
    text = first if published_letter(first) is not None else last
    return published_index(text, problem, problem_id, seed)
