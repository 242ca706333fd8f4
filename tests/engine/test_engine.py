"""The engine on the random checkpoint, held against stock transformers, and against itself under memory pressure."""

import hashlib
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from PIL import Image as Picture
from reference import Reference, stock_config
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.completion import Completion
from llava_serving.engine.engine import Engine
from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle, TextDelta
from llava_serving.errors import InternalError, Overloaded, RequestError, Unavailable
from llava_serving.model import runner_builder
from llava_serving.service.engine_builder import build_engine
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import DEMO, MergedFolder, PartsFolder

GREEDY = SamplingParams(max_new_tokens=24)
SAMPLING = replace(GREEDY, temperature=1.0, seed=7)
ENDLESS = replace(GREEDY, max_new_tokens=200, ignore_eos=True)


@contextmanager
def running(loaded: LoadedModel, **settings: Any) -> Iterator[Engine]:
    engine = build_engine(loaded, Settings(**settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        engine._scheduler.check_integrity()


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    with running(loaded) as engine:
        yield engine


class Prompts:
    """Prompts for the random checkpoint, and the tokens that stock `generate` gives for them."""

    def __init__(self, loaded: LoadedModel, reference: Reference) -> None:
        self._loaded = loaded
        self._reference = reference
        self._expected: dict[Any, list[int]] = {}

    def build(self, *parts: str | int, params: SamplingParams = GREEDY) -> EnginePrompt:
        """Returns the prompt of these parts: a string is text, an int is the seed of a picture."""
        ids: list[int] = [1]
        images = []
        image_tokens = self._loaded.tokenizer.image
        for part in parts:
            if isinstance(part, str):
                ids += self._reference.sentencepiece.encode(part)
            else:
                start = len(ids) + 1  # after <im_start>
                images.append(image(start, image_tokens.count, self._reference.pixels(picture(part))[0]))
                ids += self._reference.image_ids()
        return EnginePrompt(tuple(ids), tuple(images), params)

    def expected(self, engine_prompt: EnginePrompt) -> list[int]:
        key = (
            engine_prompt.token_ids,
            *(image.digest for image in engine_prompt.images),
            engine_prompt.params.max_new_tokens,
        )
        if key not in self._expected:
            self._expected[key] = self._generate(engine_prompt)
        return self._expected[key]

    def _generate(self, engine_prompt: EnginePrompt) -> list[int]:
        pixels = torch.stack([image.pixels for image in engine_prompt.images]) if engine_prompt.images else None
        return self._reference.greedy(list(engine_prompt.token_ids), pixels, engine_prompt.params.max_new_tokens)


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel, reference: Reference) -> Prompts:
    return Prompts(loaded, reference)


def image(start: int, length: int, pixels: torch.Tensor) -> PromptImage:
    return PromptImage(start, length, hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest(), pixels)


def picture(seed: int) -> Picture.Image:
    noise = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Picture.fromarray(noise.numpy())


def begin(engine: Engine, *engine_prompts: EnginePrompt, **options: Any) -> RequestHandle:
    """Submits one request with these prompts."""
    handle = RequestHandle(**options)
    engine.submit(list(engine_prompts), handle)
    return handle


def only(handle: RequestHandle) -> Completion:
    (completion,) = handle.result()
    return completion


def tokens(engine: Engine, engine_prompt: EnginePrompt) -> list[int]:
    return list(only(begin(engine, engine_prompt)).token_ids)


TEXTS = ["The sky", "", "What color is it? 12", "See the sea " * 12]


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_tokens_equal_stock_generate(engine: Engine, prompts: Prompts, text: str) -> None:
    engine_prompt = prompts.build(text)
    assert tokens(engine, engine_prompt) == prompts.expected(engine_prompt)


@pytest.mark.parametrize("parts", [("See", 1, "So?"), (2,), ("Two", 3, 4, "?"), (5, "and", 5, "again")])
def test_greedy_tokens_equal_stock_generate_with_images(
    engine: Engine, prompts: Prompts, parts: tuple[str | int, ...]
) -> None:
    engine_prompt = prompts.build(*parts)
    assert tokens(engine, engine_prompt) == prompts.expected(engine_prompt)


PRESSURES = {
    "a crowd": {},
    "one at a time": {"max_num_seqs": 1},
    "chunks of 7 tokens": {"max_num_seqs": 7, "max_num_batched_tokens": 7},
    "preempted": {"kv_cache_gib": 0},  # replaced by one context's
    "no prefix cache": {"prefix_caching": False},
    "no image remembered": {"image_cache_size": 0},
}


def mixed(prompts: Prompts) -> list[EnginePrompt]:
    """Returns prompts of many lengths that share a prefix, a picture or nothing."""
    chosen = random.Random(5)
    shared = "You are a helpful assistant. " * 3
    some: list[tuple[str | int, ...]] = [
        *((shared, f"{i}") for i in range(4)),
        *((i % 2, f"What is this? {i}") for i in range(5)),
        *((shared, 7, f"and {i}") for i in range(3)),
        *((f"{i} alone",) for i in range(4)),
    ]
    return [prompts.build(*parts, params=replace(GREEDY, max_new_tokens=chosen.randint(1, 120))) for parts in some]


@pytest.mark.parametrize("pressure", PRESSURES)
def test_greedy_tokens_equal_stock_generate_under_pressure(
    loaded: LoadedModel, prompts: Prompts, pressure: str
) -> None:
    settings: dict[str, Any] = dict(PRESSURES[pressure])
    if pressure == "preempted":
        settings["kv_cache_gib"] = one_context_gib(loaded)
    engine_prompts = mixed(prompts)
    with running(loaded, **settings) as engine:
        leaver = begin(engine, prompts.build("I leave", params=replace(ENDLESS, max_new_tokens=100)))
        handles = [begin(engine, engine_prompt) for engine_prompt in engine_prompts]
        leaver.close()
        answers = [list(only(handle).token_ids) for handle in handles]
        again = [tokens(engine, engine_prompt) for engine_prompt in engine_prompts[::3]]
        assert (engine.stats.preemptions > 0) == (pressure == "preempted")
    expected = [prompts.expected(engine_prompt) for engine_prompt in engine_prompts]
    assert answers == expected
    assert again == expected[::3]  # from the cache


@pytest.mark.parametrize("pressure", ["a crowd", "preempted", "chunks of 7 tokens"])
def test_greedy_tokens_of_a_model_on_several_devices_equal_stock_generate(
    parts_dir: Path, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, pressure: str
) -> None:
    """The model is spread as over several GPUs, with accelerate's hooks on its modules, but on one CPU."""
    loaded = load_model(PartsFolder(parts_dir), "cpu", "float32")
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    parts = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    places |= {f"model.language_model.{part}": "cpu" for part in parts}
    dispatch_model(loaded.model, places, force_hooks=True)
    monkeypatch.setattr(runner_builder, "group_by_device", lambda model: [[layer] for layer in model.layers])
    test_greedy_tokens_equal_stock_generate_under_pressure(loaded, prompts, pressure)


def one_context_gib(loaded: LoadedModel) -> float:
    config = loaded.model.config.text_config
    return 2 * config.num_hidden_layers * config.hidden_size * 4 * config.max_position_embeddings / 2**30


def test_a_picture_is_encoded_and_prefilled_once(loaded: LoadedModel, prompts: Prompts) -> None:
    ten = [prompts.build("Look at this, will you: " * 3, 9, f"{i}?") for i in range(10)]
    with running(loaded) as engine:
        for engine_prompt in ten:
            tokens(engine, engine_prompt)
        stats = engine.stats
    whole = sum(len(engine_prompt.token_ids) for engine_prompt in ten)
    assert stats.prompt_tokens == whole
    assert whole - stats.cached_prompt_tokens < whole / 3
    assert stats.mm_cache_queries - stats.mm_cache_hits == 1


def test_n_sequences_share_their_prompt(loaded: LoadedModel, prompts: Prompts) -> None:
    engine_prompt = prompts.build("A long enough beginning to fill some blocks", 1, params=replace(SAMPLING, n=5))
    for caching in (True, False):
        with running(loaded, prefix_caching=caching) as engine:
            begin(engine, engine_prompt).result()
            begin(engine, engine_prompt).result()
            computed = engine.stats.prompt_tokens - engine.stats.cached_prompt_tokens
        requests = 1 if caching else 2  # without the cache, sequences still share within their request
        assert requests * len(engine_prompt.token_ids) <= computed < requests * len(engine_prompt.token_ids) + 160


def test_different_images_give_different_tokens(engine: Engine, prompts: Prompts) -> None:
    assert len({tuple(tokens(engine, prompts.build(number))) for number in range(5)}) > 1


def test_a_seed_gives_the_same_tokens_alone_and_among_other_requests(engine: Engine, prompts: Prompts) -> None:
    variants = [
        replace(SAMPLING, seed=seed, top_k=top_k, top_p=top_p, repetition_penalty=penalty, n=n)
        for seed, top_k, top_p, penalty, n in
        [(1, 0, 1.0, 1.0, 1), (1, 5, 1.0, 1.0, 1), (2, 0, 0.7, 1.0, 2), (3, 9, 0.9, 1.3, 1), (-4, 0, 1.0, 0.8, 1)]
    ]  # fmt: skip
    engine_prompts = [prompts.build("Once", params=params) for params in variants]
    alone = [begin(engine, engine_prompt).result() for engine_prompt in engine_prompts]
    greedy = [begin(engine, prompts.build(f"{i}")) for i in range(5)]
    crowd = [begin(engine, engine_prompt) for engine_prompt in engine_prompts]
    assert [token_ids(handle.result()) for handle in crowd] == [token_ids(completions) for completions in alone]
    assert len({str(token_ids(completions)) for completions in alone}) == len(variants)
    for handle in greedy:
        handle.result()


def token_ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def test_different_seeds_and_no_seed_give_different_tokens(engine: Engine, prompts: Prompts) -> None:
    seeds = [1, 2, 3, None, None]
    answers = {tuple(tokens(engine, prompts.build("a", params=replace(SAMPLING, seed=s)))) for s in seeds}
    assert len(answers) == len(seeds)


def test_n_sequences_differ_and_the_first_equals_n_1(engine: Engine, prompts: Prompts) -> None:
    several = begin(engine, prompts.build("a", params=replace(SAMPLING, n=3))).result()
    assert len({completion.token_ids for completion in several}) == 3
    assert list(several[0].token_ids) == tokens(engine, prompts.build("a", params=SAMPLING))


def test_max_new_tokens_ends_a_sequence_with_length(engine: Engine, prompts: Prompts) -> None:
    completion = only(begin(engine, prompts.build("a", params=replace(ENDLESS, max_new_tokens=5))))
    assert (completion.num_tokens, completion.finish_reason) == (5, "length")


def test_a_sequence_may_fill_the_context_to_its_last_token(
    engine: Engine, prompts: Prompts, loaded: LoadedModel
) -> None:
    engine_prompt = prompts.build("a b c")
    room = loaded.context_length - len(engine_prompt.token_ids)
    completion = only(begin(engine, replace(engine_prompt, params=replace(ENDLESS, max_new_tokens=room))))
    assert completion.num_tokens == room


def test_a_stop_string_across_tokens_ends_the_text_before_it(engine: Engine, prompts: Prompts) -> None:
    params = replace(SAMPLING, ignore_eos=True, max_new_tokens=40)
    free = only(begin(engine, prompts.build("a", params=params)))
    stop = free.text[10:16]
    stopped = only(begin(engine, prompts.build("a", params=replace(params, stop=(stop,)))))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.num_tokens < free.num_tokens


def test_a_stop_string_before_min_new_tokens_does_not_stop(engine: Engine, prompts: Prompts) -> None:
    params = replace(SAMPLING, ignore_eos=True, max_new_tokens=40)
    text = only(begin(engine, prompts.build("a", params=params))).text
    late = replace(params, stop=(text[3:5],), min_new_tokens=30)
    assert only(begin(engine, prompts.build("a", params=late))).num_tokens >= 30


def test_logprobs_equal_the_model_s_log_softmax(engine: Engine, prompts: Prompts, reference: Reference) -> None:
    params = replace(GREEDY, logprobs=2, repetition_penalty=1.7, max_new_tokens=6)
    engine_prompt = prompts.build("The sky", params=params)
    plain = [begin(engine, prompts.build(f"{i}")) for i in range(3)]
    completion = only(begin(engine, engine_prompt))
    whole = torch.tensor([[*engine_prompt.token_ids, *completion.token_ids]])
    with torch.inference_mode():
        logits = reference.model(input_ids=whole).logits
    expected = logits[0, len(engine_prompt.token_ids) - 1 : -1].log_softmax(-1)
    for row, token, reported in zip(expected, completion.token_ids, completion.logprobs, strict=True):
        assert reported.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = [alternative.logprob for alternative in reported.alternatives]
        assert best == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
    assert not any(only(handle).logprobs for handle in plain)


def test_streamed_deltas_add_up_to_the_text(engine: Engine, prompts: Prompts) -> None:
    params = replace(SAMPLING, ignore_eos=True, max_new_tokens=40, n=2)
    text = only(begin(engine, prompts.build("a", params=replace(params, n=1)))).text
    engine_prompt = prompts.build("a", params=replace(params, stop=(text[20:26],), logprobs=0))
    pieces: dict[int, list[TextDelta]] = {0: [], 1: []}
    ends = {}
    for event in begin(engine, engine_prompt, streaming=True):
        if isinstance(event, Completion):
            ends[event.index] = event
        else:
            assert event.index not in ends
            pieces[event.index].append(event)
    for index, completion in ends.items():
        assert "".join(piece.text for piece in pieces[index]) == completion.text
        assert tuple(logprob for piece in pieces[index] for logprob in piece.logprobs) == completion.logprobs
        assert len(pieces[index]) > 1
    assert sorted(ends) == [0, 1]


def test_a_cancelled_request_frees_its_place_and_its_blocks(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded, max_num_seqs=1, max_queued_seqs=0, max_sequences=1) as engine:
        for leave in (RequestHandle.close, lambda handle: setattr(handle, "is_disconnected", lambda: True)):
            handle = begin(engine, prompts.build("a", params=ENDLESS), streaming=True)
            next(iter(handle))
            with pytest.raises(Overloaded):
                begin(engine, prompts.build("b"))
            leave(handle)
            *_, end = handle
            assert isinstance(end, Completion)
            assert end.finish_reason == "cancelled"
            assert 0 < end.num_tokens < ENDLESS.max_new_tokens
            assert engine.stats.kv_cache_usage == 0
            tokens(engine, prompts.build("b"))


def test_a_deadline_ends_a_request_with_the_text_so_far(engine: Engine, prompts: Prompts) -> None:
    handle = begin(engine, prompts.build("a", params=ENDLESS), streaming=True)
    next(iter(handle))
    handle.deadline = 0.0
    *_, end = handle
    assert isinstance(end, Completion)
    assert end.finish_reason == "deadline"
    full = only(begin(engine, prompts.build("a", params=ENDLESS))).text
    assert full.startswith(end.text)


def test_a_draining_engine_refuses_requests_and_ends_live_ones(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded) as engine:
        ending = begin(engine, prompts.build("a"))
        endless = begin(engine, prompts.build("b", params=ENDLESS), streaming=True)
        next(iter(endless))
        assert only(ending).finish_reason in ("stop", "length")
        engine.drain(0.0)
        with pytest.raises(Unavailable):
            begin(engine, prompts.build("c"))
        *_, end = endless
        assert isinstance(end, Completion)
        assert end.finish_reason == "deadline"


class Broken:
    """Wraps a runner, and fails when the test says so."""

    def __init__(self, engine: Engine) -> None:
        self._runner = engine._runner
        self.fails: Callable[[], bool] = lambda: False
        self.device_failed = False
        self.overlaps = engine._runner.overlaps
        engine._runner = self

    def launch(self, batch: Any) -> Any:
        collect = self._runner.launch(batch)  # the keys and values that it writes must not be used
        if self.fails() or self.device_failed:
            raise RuntimeError("broken")
        return collect

    def probe(self) -> None:
        self._runner.probe()
        if self.device_failed:
            raise RuntimeError("device failed")

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)


