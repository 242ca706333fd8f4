"""Files of questions about pictures: what is read, and what is refused with its line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.errors import StartupError
from llava_serving.evaluation.vqa.questions import VqaQuestion, read_vqa_questions

GOOD = '{"image": "a.png", "question": "What?", "answers": ["x"]}'


def test_a_question_without_an_id_has_the_number_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{GOOD}\n\n{GOOD[:-1]}, "category": "shape", "split": "test"}}\n')
    first, second = read_vqa_questions(file)
    assert (first.question_id, first.category) == (0, "all")
    assert (second.question_id, second.category) == (2, "shape")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        (f"{GOOD}\n{{", "line 2 of .* is no JSON object"),
        (f"{GOOD}\n[]", "line 2 of .*: the row: Input should be a valid dictionary"),
        ('{"image": "a.png", "question": "What?"}', "line 1 of .*: answers: Field required"),
        (GOOD.replace('["x"]', "[]"), "answers: List should have at least 1 item"),
        (GOOD.replace('["x"]', '"x"'), "answers: Input should be a valid list"),
        (GOOD.replace('"a.png"', "null"), "image: Input should be a valid string"),
        (f'{GOOD[:-1]}, "question_id": 1}}\n{GOOD}', "has question_id 1 twice"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "questions.jsonl").write_text(content)
    with pytest.raises(StartupError, match=message):
        read_vqa_questions(tmp_path / "questions.jsonl")


def test_a_missing_file_and_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(StartupError, match="there is no file"):
        read_vqa_questions(tmp_path / "none.jsonl")
    with pytest.raises(StartupError, match="cannot be read as text"):
        read_vqa_questions(tmp_path / "picture.png")


QUESTIONS = st.builds(
    VqaQuestion, question_id=st.integers(), image=st.text(), question=st.text(),
    answers=st.lists(st.text(), min_size=1, max_size=3), category=st.text(),
)  # fmt: skip


@given(questions=st.lists(QUESTIONS, min_size=1, max_size=4, unique_by=lambda question: question.question_id))
def test_written_questions_are_read_unchanged(
    tmp_path_factory: pytest.TempPathFactory, questions: list[VqaQuestion]
) -> None:
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    lines = [json.dumps(question.model_dump(), ensure_ascii=False) for question in questions]
    file.write_text("\n".join(lines), "utf-8")
    assert read_vqa_questions(file) == questions
