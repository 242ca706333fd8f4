"""Measures the committed demo model on held-out questions, with three controls.

    python demo/recipe/evaluate.py [--limit N] [--json FILE]

The merged model answers through `llava-serving evaluate vqa`. The service loads neither part alone: transformers
generates their answers. The rule of that command says which answers are right. On a sample, the script compares the
service's answers with those that transformers generates with the merged model.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from dialogues import Dialogues
from heldout import Example, easy_vqa_test, new_scenes, unseen_digits
from layout import DEMO
from reference import Variant, load_model, pixels
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_serving.evaluation.vqa.match import is_match
from llava_serving.inputs.templates import V0

SCENES = 400
BATCH = 64
GREEDY_SAMPLE = 100
SPARE_TOKENS = 4  # a right answer may have an article and a mark more than the reference; a longer one is wrong
MAX_NEW_TOKENS = 32
SENTENCE = "The sky is blue and the grass is green. There are seven days in a week and twelve months in a year."
PACKAGES = ("easy-vqa", "numpy", "pillow", "scikit-learn", "sentencepiece", "torch", "transformers")
PARTS: tuple[Variant, ...] = ("base alone", "delta alone")
OTHER_IMAGE = "merged, another picture"

Sets = dict[str, list[Example]]
Answers = dict[str, list[str]]  # of each set, in the order of its examples
Item = TypeVar("Item")
Counts = dict[str, tuple[int, int]]  # kind of question -> (right answers, questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="number of questions of each set, evenly spread; default: all")
    parser.add_argument("--json", type=Path, help="write counts, versions and the command here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {
        "easy-VQA test": _spread(easy_vqa_test(), arguments.limit),
        "new scenes": _spread(new_scenes(SCENES), arguments.limit),
        "unseen digits": _spread(unseen_digits(), arguments.limit),
    }
    report = measure(sets)
    print(_tables(report["right"]))
    print(f"\nLoss on an ordinary sentence (guessing: {report['chance']:.2f}): {report['sentence_loss']}")
    print(f"transformers generates the service's answer to {report['greedy_agrees']} of {report['greedy_asked']}")
    if arguments.json:
        command = " ".join(["python", "demo/recipe/evaluate.py", *sys.argv[1:]])
        versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
        content = {"command": command, "versions": versions, **report}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@torch.inference_mode()
def measure(sets: Sets) -> dict[str, Any]:
    """Returns the counts by model, set and kind of question, the sentence losses, and the check with transformers."""
    dialogues = Dialogues(DEMO / "delta" / "tokenizer.model")
    answers: dict[str, Answers] = {"merged": service_answers(sets)}
    losses = {}
    for variant in ("merged", *PARTS):
        print(f"measuring: {variant}", file=sys.stderr)
        model = load_model(DEMO, variant)
        losses[variant] = round(_sentence_loss(model, dialogues), 3)
        if variant == "merged":
            agrees = _agreement(model, dialogues, sets, answers["merged"])
        else:
            answers[variant] = {
                name: generate(model, dialogues, examples, SPARE_TOKENS) for name, examples in sets.items()
            }
    answers[OTHER_IMAGE] = service_answers({name: _with_other_images(examples) for name, examples in sets.items()})
    right = {
        model_name: {name: count_right(sets[name], texts) for name, texts in by_set.items()}
        for model_name, by_set in answers.items()
    }
    return {
        "right": right, "sentence_loss": losses, "chance": math.log(dialogues.text.vocab_size()),
        "greedy_agrees": sum(agrees), "greedy_asked": len(agrees),
    }  # fmt: skip


def service_answers(sets: Sets, environment: Mapping[str, str] | None = None) -> Answers:
    """Returns the answers of the service's command, which loads the demo model. `environment` has its settings."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_questions(sets, folder)
        command = [
            sys.executable, "-m", "llava_serving", "evaluate", "vqa", "--model-dir", str(DEMO),
            "--questions", str(folder / "questions.jsonl"), "--pictures", str(folder), "--output", str(folder / "out"),
        ]  # fmt: skip
        source = str(DEMO.parent / "src")
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source, **(environment or {})})
        rows = map(json.loads, (folder / "out" / "answers.jsonl").read_text("utf-8").splitlines())
        texts = {row["question_id"]: row["text"] for row in rows}
        return {name: [texts[f"{name} {i}"] for i in range(len(examples))] for name, examples in sets.items()}


def _write_questions(sets: Sets, folder: Path) -> None:
    """Writes the examples in the format of `evaluate vqa`, and each picture once."""
    files: dict[int, str] = {}
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as out:
        for name, examples in sets.items():
            for i, example in enumerate(examples):
                if id(example.image) not in files:
                    files[id(example.image)] = f"{len(files)}.png"
                    example.image.save(folder / files[id(example.image)])
                row = {
                    "question_id": f"{name} {i}", "image": files[id(example.image)], "question": example.question,
                    "answers": [example.answer], "category": f"{name}: {example.kind}",
                }  # fmt: skip
                out.write(json.dumps(row) + "\n")