def test_a_failed_step_ends_only_its_own_requests(loaded: LoadedModel, prompts: Prompts) -> None:
    engine_prompts = mixed(prompts)
    with running(loaded, max_num_seqs=3) as engine:
        broken = Broken(engine)
        steps = iter(range(10_000))
        broken.fails = lambda: next(steps) == 4
        outcomes = []
        for handle in [begin(engine, engine_prompt) for engine_prompt in engine_prompts]:
            try:
                outcomes.append(list(only(handle).token_ids))
            except InternalError:
                outcomes.append([])
        again = [tokens(engine, engine_prompt) for engine_prompt in engine_prompts]
    assert 1 <= sum(not outcome for outcome in outcomes) <= 3
    expected = [prompts.expected(engine_prompt) for engine_prompt in engine_prompts]
    assert all(not outcome or outcome == right for outcome, right in zip(outcomes, expected, strict=True))
    assert again == expected


@contextmanager
def ailing(loaded: LoadedModel, **settings: Any) -> Iterator[tuple[Engine, Broken, list[str], threading.Event]]:
    """Yields an engine that is not started, its breakable runner, the reported reasons, and an event for a report."""
    engine = build_engine(loaded, Settings(**settings))
    reasons: list[str] = []
    said = threading.Event()

    def on_unhealthy(reason: str) -> None:
        reasons.append(reason)
        said.set()

    engine._on_unhealthy = on_unhealthy
    yield engine, Broken(engine), reasons, said


