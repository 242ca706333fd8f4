"""`llava-serving evaluate scienceqa` with the demo service, with files of answers, and with a scripted judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluate_command import evaluate, rows, score_url, summary
from scienceqa_data import write_scienceqa
from scripted_judge import ScriptedJudge, completion, error, prompt_of, scripted_judge
from server import Server

from llava_serving.evaluation.scienceqa.problems import read_problems
from llava_serving.evaluation.scienceqa.prompts import PromptFormat

# Right, wrong, a letter that is no option, and none at all.
OUTPUTS = {"1": "The answer is B.", "2": "The answer is C.", "3": "The answer is E.", "4": "I do not know."}
RESULT = {"acc": 75.0, "correct": 3, "count": 4, "results": {"1": 1, "2": 2, "3": 3, "4": 0}, "outputs": OUTPUTS}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scienceqa(tmp_path / "scienceqa")


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    return tmp_path / "result.json"


def files(data: Path) -> list[object]:
    return ["--problems", data / "problems.json", "--splits", data / "pid_splits.json"]


def test_two_passes_ask_for_reasoning_and_then_for_the_letter(demo_server: Server, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [
        "scienceqa", *files(data), "--pictures", data / "images" / "test", "--url", score_url(demo_server),
        "--max-new-tokens", 16, "--output", output,
    ]  # fmt: skip
    printed = evaluate(*arguments)
    problems = read_problems(data / "problems.json", data / "pid_splits.json", "test")
    prompts = PromptFormat("QCM-LEPA")
    reasoning = {row["question_id"]: row for row in rows(output / "reasoning.jsonl")}
    letters = {row["question_id"]: row for row in rows(output / "letters.jsonl")}
    for problem_id, problem in problems.items():
        first = reasoning[problem_id]
        assert first["prompt"] == prompts.prompt(problem)
        assert letters[problem_id]["prompt"] == f"{first['prompt']}{first['text'].strip()} ###\nANSWER:"
    joined = {row["question_id"]: row["text"] for row in rows(output / "answers.jsonl")}
    assert joined["1"] == f"{reasoning['1']['text'].strip()}\n The answer is {letters['1']['text'].strip()}"
    figures = summary(output)
    assert (figures["count"], figures["unanswered"], figures["unparsed"]) == (4, 0, 4)
    assert set(figures["accuracy"]) == {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "average"}
    assert "4 problems, 0 of them without an answer; 4 answers name no option" in printed
    before = (output / "reasoning.jsonl").read_bytes(), (output / "letters.jsonl").read_bytes()
    assert evaluate(*arguments) == printed
    assert ((output / "reasoning.jsonl").read_bytes(), (output / "letters.jsonl").read_bytes()) == before


def test_one_pass_asks_once(demo_server: Server, data: Path, tmp_path: Path) -> None:
    evaluate(
        "scienceqa", *files(data), "--pictures", data / "images" / "test", "--url", score_url(demo_server),
        "--format", "CQM-A", "--max-new-tokens", 8, "--output", tmp_path / "out",
    )  # fmt: skip
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"answers.jsonl", "summary.json"}
    assert all("###Human: Context: " in row["prompt"] for row in rows(tmp_path / "out" / "answers.jsonl"))


def test_a_missing_picture_is_named(data: Path, tmp_path: Path) -> None:
    (data / "images" / "test" / "4" / "image.png").unlink()
    source = ["--url", "http://127.0.0.1:1/score", "--output", tmp_path / "out"]
    message = evaluate("scienceqa", *files(data), "--pictures", data / "images" / "test", *source, status=1)
    assert "lacks 1 of 2 pictures, the first is 4/image.png" in message
    assert "--pictures names the folder" in evaluate("scienceqa", *files(data), *source, status=1)


def test_the_authors_file_is_measured_by_both_rules(data: Path, result_file: Path, tmp_path: Path) -> None:
    printed = evaluate("scienceqa", *files(data), "--answers", result_file, "--output", tmp_path / "out")
    figures = summary(tmp_path / "out")
    assert figures["accuracy"]["average"] == 25.0
    assert (figures["unparsed"], figures["random_choices"]) == (2, 2)
    assert figures["accuracy_as_published"] == 75.0, "by the options that the file stores"
    assert figures["accuracy_as_published_by_column"]["SOC"] == 100.0
    assert "accuracy by the authors' rule: 75.0000 %, from the options that the file stores; 2 of them" in printed


def test_the_authors_file_alone_says_its_own_counts(result_file: Path, tmp_path: Path) -> None:
    printed = evaluate("scienceqa", "--answers", result_file, "--output", tmp_path / "out")
    assert "accuracy by the file's own counts: 75.0000 %" in printed
    assert "3 of 4 answers have a letter by the authors' rule; 1 of the letters are not the stored option: 3" in printed
    assert summary(tmp_path / "out")["accuracy_as_published"] == 75.0


def test_answers_in_lines_draw_the_same_options_for_the_same_seed(data: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"question_id": problem_id, "text": text}) for problem_id, text in OUTPUTS.items()]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    arguments = ["scienceqa", *files(data), "--answers", tmp_path / "answers.jsonl"]
    message = evaluate("scienceqa", "--answers", tmp_path / "answers.jsonl", status=1)
    assert "answers.jsonl has texts only: --problems and --splits" in message
    printed = {seed: evaluate(*arguments, "--seed", seed) for seed in range(4)}
    assert evaluate(*arguments, "--seed", 0) == printed[0]
    assert len({text.partition("authors' rule: ")[2].partition(" %")[0] for text in printed.values()}) > 1


def verdict(body: dict[str, Any], number: int) -> tuple[int, bytes]:
    return completion(reply(prompt_of(body)))


def reply(question: str) -> str:
    """Answers as a judge: right where it may, wrong about the picture, and without a letter once."""
    if "The two answers differ" in question:
        return "I cannot decide." if "verb" in question else "LLaVA has seen it. The answer is B."
    if "color" in question:
        return "The answer is A."
    return "The answer is D." if "town" in question else "The answer is A."


def judged(data: Path, tmp_path: Path, judge: ScriptedJudge, *options: object) -> list[object]:
    """Returns the arguments of a run with the judge."""
    result = {**RESULT, "outputs": {**OUTPUTS, "3": "The answer is D."}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    return [
        "scienceqa", *files(data), "--answers", tmp_path / "result.json", "--output", tmp_path / "out",
        "--judge-url", judge.url, "--judge-model", "scripted-1", *options,
    ]  # fmt: skip


def test_the_judge_answers_and_decides_where_the_two_differ(data: Path, tmp_path: Path) -> None:
    with scripted_judge(verdict) as judge:
        arguments = judged(data, tmp_path, judge, "--judge-key-env", "MY_KEY")
        evaluate(*arguments, MY_KEY="secret")
        assert len(judge.bodies) == 4 + 3, "four answers of its own, and three decisions"
        assert {body["model"] for body in judge.bodies} == {"scripted-1"}
        assert judge.bodies[0].keys() == {"model", "messages"}
        assert set(judge.keys) == {"Bearer secret"}
        evaluate(*arguments, MY_KEY="secret")
        assert len(judge.bodies) == 7, "no verdict is asked for twice"
    ensembles = summary(tmp_path / "out")["ensembles"]
    assert {name: row["average"] for name, row in ensembles.items()} == {
        "the judge alone, text only": 75.0, "complement": 75.0, "decision": 50.0,
    }  # fmt: skip
    described = {"model": "scripted-1", "url": judge.url, "parameters": {}}
    assert summary(tmp_path / "out")["judge"] == described
    assert rows(tmp_path / "out" / "judge_answers.jsonl")[0]["metadata"]["judge"] == "judge-2026-11"
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_failing_judge_is_asked_again_and_later_only_for_what_is_missing(data: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        if number == 0:
            return error(500, "try again")
        return error(400, "refused") if "town" in prompt_of(body) and number < 8 else verdict(body, number)

    with scripted_judge(script) as judge:
        arguments = judged(data, tmp_path, judge, "--concurrency", 1)
        assert "1 questions were refused, the first is 3: " in evaluate(*arguments)
        assert len(judge.bodies) == 8, "four questions, one of them twice, and three decisions"
        evaluate(*arguments)
        again = [prompt_of(body) for body in judge.bodies[8:]]
    assert len(again) == 1, "the question that failed, where both then agree"
    assert "town" in again[0]


def test_a_judge_without_temperature_is_asked_without_it(data: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any], number: int) -> tuple[int, bytes]:
        return error(400, "temperature is not supported") if "temperature" in body else verdict(body, number)

    with scripted_judge(script) as judge:
        options = ("--judge-temperature", 0.5, "--judge-max-tokens", 99, "--concurrency", 1)
        evaluate(*judged(data, tmp_path, judge, *options))
        assert len(judge.bodies) == 7 + 1
        assert judge.bodies[-1].keys() == {"model", "messages", "max_tokens"}
    row = rows(tmp_path / "out" / "judge_answers.jsonl")[0]
    assert row["metadata"]["parameters"] == {"max_tokens": 99}
    assert summary(tmp_path / "out")["judge"]["parameters"] == {"temperature": 0.5, "max_tokens": 99}


def test_a_judge_s_answers_come_from_files_too(data: Path, result_file: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.json").write_text(
        json.dumps({"results": dict.fromkeys("1234", 0), "outputs": dict.fromkeys("1234", "The answer is A.")})
    )
    (tmp_path / "decisions.jsonl").write_text('{"question_id": "1", "text": "The answer is B."}\n')
    printed = evaluate(
        "scienceqa", *files(data), "--answers", result_file,
        "--judge-answers", tmp_path / "judge.json", "--judge-decisions", tmp_path / "decisions.jsonl",
    )  # fmt: skip
    assert "with the judge: decision" in printed


def test_a_judge_without_a_name_is_refused(data: Path, result_file: Path) -> None:
    arguments = ["scienceqa", *files(data), "--answers", result_file, "--judge-url", "http://127.0.0.1:1/v1"]
    assert "--judge-model names the judge" in evaluate(*arguments, "--output", data / "out", status=1)