def generate(
    model: LlavaForConditionalGeneration, dialogues: Dialogues, examples: list[Example], spare_tokens: int
) -> list[str]:
    """Returns the answers that transformers generates, greedily, cut off at `spare_tokens` more than the reference."""
    by_length: dict[tuple[int, int], list[int]] = defaultdict(list)  # batches of one length need no padding
    prompts = [dialogues.question(example.question, with_image=True) for example in examples]
    for i, example in enumerate(examples):
        by_length[len(prompts[i]), len(dialogues.answer(example.answer))].append(i)
    answers = [""] * len(examples)
    for (_, answer_length), members in by_length.items():
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            images = pixels(DEMO, [examples[i].image for i in batch])
            generated = _generate_batch(
                model, dialogues, torch.tensor([prompts[i] for i in batch]), images, answer_length + spare_tokens
            )
            for i, ids in zip(batch, generated, strict=True):
                answers[i] = _text(dialogues, ids)
    return answers


def _generate_batch(
    model: LlavaForConditionalGeneration, dialogues: Dialogues, prompts: torch.Tensor, images: torch.Tensor, tokens: int
) -> list[list[int]]:
    """Returns the new token ids after each of the `prompts` (batch, ids)."""
    size = dialogues.text.vocab_size()
    generated = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), pixel_values=images, max_new_tokens=tokens,
        do_sample=False, pad_token_id=0, eos_token_id=[2, *dialogues.answer("")[-1:]],
        suppress_tokens=list(range(size, size + 3)),  # the service never generates an added token
    )  # fmt: skip
    ids: list[list[int]] = generated[:, prompts.shape[1] :].tolist()
    return ids


def _text(dialogues: Dialogues, ids: list[int]) -> str:
    """Returns the text of generated ids up to the separator or the end-of-text token, stripped."""
    end = ids.index(2) if 2 in ids else len(ids)
    text = b"".join(dialogues.tokenizer.token_bytes(token) for token in ids[:end])
    return text.decode(errors="replace").split(V0.separator)[0].strip()


def _agreement(model: LlavaForConditionalGeneration, dialogues: Dialogues, sets: Sets, answers: Answers) -> list[bool]:
    """Returns for a sample of each set whether transformers generates the service's answer."""
    sample = [(name, i) for name, examples in sets.items() for i in _spread(range(len(examples)), GREEDY_SAMPLE)]
    texts = generate(model, dialogues, [sets[name][i] for name, i in sample], MAX_NEW_TOKENS)
    return [text == answers[name][i] for text, (name, i) in zip(texts, sample, strict=True)]


def _sentence_loss(model: LlavaForConditionalGeneration, dialogues: Dialogues) -> float:
    ids = torch.tensor([dialogues.encode([SENTENCE])])
    logits = model(input_ids=ids).logits[0, :-1]
    return float(functional.cross_entropy(logits, ids[0, 1:]))


def _with_other_images(examples: list[Example]) -> list[Example]:
    """Gives each question the image half a set away, to measure guesses from the question alone."""
    half = len(examples) // 2
    return [example._replace(image=examples[i - half].image) for i, example in enumerate(examples)]


def _spread(items: Iterable[Item], limit: int | None) -> list[Item]:
    every = list(items)
    if limit is None or limit >= len(every):
        return every
    return [every[i * len(every) // limit] for i in range(limit)]


def count_right(examples: list[Example], answers: list[str]) -> Counts:
    """Returns the numbers of right answers and of questions, of all and by kind of question."""
    total = Counter(example.kind for example in examples)
    right = Counter(
        example.kind for example, text in zip(examples, answers, strict=True) if is_match(text, [example.answer])
    )
    return {"all": (sum(right.values()), len(examples))} | {kind: (right[kind], total[kind]) for kind in sorted(total)}


def _tables(right: dict[str, dict[str, Counts]]) -> str:
    """Returns a table of models by sets, and one of the merged model by kinds of question."""
    sets = list(right["merged"])
    sizes = [f"{name} (n = {right['merged'][name]['all'][1]:,})" for name in sets]
    lines = [_row("", *sizes), _row(*["---"] * (1 + len(sets)))]
    lines += [_row(model, *(_share(counts[name]["all"]) for name in sets)) for model, counts in right.items()]
    lines += ["", _row("merged, by kind of question", "n", "right"), _row(*["---"] * 3)]
    for name in sets:
        kinds = {kind: counts for kind, counts in right["merged"][name].items() if kind != "all"}
        lines += [_row(f"{name}: {kind}", f"{counts[1]:,}", _share(counts)) for kind, counts in kinds.items()]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _share(counts: tuple[int, int]) -> str:
    return f"{counts[0] / counts[1]:.1%}"


if __name__ == "__main__":
    main()
