"""Measures the committed demo model on held-out questions, with three controls.

    python demo/recipe/evaluate.py [--limit N] [--json FILE]

An answer is right if the model's greedy answer equals the right answer and the separator, token by token. One forward
pass over the right answer decides this: each of its tokens must be the most likely one after the tokens before it. On a
sample, the script compares these verdicts with transformers' greedy generation.
"""

import argparse
import copy
import importlib.metadata
import json
import math
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from dialogues import Dialogues
from heldout import Example, easy_vqa_test, new_scenes, unseen_digits
from layout import DEMO
from reference import Variant, load_model, pixels
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_serving.inputs.templates import V0

SCENES = 400
BATCH = 64
GREEDY_SAMPLE = 100
SENTENCE = "The sky is blue and the grass is green. There are seven days in a week and twelve months in a year."
PACKAGES = ("easy-vqa", "numpy", "pillow", "scikit-learn", "sentencepiece", "torch", "transformers")
VARIANTS: tuple[Variant, ...] = ("merged", "base alone", "delta alone")
OTHER_IMAGE = "merged, another picture"

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
    print(
        f"Greedy generation agrees with the one-pass verdict on {report['greedy_agrees']} of {report['greedy_asked']}"
    )
    if arguments.json:
        command = " ".join(["python", "demo/recipe/evaluate.py", *sys.argv[1:]])
        versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
        content = {"command": command, "versions": versions, **report}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@torch.inference_mode()
def measure(sets: dict[str, list[Example]]) -> dict[str, Any]:
    """Returns the counts by model, set and kind of question, the sentence losses, and the check with generation."""
    dialogues = Dialogues(DEMO / "delta" / "tokenizer.model")
    right: dict[str, dict[str, Counts]] = {}
    losses = {}
    for variant in VARIANTS:
        print(f"measuring: {variant}", file=sys.stderr)
        model = load_model(DEMO, variant)
        losses[variant] = round(_sentence_loss(model, dialogues), 3)
        right[variant] = {
            name: _count(examples, verdicts(model, dialogues, examples)) for name, examples in sets.items()
        }
    model = load_model(DEMO, "merged")
    for name, examples in sets.items():
        counts = _count(examples, verdicts(model, dialogues, _with_other_images(examples)))
        right.setdefault(OTHER_IMAGE, {})[name] = counts
    sample = [example for examples in sets.values() for example in _spread(examples, GREEDY_SAMPLE)]
    agrees = sum(
        verdict == (greedy(model, dialogues, example) == example.answer)
        for verdict, example in zip(verdicts(model, dialogues, sample), sample, strict=True)
    )
    return {
        "right": right, "sentence_loss": losses, "chance": math.log(dialogues.text.vocab_size()),
        "greedy_agrees": agrees, "greedy_asked": len(sample),
    }  # fmt: skip


def verdicts(model: LlavaForConditionalGeneration, dialogues: Dialogues, examples: list[Example]) -> list[bool]:
    """Returns for each example whether the model's complete greedy answer is right.

    Computes the keys and values of the system text once, because every prompt begins with it.
    """
    prefix_cache = model(input_ids=torch.tensor([dialogues.prefix]), use_cache=True).past_key_values
    by_length: dict[tuple[int, int], list[int]] = defaultdict(list)  # batches of one length need no padding
    encoded = []
    for i, example in enumerate(examples):
        prompt, answer = dialogues.question(example.question, with_image=True), dialogues.answer(example.answer)
        assert prompt[: len(dialogues.prefix)] == dialogues.prefix
        encoded.append((prompt + answer)[len(dialogues.prefix) :])
        by_length[len(prompt), len(answer)].append(i)
    is_right = [False] * len(examples)
    for (_, answer_length), members in by_length.items():
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            ids = torch.tensor([encoded[i] for i in batch])
            images = pixels(DEMO, [examples[i].image for i in batch])
            cache = copy.deepcopy(prefix_cache)
            cache.batch_repeat_interleave(len(batch))
            output = model(
                input_ids=ids, pixel_values=images, past_key_values=cache, logits_to_keep=answer_length + 1
            )  # fmt: skip
            # The service never generates an added token.
            best = output.logits[:, :-1, : dialogues.text.vocab_size()].argmax(-1)
            for i, equal in zip(batch, (best == ids[:, -answer_length:]).all(1).tolist(), strict=True):
                is_right[i] = equal
    return is_right


@torch.inference_mode()
def greedy(model: LlavaForConditionalGeneration, dialogues: Dialogues, example: Example) -> str:
    """Returns the answer that transformers generates, cut at the separator."""
    prompt = dialogues.question(example.question, with_image=True)
    size = dialogues.text.vocab_size()
    generated = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
        pixel_values=pixels(DEMO, [example.image]), max_new_tokens=32, do_sample=False, pad_token_id=0,
        eos_token_id=[2, *dialogues.answer("")[-1:]], suppress_tokens=list(range(size, size + 3)),
    )  # fmt: skip
    answer = b"".join(dialogues.tokenizer.token_bytes(int(i)) for i in generated[0, len(prompt) :])
    return answer.decode(errors="replace").split(V0.separator)[0].strip()


def _sentence_loss(model: LlavaForConditionalGeneration, dialogues: Dialogues) -> float:
    ids = torch.tensor([dialogues.encode([SENTENCE])])
    logits = model(input_ids=ids).logits[0, :-1]
    return float(functional.cross_entropy(logits, ids[0, 1:]))


def _with_other_images(examples: list[Example]) -> list[Example]:
    """Gives each question the image half a set away, to measure guesses from the question alone."""
    half = len(examples) // 2
    return [example._replace(image=examples[i - half].image) for i, example in enumerate(examples)]


def _spread(examples: Iterable[Example], limit: int | None) -> list[Example]:
    all_examples = list(examples)
    if limit is None or limit >= len(all_examples):
        return all_examples
    return [all_examples[i * len(all_examples) // limit] for i in range(limit)]


def _count(examples: list[Example], is_right: list[bool]) -> Counts:
    total = Counter(example.kind for example in examples)
    right = Counter(example.kind for example, ok in zip(examples, is_right, strict=True) if ok)
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
