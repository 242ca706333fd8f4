"""Exact greedy answers of the demo model, by the engine that the service runs.

The questions are those that no training step saw (demo/recipe/heldout.py). Whether an answer is right is decided as in
`llava-serving evaluate vqa`.
"""

import argparse
import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from evaluate import SCENES
from heldout import Example, easy_vqa_test, new_scenes, unseen_digits
from servers import ROOT

from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.evaluation.vqa.match import is_match
from llava_serving.inputs.prompt import ImageSource, TextInput, question_prompt
from llava_serving.service.engine_builder import build_model_runner, engine_of
from llava_serving.service.self_check import runner_logits, sentence_ids
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel
from llava_serving.weights.model_folder import PartsFolder
from llava_serving.weights.sentence_loss import next_token_loss

from .setting import kv_cache_dtype, linear_bytes, load

MAX_NEW_TOKENS = 32
REQUEST = 500  # prompts that are submitted together


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)  # as the service does for a model of this size
    sets = {
        "easy-VQA test": list(easy_vqa_test()), "new scenes": list(new_scenes(SCENES)),
        "unseen digits": list(unseen_digits()),
    }  # fmt: skip
    return {setting: _measure(setting, sets) for setting in arguments.settings}


def _measure(setting: str, sets: dict[str, list[Example]]) -> dict[str, Any]:
    loaded = load(PartsFolder(ROOT / "demo"), setting)
    num_bytes = linear_bytes(loaded.model)
    settings = Settings(device="cpu", max_queued_seqs=REQUEST, kv_cache_dtype=kv_cache_dtype(setting))
    built = build_model_runner(loaded, settings)
    loss = next_token_loss(runner_logits(loaded, built.runner), torch.tensor(sentence_ids(loaded)))
    engine = engine_of(built, loaded, settings)
    engine.start()
    started = time.monotonic()
    right = {name: [sum(_verdicts(engine, loaded, examples)), len(examples)] for name, examples in sets.items()}
    seconds = time.monotonic() - started
    engine.stop()
    return {
        "sentence_loss": round(loss, 4), "linear_bytes": num_bytes, "right": right, "seconds": round(seconds, 1)
    }  # fmt: skip


def _verdicts(engine: Engine, loaded: LoadedModel, examples: list[Example]) -> Iterator[bool]:
    for start in range(0, len(examples), REQUEST):
        some = examples[start : start + REQUEST]
        handle = RequestHandle()
        engine.submit([_prompt(loaded, example) for example in some], handle)
        for completion, example in zip(handle.result(), some, strict=True):
            yield is_match(completion.text, [example.answer])


def _prompt(loaded: LoadedModel, example: Example) -> EnginePrompt:
    template = loaded.template
    question = question_prompt(TextInput(example.question, (ImageSource("", ""),), ""), template)
    encoded = loaded.tokenizer.encode(question.segments)
    pixels = loaded.preprocessor(example.image.convert("RGB"))
    digest = blake2b(pixels.tobytes(), digest_size=16).digest()
    image = PromptImage(
        encoded.image_starts[0], loaded.tokenizer.image.count, digest, torch.from_numpy(pixels)
    )  # fmt: skip
    stop = () if template.separator is None else (template.separator,)
    return EnginePrompt(encoded.token_ids, (image,), SamplingParams(MAX_NEW_TOKENS, stop=stop))
