"""`llava-serving evaluate vqa` on easy-VQA's test questions, with the demo service and with the demo model itself."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from evaluate_command import command, environment, evaluate, rows, score_url, summary
from heldout import easy_vqa_test
from server import Server

from llava_serving.weights.model_folder import DEMO


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """easy-VQA's test questions in the format of the command: two files of 60 and of 600 questions."""
    folder = tmp_path_factory.mktemp("easy-vqa")
    examples = list(easy_vqa_test())
    for name, count in (("few", 60), ("many", 600)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for i, example in enumerate(examples[:: len(examples) // count][:count]):
                example.image.save(folder / f"{name}{i}.png")
                row = {
                    "question_id": i, "image": f"{name}{i}.png", "question": example.question,
                    "answers": [f"The {example.answer}."], "category": example.kind,
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
    return folder


def vqa(data: Path, name: str, output: Path, *source: object) -> tuple[object, ...]:
    return ("vqa", "--questions", data / f"{name}.jsonl", "--pictures", data, "--output", output, *source)


def test_an_endpoint_and_a_folder_of_the_same_model_have_the_same_accuracy(
    demo_server: Server, data: Path, tmp_path: Path
) -> None:
    printed = evaluate(*vqa(data, "few", tmp_path / "url", "--url", score_url(demo_server)))
    evaluate(*vqa(data, "few", tmp_path / "folder", "--model-dir", DEMO))
    asked, loaded = summary(tmp_path / "url"), summary(tmp_path / "folder")
    assert asked["count"] == {"all": 60, **{kind: asked["count"][kind] for kind in ("open", "yes/no")}}
    assert asked["accuracy"]["all"] >= 90
    assert f"{asked['right']['all']} of 60" in printed
    for figure in ("count", "right", "accuracy", "unanswered"):
        assert loaded[figure] == asked[figure]
    texts = [
        {row["question_id"]: row["text"] for row in rows(tmp_path / name / "answers.jsonl")}
        for name in ("url", "folder")
    ]
    assert texts[0] == texts[1]


def test_a_killed_run_keeps_its_answers_and_asks_the_rest_only(demo_server: Server, data: Path, tmp_path: Path) -> None:
    arguments = vqa(data, "many", tmp_path, "--url", score_url(demo_server), "--concurrency", "2")
    answers = tmp_path / "answers.jsonl"
    process = subprocess.Popen(command(*arguments), env=environment(), stderr=subprocess.DEVNULL)
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with answers.open("ab") as file:
        file.write(b'{"question_id": "half a li')  # what a cut write leaves behind
    kept = [row["answer_id"] for row in rows_before_the_last(answers)]
    assert 20 <= len(kept) < 600
    evaluate(*vqa(data, "many", tmp_path, "--url", score_url(demo_server)))
    written = rows(answers)
    assert [row["answer_id"] for row in written][: len(kept)] == kept
    assert sorted(int(row["question_id"]) for row in written) == list(range(600))
    assert summary(tmp_path)["unanswered"] == 0
    before = answers.read_bytes()
    evaluate(*vqa(data, "many", tmp_path, "--url", score_url(demo_server)))
    assert answers.read_bytes() == before, "a complete run asks nothing again"


def rows_before_the_last(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def test_other_settings_ask_again(demo_server: Server, data: Path, tmp_path: Path) -> None:
    source = ("--url", score_url(demo_server))
    evaluate(*vqa(data, "few", tmp_path, *source))
    evaluate(*vqa(data, "few", tmp_path, *source, "--max-new-tokens", "1"))
    assert len(rows(tmp_path / "answers.jsonl")) == 120
    assert summary(tmp_path)["parameters"]["max_new_tokens"] == 1


def test_a_refused_question_is_unanswered_and_wrong_and_the_others_go_on(
    demo_server: Server, data: Path, tmp_path: Path
) -> None:
    good = (data / "few.jsonl").read_text("utf-8").splitlines()[:3]
    long = json.loads(good[0]) | {"question_id": "long", "question": "why " * 2000}
    (data / "refused.jsonl").write_text("\n".join([*good, json.dumps(long)]), "utf-8")
    printed = evaluate(*vqa(data, "refused", tmp_path, "--url", score_url(demo_server)))
    assert "1 questions were refused, the first is long" in printed
    figures = summary(tmp_path)
    assert (figures["unanswered"], figures["count"]["all"]) == (1, 4)
    assert figures["accuracy"]["all"] <= 75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://127.0.0.1:1/score", "--model-dir", DEMO], "give either --url"),
        ([], "give either --url"),
        (["--url", "127.0.0.1/score"], "is not a URL"),
        (["--url", "http://127.0.0.1:1/score", "--concurrency", "0"], "--concurrency must be 1 or more"),
        (["--model-dir", "/nowhere"], "there is no folder /nowhere"),
        (["--url", "http://127.0.0.1:1/score", "--pictures", DEMO], "lacks 60 of 60 pictures, the first is few0.png"),
        (["--url", "http://127.0.0.1:1/score", "--questions", "/nowhere.jsonl"], "there is no file /nowhere.jsonl"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_question(
    data: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    assert message in evaluate(*vqa(data, "few", tmp_path / "out", *arguments), status=1)


def test_an_endpoint_that_fails_ends_the_run(demo_server: Server, data: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{demo_server.port}/nothing"
    printed = evaluate(*vqa(data, "few", tmp_path, "--url", url), status=1)
    assert "404" in printed
    assert "run the same command again to continue" in printed
    assert not (tmp_path / "summary.json").exists()
