"""`llava-serving evaluate coco` with the demo service as the model and a scripted judge, over real HTTP."""

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from coco_cases import FOLDER, IDS, QUESTIONS, answers_file, coco, judged_by
from evaluate_command import command, environment, evaluate, rows, score_url, summary
from scripted_judge import completion, error, fair, prompt_of, scripted_judge
from server import Server


def kill_after(num_lines: int, file: Path, arguments: tuple[object, ...]) -> None:
    """Runs the command, and kills it when the file has so many lines."""
    process = subprocess.Popen(command(*arguments), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < num_lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_answers_come_first_and_verdicts_when_there_is_a_judge(demo_server: Server, tmp_path: Path) -> None:
    source = ("--url", score_url(demo_server))
    evaluate(*coco(tmp_path, *source))
    answers = rows(tmp_path / "answers.jsonl")
    assert sorted(row["question_id"] for row in answers) == IDS
    assert not (tmp_path / "reviews.jsonl").exists()
    assert summary(tmp_path)["unanswered"] == 0
    with scripted_judge() as judge:
        shown = evaluate(*coco(tmp_path, *source, *judged_by(judge.url)))
        assert len(judge.bodies) == len(IDS)
        evaluate(*coco(tmp_path, *source, *judged_by(judge.url)))
        assert len(judge.bodies) == len(IDS)
    assert "not comparable with the published 85.1" in shown
    assert "judge-2026-11" in shown
    assert rows(tmp_path / "answers.jsonl") == answers
    categories = summary(tmp_path)["categories"]
    assert {name: row["count"] for name, row in categories.items()} == {
        "all": 24, "conv": 8, "detail": 8, "complex": 8,
    }  # fmt: skip
    assert summary(tmp_path)["judge_tokens"]["prompt_tokens"] == 100 * len(IDS)


def test_rows_are_joined_by_question_id_and_not_by_line(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: f"candidate {row['question_id']}")
    references = {row["question_id"]: row["text"] for row in rows(FOLDER / "reference.jsonl")}
    with scripted_judge() as judge:
        evaluate(*coco(tmp_path / "out", "--answers", answers, *judged_by(judge.url)))
        prompts = list(map(prompt_of, judge.bodies))
    for row in QUESTIONS:
        assert any(
            row["text"] in prompt
            and f"[Assistant 1]\n{references[row['question_id']]}\n\n[End of Assistant 1]" in prompt
            and f"[Assistant 2]\ncandidate {row['question_id']}\n\n[End of Assistant 2]" in prompt
            for prompt in prompts
        )


def test_a_killed_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: f"candidate {row['question_id']}")
    with scripted_judge(seconds=0.2) as judge:
        arguments = coco(tmp_path, "--answers", answers, *judged_by(judge.url, "--concurrency", 2))
        reviews = tmp_path / "reviews.jsonl"
        kill_after(5, reviews, arguments)
        reviews.write_bytes(reviews.read_bytes().rstrip(b"\n")[:-20])  # the last line is cut
        kept = reviews.read_bytes().count(b"\n")
        time.sleep(0.3)
        judge.bodies.clear()
        evaluate(*arguments)
        assert len(judge.bodies) == len(IDS) - kept
    assert Counter(row["question_id"] for row in rows(reviews)) == Counter(IDS)


def test_killed_while_answering_continues(demo_server: Server, tmp_path: Path) -> None:
    """Three hundred questions at once, more than the service takes: none is lost and none is asked twice."""
    questions = tmp_path / "questions.jsonl"
    many = [{**QUESTIONS[i % len(QUESTIONS)], "question_id": i} for i in range(300)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in many), "utf-8")
    arguments = coco(tmp_path, "--url", score_url(demo_server), "--concurrency", 300, questions=questions)
    answers = tmp_path / "answers.jsonl"
    kill_after(20, answers, arguments)
    evaluate(*arguments)
    assert sorted(row["question_id"] for row in rows(answers)) == list(range(300))