def test_a_failed_device_fails_every_request_and_is_reported_once(loaded: LoadedModel, prompts: Prompts) -> None:
    with ailing(loaded) as (engine, broken, reasons, said):
        broken.device_failed = True
        handles = [begin(engine, prompts.build(f"{i}")) for i in range(30)]  # more than run at once
        engine.start()
        for handle in handles:
            with pytest.raises(RequestError) as refused:
                handle.result()
            assert refused.value.status in (500, 503)
        assert said.wait(10)
        with pytest.raises(Unavailable):
            begin(engine, prompts.build("b"))
        assert reasons == ["RuntimeError: device failed"]


def test_a_step_that_does_not_end_is_reported_without_another_request(loaded: LoadedModel, prompts: Prompts) -> None:
    with ailing(loaded, step_timeout_seconds=1.0) as (engine, broken, reasons, reported):
        stuck, go_on = threading.Event(), threading.Event()
        broken.fails = lambda: stuck.set() or (go_on.wait(60) and False)  # type: ignore[func-returns-value]
        engine.start()
        first = begin(engine, prompts.build("a"))
        assert stuck.wait(10)
        assert reported.wait(10)
        with pytest.raises(Unavailable):
            begin(engine, prompts.build("c"))
        go_on.set()
        assert only(first).num_tokens
        engine.stop()
        assert reasons == ["a step does not end"]


