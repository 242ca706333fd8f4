"""ScienceQA's problems, prompts, letters, columns and ensembles."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scienceqa_data import PROBLEMS, write_scienceqa

from llava_serving.errors import StartupError
from llava_serving.evaluation.scienceqa.accuracy import accuracy
from llava_serving.evaluation.scienceqa.ensemble import complement, disagreements, judged
from llava_serving.evaluation.scienceqa.letters import published_index, published_letter, strict_index
from llava_serving.evaluation.scienceqa.problems import Problem, read_problems
from llava_serving.evaluation.scienceqa.prompts import PromptFormat, question_text
from llava_serving.evaluation.scienceqa.result_file import read_result_file, stored_figures

SEED = 3
HEAD = (
    "You are LLaVA, a large language model trained by UW Madison WAIV Lab, based on LLaMA architecture."
    "You are designed to assist human with a variety of tasks using natural language."
    "Follow the instructions carefully."
    "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
    "###Human: "
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scienceqa(tmp_path / "scienceqa")


@pytest.fixture
def problems(data: Path) -> dict[str, Problem]:
    return read_problems(data / "problems.json", data / "pid_splits.json", "test")


def test_the_problems_of_a_split_keep_its_order(problems: dict[str, Problem]) -> None:
    assert list(problems) == ["1", "2", "3", "4"]
    assert problems["3"].letters == "ABCD"


@pytest.mark.parametrize(
    ("file", "content", "split", "message"),
    [
        ("problems.json", None, "test", "there is no file"),
        ("pid_splits.json", None, "test", "there is no file"),
        ("problems.json", "{", "test", "is no JSON file"),
        ("problems.json", "[]", "test", "holds a list, not an object of ScienceQA's problems"),
        ("problems.json", '{"1": {}}', "test", r"lacks 3 of the 4 problems of the split test, the first is 2"),
        ("pid_splits.json", '{"test": [1]}', "test", "not a list of problem ids, which are strings"),
        ("pid_splits.json", '{"test": ["1", "1"]}', "test", "lists a problem twice"),
        ("pid_splits.json", '{"test": ["1"]}', "minitest", "has no split minitest; it has test"),
    ],
)
def test_wrong_files_are_refused_by_name(data: Path, file: str, content: str | None, split: str, message: str) -> None:
    (data / file).unlink()
    if content is not None:
        (data / file).write_text(content)
    with pytest.raises(StartupError, match=message) as error:
        read_problems(data / "problems.json", data / "pid_splits.json", split)
    assert file in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a"] * 6}, "problem 2 of .*: 6 choices, and the options have the letters A to E"),
        ({"choices": []}, "0 choices"),
        ({"answer": 3}, "answer 3, which is no index of its 3 choices"),
        ({"answer": "A"}, "problem 2 of .*: answer: Input should be a valid integer"),
        ({"hint": None}, "hint: Input should be a valid string"),
    ],
)
def test_a_wrong_problem_is_refused_by_its_id(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = write_scienceqa(tmp_path / "wrong", {"2": change})
    with pytest.raises(StartupError, match=message):
        read_problems(data / "problems.json", data / "pid_splits.json", "test")


def test_a_prompt_is_the_authors(problems: dict[str, Problem]) -> None:
    """The question, its picture, and the separator, after which the model writes "Assistant:" itself."""
    expected = HEAD + (
        "What is the color of the square?\nContext: Look at the picture.\nOptions: (A) blue (B) red\n<image>###"
    )
    lepa = PromptFormat("QCM-LEPA")
    assert lepa.prompt(problems["1"]) == expected
    assert lepa.second_prompt(problems["1"], "Assistant: SOLUTION: It is red.") == (
        expected + "Assistant: SOLUTION: It is red. ###\nANSWER:"
    )
    assert (lepa.has_second_pass, PromptFormat("CQM-A").has_second_pass) == (True, False)


def test_the_context_comes_first_in_cqm(problems: dict[str, Problem]) -> None:
    expected = "Context: N/A\nQuestion: Which word is a verb?\nOptions: (A) run (B) table (C) green###"
    assert PromptFormat("CQM-A").prompt(problems["2"]) == HEAD + expected


def test_every_question_prefix_is_removed_and_spaces_are_halved_once(problems: dict[str, Problem]) -> None:
    assert question_text(problems["3"], "QCM-LEPA") == (
        "What is a town?\nContext: A text.\nOptions: (A) a (B) b (C) c (D) d"
    )
    wide = problems["2"].model_copy(update={"question": "a    b <image>"})
    assert question_text(wide, "QCM-LEPA").startswith("a  b \nContext: N/A")


@pytest.mark.parametrize(
    ("text", "published", "strict"),
    [
        ("The answer is B.", "B", 1),
        ("LECTURE: long\n The answer is A.", "A", 0),
        ("The answer is B", None, 1),  # the authors' expression needs a character after the letter
        ("The answer is Blue.", "B", None),
        ("The answer is D.", "D", None),  # no option of three
        ("The answer is A. The answer is A.", None, 0),
        ("The answer is A. The answer is B.", None, None),
        ("the answer is A.", None, None),
        ("B.", None, None),
        ("", None, None),
    ],
)
def test_a_letter_is_parsed_by_the_authors_rule_and_by_the_strict_one(
    problems: dict[str, Problem], text: str, published: str | None, strict: int | None
) -> None:
    assert published_letter(text) == published
    assert strict_index(text, problems["2"]) == strict


PIECES = st.sampled_from(["The answer is ", "A", "B", "D", "x", ".", " ", "\n"])
THREE_OPTIONS = Problem.model_validate(PROBLEMS["2"])


@given(st.lists(PIECES, max_size=8).map("".join))
def test_the_strict_rule_is_never_another_option_than_the_authors_rule_reads(text: str) -> None:
    index, letter = strict_index(text, THREE_OPTIONS), published_letter(text)
    assert index is None or f"The answer is {'ABC'[index]}" in text
    if index is not None and letter is not None:
        assert published_index(text, THREE_OPTIONS, "2", SEED) == index


def test_the_random_choices_of_the_authors_rule_follow_from_the_seed(problems: dict[str, Problem]) -> None:
    drawn = [published_index("no letter", problems["3"], str(number), SEED) for number in range(200)]
    assert drawn == [published_index("no letter", problems["3"], str(number), SEED) for number in range(200)]
    assert set(drawn) == {0, 1, 2, 3}
    assert drawn != [published_index("no letter", problems["3"], str(number), SEED + 1) for number in range(200)]


def test_the_columns_are_those_of_the_paper(problems: dict[str, Problem]) -> None:
    chosen = {"1": 1, "2": None, "3": 3, "4": 1}
    assert accuracy(problems, chosen) == {
        "NAT": 50.0, "SOC": 100.0, "LAN": 0.0, "TXT": 100.0, "IMG": 50.0, "NO": 0.0, "G1-6": 100.0, "G7-12": 0.0,
        "average": 50.0,
    }  # fmt: skip
    only = {"2": problems["2"]}
    assert accuracy(only, {})["IMG"] is None
    assert accuracy(only, {})["average"] == 0.0


def test_the_ensembles_take_the_judge_s_letter_and_else_llava_s(problems: dict[str, Problem]) -> None:
    llava = {"1": "The answer is A.", "2": "The answer is B.", "3": "The answer is D.", "4": "nothing"}
    judge = {"1": "The answer is B.", "2": "I do not know.", "3": "The answer is D.", "4": "The answer is A."}
    assert complement(problems, llava, judge, SEED) == {"1": 1, "2": 1, "3": 3, "4": 0}
    assert disagreements(problems, llava, judge) == ["1", "2", "4"]
    verdicts = {"1": "The answer is A.", "2": "No.", "4": "The answer is B."}
    assert judged(problems, llava, verdicts, SEED) == {"1": 0, "2": 1, "3": 3, "4": 1}


def test_a_result_file_says_its_own_figures(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    outputs = {"1": "The answer is B.", "2": "The answer is D.", "3": "no letter"}
    content = {"acc": 66.7, "correct": 2, "count": 3, "results": {"1": 1, "2": 1, "3": 0}, "outputs": outputs}
    file.write_text(json.dumps(content))
    figures = stored_figures(read_result_file(file))
    assert figures.accuracy == pytest.approx(200 / 3)
    assert (figures.num_outputs, figures.num_letters, figures.other_letters) == (3, 2, ("2",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON file"),
        ('{"results": {}}', "outputs: Field required"),
        ('{"results": {"1": "A"}, "outputs": {"1": ""}}', "results.1: Input should be a valid integer"),
        ('{"results": {"1": 0}, "outputs": {"2": ""}}', "results and outputs are about different problems"),
    ],
)
def test_a_wrong_result_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(StartupError, match=message):
        read_result_file(tmp_path / "result.json")