def test_pictures_may_have_the_prefix_of_coco(demo_server: Server, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in (FOLDER / "pictures").iterdir():
        shutil.copy(path, pictures / f"COCO_val2014_{path.name}")
    plain, prefixed = tmp_path / "plain", tmp_path / "prefixed"
    evaluate(*coco(plain, "--url", score_url(demo_server)))
    evaluate(*coco(prefixed, "--url", score_url(demo_server)), "--pictures", pictures)
    texts = [{row["question_id"]: row["text"] for row in rows(out / "answers.jsonl")} for out in (plain, prefixed)]
    assert texts[0] == texts[1]


def test_a_question_that_fails_is_reported_and_asked_again(demo_server: Server, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(FOLDER / "pictures", pictures)
    (pictures / QUESTIONS[0]["image"]).write_bytes(b"no picture")
    arguments = (*coco(tmp_path, "--url", score_url(demo_server)), "--pictures", pictures)
    assert "3 questions have no answer" in evaluate(*arguments, status=1)
    assert len(rows(tmp_path / "answers.jsonl")) == len(IDS) - 3
    shutil.copy(FOLDER / "pictures" / QUESTIONS[0]["image"], pictures)
    evaluate(*arguments)
    assert sorted(row["question_id"] for row in rows(tmp_path / "answers.jsonl")) == IDS


def test_both_orders_swap_the_answers_and_the_scores(tmp_path: Path) -> None:
    """A judge that always prefers Assistant 1 finds both equal."""
    answers = answers_file(tmp_path / "answers", lambda row: "an answer")
    with scripted_judge(lambda body, number: completion("8 4\nThe first is better.")) as judge:
        shown = evaluate(*coco(tmp_path, "--answers", answers, *judged_by(judge.url, "--both-orders")))
        assert len(judge.bodies) == 2 * len(IDS)
    content = summary(tmp_path)
    assert content["categories"]["all"]["relative_score"] == 100
    assert content["categories"]["all"]["relative_score_as_published"] == 50
    assert content["orders"] == {"reference_first": 50, "candidate_first": 200}
    assert content["winner_depends_on_order"] == len(IDS)
    assert "the order decides the winner in 24 of 24 questions" in shown


def test_a_judge_that_is_rude_slow_cut_off_or_half_done_is_asked_again(tmp_path: Path) -> None:
    rude: list[Any] = [
        error(429, "slow down"), error(500, "broken"), (200, b"<html>busy</html>"), (200, b'{"choices": ['),
        (200, b'{"choices": []}'), completion(""), None, completion("8"), completion("I cannot see the picture."),
    ]  # fmt: skip
    answers = answers_file(tmp_path / "answers", lambda row: f"candidate {row['question_id']}")

    def script(body: dict[str, Any], number: int) -> tuple[int, bytes] | None:
        answer: tuple[int, bytes] | None = rude[number] if number < len(rude) else fair(body, number)
        return answer

    with scripted_judge(script) as judge:
        evaluate(*coco(tmp_path, "--answers", answers, *judged_by(judge.url)))
        assert len(judge.bodies) == len(IDS) + len(rude)
    figures = summary(tmp_path)["categories"]["all"]
    assert (figures["count"], figures["unparsable"]) == (len(IDS), 0)
    assert len(rows(tmp_path / "reviews.jsonl")) == len(IDS) + 2  # the two replies without scores are kept too


def test_replies_without_scores_are_counted_left_out_and_not_asked_for_again(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: f"candidate {row['question_id']}")

    def script(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        return completion("Sorry." if "candidate 5\n" in prompt_of(body) else "8 6")

    with scripted_judge(script) as judge:
        evaluate(*coco(tmp_path, "--answers", answers, *judged_by(judge.url)))
        evaluate(*coco(tmp_path, "--answers", answers, *judged_by(judge.url)))
        assert len(judge.bodies) == len(IDS) + 2
    figures = summary(tmp_path)["categories"]
    assert (figures["all"]["unparsable"], figures["conv"]["unparsable"]) == (1, 0)
    assert figures["all"]["relative_score"] == pytest.approx(75)
    assert figures["all"]["relative_score_as_published"] == round(100 * (23 * 6 - 1) / (23 * 8 - 1), 1)


def test_a_judge_without_temperature_and_max_tokens_is_asked_without_them(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: f"candidate {row['question_id']}")

    def script(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return error(400, "Unsupported value: 'temperature' does not support 0.2 with this model.")
        return fair(body, number)

    with scripted_judge(script) as judge:
        evaluate(*coco(tmp_path, "--answers", answers, *judged_by(judge.url, "--concurrency", 1)))
        assert len(judge.bodies) == len(IDS) + 2
        assert judge.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_the_judges_key_comes_from_the_environment_and_is_nowhere_else(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: "an answer")
    with scripted_judge() as judge:
        arguments = coco(tmp_path / "out", "--answers", answers, *judged_by(judge.url, "--judge-key-env", "A_KEY"))
        assert "A_KEY is empty" in evaluate(*arguments, status=1)
        evaluate(*arguments, A_KEY="secret-of-the-judge")
        assert set(judge.keys) == {"Bearer secret-of-the-judge"}
    assert all(b"secret-of-the-judge" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path) -> None:
    answers = answers_file(tmp_path / "answers", lambda row: "an answer")
    with scripted_judge(lambda body, number: error(401, "wrong key")) as judge:
        arguments = coco(tmp_path, "--answers", answers, *judged_by(judge.url, "--concurrency", 1))
        assert "401" in evaluate(*arguments, status=1)
        assert len(judge.bodies) < len(IDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of"),
        ('{"question_id": 1, "image": "a.png", "text": "?"}', "category: Field required"),
        ('{"question_id": 0, "image": "a.png", "text": "?", "category": "conv"}', "question_id 0 2 times"),
        ('{"question_id": 1, "image": "../../x.png", "text": "?", "category": "conv"}', "lacks 1 of"),
    ],
)
def test_a_wrong_question_names_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n", "utf-8")
    shown = evaluate(*coco(tmp_path / "out", "--url", "http://127.0.0.1:1/score", questions=questions), status=1)
    assert message in shown


def test_the_judge_needs_a_name_a_reference_and_a_context_of_all_questions(tmp_path: Path) -> None:
    source = ("--answers", answers_file(tmp_path / "answers", lambda row: "an answer"), "--judge-url", "http://a/v1")
    assert "--judge-model" in evaluate(*coco(tmp_path, *source), status=1)
    assert "--reference" in evaluate(*coco(tmp_path, *source, "--judge-model", "judge"), status=1)
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join((FOLDER / "reference.jsonl").read_text("utf-8").splitlines()[:20]), "utf-8")
    shown = evaluate(*coco(tmp_path, *source, "--judge-model", "judge", "--reference", half), status=1)
    assert "has no row for 4 of 24: the first has question_id 20" in shown


def test_compare_pairs_the_questions_of_two_runs(tmp_path: Path) -> None:
    """B's answers are one point better in each odd question, and the others are equal."""
    outputs = []
    for name in ("before", "after"):
        answers = answers_file(tmp_path / f"{name}.jsonl", lambda row: f"candidate {row['question_id']}")

        def script(body: dict[str, Any], number: int, is_after: bool = name == "after") -> tuple[int, bytes]:
            number_of_question = int(prompt_of(body).partition("candidate ")[2].split()[0])
            return completion(f"10 {5 + (number_of_question % 2 and is_after)}")

        with scripted_judge(script) as judge:
            outputs.append(tmp_path / name)
            evaluate(*coco(outputs[-1], "--answers", answers, *judged_by(judge.url)))
    evaluate("compare", *outputs, "--output", tmp_path / "comparison.json")
    comparison = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    figures = comparison["categories"]["all"]
    assert (figures["wins"], figures["ties"], figures["losses"]) == (12, 12, 0)
    assert figures["difference"] == pytest.approx(5)
    low, high = figures["difference_interval"]
    assert low < 5 < high
    assert any("judge.url" in warning for warning in comparison["warnings"])


def test_the_report_is_one_file_that_shows_hostile_text_as_text(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><img src=http://a.example/x>"
    answers = answers_file(tmp_path / "answers", lambda row: hostile)
    with scripted_judge(lambda body, number: completion(f"8 6\n{hostile}")) as judge:
        evaluate(*coco(tmp_path / "out", "--answers", answers, *judged_by(judge.url)), "--model-name", hostile)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert hostile not in page
    assert page.count("<script") == 2
    assert page.count("data:image/jpeg") == len({row["image"] for row in QUESTIONS})
    assert page.count("<article") == len(IDS)