def test_a_step_longer_than_the_request_timeout_is_no_failed_device(loaded: LoadedModel, prompts: Prompts) -> None:
    with ailing(loaded, request_timeout_seconds=0.1) as (engine, broken, reasons, _):
        broken.fails = lambda: time.sleep(0.3) is not None
        engine.start()
        handles = [begin(engine, prompts.build(text, params=replace(GREEDY, max_new_tokens=2))) for text in "ab"]
        assert [only(handle).num_tokens for handle in handles] == [2, 2]
        engine.stop()
        assert reasons == []


def test_retry_after_of_429_is_the_time_until_a_place_is_free(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded, max_num_seqs=1, max_queued_seqs=0, max_sequences=1) as engine:
        slow = Broken(engine)
        slow.fails = lambda: time.sleep(0.05) is not None
        tokens(engine, prompts.build("a", params=replace(GREEDY, max_new_tokens=10)))  # teaches the pace
        handle = begin(engine, prompts.build("a", params=replace(ENDLESS, max_new_tokens=100)))
        began = time.monotonic()
        time.sleep(0.5)
        with pytest.raises(Overloaded) as refused:
            begin(engine, prompts.build("b"))
        expected = time.monotonic() - began
        handle.result()
        expected = time.monotonic() - began - expected
    assert refused.value.retry_after is not None
    assert expected / 2 <= refused.value.retry_after <= 2 * expected + 1


