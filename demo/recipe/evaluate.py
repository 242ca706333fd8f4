"""Measures the committed demo model on questions it never saw, beside three controls.

    python demo/recipe/evaluate.py [--limit N] [--json FILE]

An answer is right if the model's greedy answer is the whole right answer and the separator, token by token. One pass
with the right answer in place tells that: each of its tokens has to be the likeliest after those before it. On a
sample the same is asked of transformers' own greedy generation.
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
from reference import Variant, load, pixels
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from llava_serving.inputs.templates import V0

SCENES = 400
BATCH = 64
GREEDY_SAMPLE = 100
SENTENCE = "The sky is blue and the grass is green. There are seven days in a week and twelve months in a year."
PACKAGES = ("easy-vqa", "numpy", "pillow", "scikit-learn", "sentencepiece", "torch", "transformers")
VARIANTS: tuple[Variant, ...] = ("merged", "base alone", "delta alone")
OTHER_PICTURE = "merged, another picture"

Counts = dict[str, tuple[int, int]]  # kind of question -> right, asked


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--limit", type=int, help="so many questions of each set, evenly spread; all by default")
    arguments.add_argument("--json", type=Path, help="write counts, versions and the command here")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    sets = {
        "easy-VQA test": _spread(easy_vqa_test(), options.limit),
        "new scenes": _spread(new_scenes(SCENES), options.limit),
        "unseen digits": _spread(unseen_digits(), options.limit),
    }
    report = measure(sets)
    print(_tables(report["right"]))
    print(f"\nLoss on an ordinary sentence (guessing: {report['chance']:.2f}): {report['sentence_loss']}")
    print(
        f"Greedy generation agrees with the one-pass verdict on {report['greedy_agrees']} of {report['greedy_asked']}"
    )
    if options.json:
        command = " ".join(["python", "demo/recipe/evaluate.py", *sys.argv[1:]])
        versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
        content = {"command": command, "versions": versions, **report}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@torch.inference_mode()
def measure(sets: dict[str, list[Example]]) -> dict[str, Any]:
    """Right and asked by model, set and kind of question, and the two checks on the side."""
    dialogues = Dialogues(DEMO / "delta" / "tokenizer.model")
    right: dict[str, dict[str, Counts]] = {}
    losses = {}
    for variant in VARIANTS:
        print(f"asking: {variant}", file=sys.stderr)
        model = load(DEMO, variant)
        losses[variant] = round(_sentence_loss(model, dialogues), 3)
        right[variant] = {
            name: _count(examples, verdicts(model, dialogues, examples)) for name, examples in sets.items()
        }
    model = load(DEMO, "merged")
    right[OTHER_PICTURE] = {
        name: _count(examples, verdicts(model, dialogues, _other_pictures(examples))) for name, examples in sets.items()
    }
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
    """Whether the model's whole greedy answer is right, for each example.

    Every prompt begins with the same system text; its keys and values are computed once.
    """
    opening = model(input_ids=torch.tensor([dialogues.prefix]), use_cache=True).past_key_values
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)  # one length a batch needs no padding
    encoded = []
    for i, example in enumerate(examples):
        prompt, answer = dialogues.question(example.question, with_picture=True), dialogues.answer(example.answer)
        assert prompt[: len(dialogues.prefix)] == dialogues.prefix
        encoded.append((prompt + answer)[len(dialogues.prefix) :])
        alike[len(prompt), len(answer)].append(i)
    found = [False] * len(examples)
    for (_, answer_length), members in alike.items():
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            ids = torch.tensor([encoded[i] for i in part])
            seen = pixels(DEMO, [examples[i].picture for i in part])
            cache = copy.deepcopy(opening)
            cache.batch_repeat_interleave(len(part))
            answered = model(
                input_ids=ids, pixel_values=seen, past_key_values=cache, logits_to_keep=answer_length + 1
            )  # fmt: skip
            # The service never lets an added token be generated.
            best = answered.logits[:, :-1, : dialogues.text.vocab_size()].argmax(-1)
            for i, same in zip(part, (best == ids[:, -answer_length:]).all(1).tolist(), strict=True):
                found[i] = same
    return found


@torch.inference_mode()
def greedy(model: LlavaForConditionalGeneration, dialogues: Dialogues, example: Example) -> str:
    """The answer that transformers generates, cut at the separator."""
    prompt = dialogues.question(example.question, with_picture=True)
    size = dialogues.text.vocab_size()
    written = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
        pixel_values=pixels(DEMO, [example.picture]), max_new_tokens=32, do_sample=False, pad_token_id=0,
        eos_token_id=[2, *dialogues.answer("")[-1:]], suppress_tokens=list(range(size, size + 3)),
    )  # fmt: skip
    text = b"".join(dialogues.tokenizer.token_bytes(int(i)) for i in written[0, len(prompt) :]).decode(errors="replace")
    return text.split(V0.separator)[0].strip()


def _sentence_loss(model: LlavaForConditionalGeneration, dialogues: Dialogues) -> float:
    ids = torch.tensor([dialogues.encode([SENTENCE])])
    logits = model(input_ids=ids).logits[0, :-1]
    return float(functional.cross_entropy(logits, ids[0, 1:]))


def _other_pictures(examples: list[Example]) -> list[Example]:
    """Each question with the picture of one half the set away: what guessing from the question alone gets."""
    half = len(examples) // 2
    return [example._replace(picture=examples[i - half].picture) for i, example in enumerate(examples)]


def _spread(examples: Iterable[Example], limit: int | None) -> list[Example]:
    every = list(examples)
    if limit is None or limit >= len(every):
        return every
    return [every[i * len(every) // limit] for i in range(limit)]


def _count(examples: list[Example], found: list[bool]) -> Counts:
    asked, right = (
        Counter(e.kind for e in examples),
        Counter(e.kind for e, ok in zip(examples, found, strict=True) if ok),
    )
    return {"all": (sum(right.values()), len(examples))} | {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def _tables(right: dict[str, dict[str, Counts]]) -> str:
    """Models by sets, and the merged model by kinds of question."""
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