def test_drain_waits_for_no_lock_because_a_signal_handler_calls_it(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded) as engine:
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with engine._admission.lock:
                held.set()
                go_on.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10)
        drained = threading.Thread(target=engine.drain, args=(10.0,), daemon=True)
        drained.start()
        drained.join(5)
        assert not drained.is_alive()
        go_on.set()
        holder.join()
        with pytest.raises(Unavailable):
            begin(engine, prompts.build("a"))


def test_places_that_no_request_takes_are_given_back(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded, max_num_seqs=1, max_queued_seqs=1, max_sequences=2) as engine:
        for _ in range(3):
            with engine.reserve() as places:
                places.grow_to(2)
                with pytest.raises(Overloaded):
                    engine.reserve()
        with pytest.raises(Overloaded), engine.reserve() as places:
            places.grow_to(3)
        with engine.reserve(2) as places:
            handle = RequestHandle()
            engine.submit([prompts.build("a"), prompts.build("b")], handle, places)
        assert len(handle.result()) == 2
        engine.reserve(2)


def test_out_of_memory_fails_one_step_and_makes_the_next_ones_smaller(loaded: LoadedModel, prompts: Prompts) -> None:
    with running(loaded, max_num_seqs=2, max_num_batched_tokens=64) as engine:
        broken = Broken(engine)
        sizes: list[int] = []

        def launch(batch: Any) -> Any:
            sizes.append(batch.num_tokens)
            if batch.num_tokens > 20:
                raise MemoryError
            return broken._runner.launch(batch)

        broken.launch = launch  # type: ignore[method-assign]
        long = prompts.build("0" * 60, params=replace(GREEDY, max_new_tokens=2))
        for _ in range(2):  # 64 tokens fail, then 32
            with pytest.raises(InternalError):
                only(begin(engine, long))
        assert only(begin(engine, long)).num_tokens == 2
    assert [size for size in sizes if size > 20] == [62, 32]
    assert max(sizes[2:]) == 16


def test_nan_pixels_fail_only_their_own_request(loaded: LoadedModel, prompts: Prompts) -> None:
    """NaN pixels in one request change neither the answer of another request nor its blocks."""
    poison = image(1, loaded.tokenizer.image.count, torch.full((3, *loaded_size(loaded)), torch.nan))
    bad = replace(prompts.build(1), images=(poison,))
    good = prompts.build("The sky is blue", params=replace(GREEDY, max_new_tokens=40))
    with running(loaded, max_num_seqs=2) as engine:
        for _ in range(3):
            neighbor, poisoned = begin(engine, good), begin(engine, bad)
            with pytest.raises(InternalError):
                poisoned.result()
            assert list(only(neighbor).token_ids) == prompts.expected(good)


def loaded_size(loaded: LoadedModel) -> tuple[int, int]:
    return loaded.preprocessor.size, loaded.preprocessor.size


def test_grouped_query_attention_equals_stock_generate(parts_dir: Path, merged: Path, tmp_path: Path) -> None:
    config = stock_config(parts_dir)
    config.text_config.num_key_value_heads = 1
    torch.manual_seed(3)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(merged / name, tmp_path / name)
    loaded = load_model(MergedFolder(tmp_path), "cpu", "float32")
    prompts = Prompts(loaded, Reference(tmp_path))
    engine_prompts = mixed(prompts)[::3]
    with running(loaded, max_num_batched_tokens=20) as engine:
        handles = [begin(engine, engine_prompt) for engine_prompt in engine_prompts]
        answers = [list(only(handle).token_ids) for handle in handles]
    assert answers == [prompts.expected(engine_prompt) for engine_prompt in engine_prompts]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32_s_answer(demo_loaded: LoadedModel, demo_reference: Reference, dtype: str) -> None:
    shapes = Picture.open(DEMO / "pictures" / "shapes.png")
    question = "What is in the image?"
    expected = demo_reference.answer(question, shapes)
    loaded = load_model(PartsFolder(DEMO), "cpu", dtype)
    ids = demo_reference.question_ids(question)
    image_tokens = loaded.tokenizer.image
    pixels = image(ids.index(image_tokens.patch), image_tokens.count, demo_reference.pixels(shapes)[0])
    engine_prompt = EnginePrompt(tuple(ids), (pixels,), replace(GREEDY, stop=("###",)))
    with running(loaded) as engine:
        answers = [begin(engine, engine_prompt) for _ in range(6)]
        assert {only(answer).text.strip() for answer in answers} == {expected}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_engine_runs_on_cuda(parts_dir: Path, prompts: Prompts) -> None:
    engine_prompts = mixed(prompts)
    with running(load_model(PartsFolder(parts_dir), "cuda", "float32")) as engine:
        handles = [begin(engine, engine_prompt) for engine_prompt in engine_prompts]
        answers = [list(only(handle).token_ids) for handle in handles]
    assert answers == [prompts.expected(engine_prompt) for engine_prompt in engine_prompts]
