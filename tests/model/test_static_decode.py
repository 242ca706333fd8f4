"""Static decode steps, and a host one step behind the device (overlap). A CPU runs them with torch's operators."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llava import TEXT_IDS, NoWaiting, answers, begin, engine_prompt, running, small_llava, tokens
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.completion import Completion
from llava_serving.engine.prompt import EnginePrompt, SamplingParams
from llava_serving.engine.scheduler import Batch
from llava_serving.errors import InternalError
from llava_serving.model.attention import TokenRange
from llava_serving.model.backend import CPU, TORCH, triton_backend
from llava_serving.model.kv_cache import BLOCK_SIZE
from llava_serving.model.paged_attention import PagedAttention
from llava_serving.model.static_decode import capture_sizes

STATIC_AND_OVERLAP: dict[str, Any] = {"static_decode": True, "overlap": True}
CONTEXT_BLOCKS = 16  # blocks of one whole context


@functools.cache
def model(num_kv_heads: int = 2) -> LlavaForConditionalGeneration:
    return small_llava(num_kv_heads)


PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.integers(1, 40),
    min_new_tokens=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    top_p=st.sampled_from([1.0, 0.8]),
    top_k=st.sampled_from([0, 7]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    stop=st.sampled_from([(), (), ("1",)]),
    seed=st.integers(0, 99),
    n=st.integers(1, 3),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 2]),
)
PREFIXES = st.sampled_from([[], list(range(3, 40)), [9] * 20])  # few, so that prompts share prefixes
TEXTS = st.lists(st.integers(3, TEXT_IDS - 1), min_size=1, max_size=40)
PROMPT_LISTS = st.lists(
    st.builds(
        lambda prefix, text, image_seed, params: engine_prompt(prefix + text, image_seed, params),
        PREFIXES, TEXTS, st.sampled_from([None, None, 1, 2]), PARAMS,
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(PROMPT_LISTS, st.sampled_from([CONTEXT_BLOCKS, 200]), st.sampled_from([8, 64]), st.sampled_from([1, 2]))
def test_paged_attention_with_static_decode_and_overlap_equals_the_cpu_backend(
    prompts: list[EnginePrompt], num_blocks: int, step_tokens: int, num_kv_heads: int
) -> None:
    """A small cache preempts sequences. Few tokens per step split prompts into chunks. One KV head is grouped-query
    attention."""
    limits = {"num_blocks": num_blocks, "max_num_batched_tokens": step_tokens}
    with running(model(num_kv_heads), CPU, **limits) as engine:
        expected = answers(engine, *prompts)
    with running(model(num_kv_heads), TORCH, **limits, **STATIC_AND_OVERLAP) as engine:
        actual = answers(engine, *prompts)
    assert tokens(actual) == tokens(expected)
    for actual_request, expected_request in zip(actual, expected, strict=True):
        for one, other in zip(actual_request, expected_request, strict=True):
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert [token.logprob for token in one.logprobs] == pytest.approx(
                [token.logprob for token in other.logprobs], abs=1e-4
            )


@functools.cache
def exact_model(num_kv_heads: int) -> LlavaForConditionalGeneration:
    """Returns the model in float64, in which no error of a sum changes what a number is rounded to."""
    return copy.deepcopy(model(num_kv_heads)).double()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(PROMPT_LISTS, st.sampled_from([CONTEXT_BLOCKS, 200]), st.sampled_from([8, 64]), st.sampled_from([1, 2]))
def test_in_8_bits_chunks_preemption_and_cached_prefixes_change_no_answer(
    prompts: list[EnginePrompt], num_blocks: int, step_tokens: int, num_kv_heads: int
) -> None:
    """The reference computes one prompt at a time, each in one step. Every step attends to rounded keys and values."""
    expected = []
    for prompt in prompts:
        with running(exact_model(num_kv_heads), TORCH, max_num_batched_tokens=200, kv_cache_dtype="int8") as engine:
            expected += tokens(answers(engine, prompt))
    limits = {"num_blocks": num_blocks, "max_num_batched_tokens": step_tokens, "kv_cache_dtype": "int8"}
    for options in ({}, STATIC_AND_OVERLAP):
        with running(exact_model(num_kv_heads), TORCH, **limits, **options) as engine:
            assert tokens(answers(engine, *prompts)) == expected


GREEDY = SamplingParams(30, ignore_eos=True)
PROMPTS = [engine_prompt([3 + i] * (5 + 7 * i), None, GREEDY) for i in range(5)]


@pytest.mark.parametrize("options", [{}, {"static_decode": True}, {"overlap": True}, STATIC_AND_OVERLAP])
def test_paged_attention_gives_the_greedy_tokens_of_the_cpu_backend(options: dict[str, Any]) -> None:
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS))
    with running(model(), TORCH, max_num_batched_tokens=16, **options) as engine:
        actual = tokens(answers(engine, *PROMPTS))
    assert actual == expected


def test_an_int8_cache_rounds_what_it_holds() -> None:
    prompt = engine_prompt(list(range(3, 60)), None, SamplingParams(5, logprobs=2, ignore_eos=True))
    logprobs = []
    for kv_cache_dtype in ("auto", "int8"):
        with running(model(), TORCH, kv_cache_dtype=kv_cache_dtype) as engine:
            (completion,) = answers(engine, prompt)[0]
            assert {str(stage.cache.dtype) for stage in engine._runner.stages} == {  # type: ignore[attr-defined]
                "torch.int8" if kv_cache_dtype == "int8" else "torch.float32"
            }
        logprobs.append(completion.logprobs[0].logprob)
    assert 0 < abs(logprobs[0] - logprobs[1]) < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_a_gpu_gives_the_greedy_tokens_of_a_cpu(step_tokens: int) -> None:
    """Runs CUDA graphs, overlap and Triton's kernels, with prompts in many chunks."""
    long = [engine_prompt(list(range(3, 190)), i % 3, GREEDY) for i in range(6)]
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS, *long))
    on_gpu, device = small_llava().to("cuda"), torch.device("cuda")
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": step_tokens}
    with running(on_gpu, triton_backend(device), **limits, **STATIC_AND_OVERLAP) as engine:
        actual = tokens(answers(engine, *PROMPTS, *long))
    assert actual == expected


def test_capture_sizes_end_with_the_largest_number_of_sequences() -> None:
    assert capture_sizes(64) == [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64]
    assert capture_sizes(6) == [1, 2, 4, 6]
    assert capture_sizes(1) == [1]


def test_launch_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs prefill, mixed and decode steps, with images, penalties and filters. Only a CPU uses the shortlist, which
    reads values, so it is off here."""
    monkeypatch.setattr("llava_serving.model.sampling.draw.shortlist", lambda *_: None)
    sampling = SamplingParams(20, temperature=0.9, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=4, logprobs=2)
    with running(model(), TORCH, max_num_batched_tokens=16, **STATIC_AND_OVERLAP) as engine:
        launch = engine._runner.launch

        def launch_without_waiting(batch: Any) -> Any:
            with NoWaiting():
                return launch(batch)

        monkeypatch.setattr(engine._runner, "launch", launch_without_waiting)
        answers(engine, *PROMPTS, engine_prompt([8] * 30, 1, sampling), engine_prompt([9], 2, sampling))


def test_padding_rows_write_only_to_the_null_block() -> None:
    with running(model(), TORCH, **STATIC_AND_OVERLAP) as engine:
        (stage,) = engine._runner.stages  # type: ignore[attr-defined]
        assert isinstance(stage.attention, PagedAttention)
        arrays = stage.attention.decode_arrays([TokenRange(0, 17, 18, [5, 9])], 4)
        staged = {name: torch.from_numpy(array) for name, array in arrays.items()}
        before = stage.cache.layers[0].keys.clone()
        stage.attention.decode(staged, 0, torch.randn(4, 6, 32))
        changed = (stage.cache.layers[0].keys != before).any(-1).any(0).nonzero().flatten() // 16
    assert set(changed.tolist()) <= {9, stage.cache.null_block}
    assert 9 in changed


def test_with_overlap_each_eos_costs_one_computed_token_that_is_dropped() -> None:
    """The host reads EOS when the next step has already been launched."""
    prompts = [engine_prompt([i, 4, 5], None, SamplingParams(60, temperature=1.0, seed=i)) for i in range(9)]
    with running(model(), CPU) as engine:
        expected = answers(engine, *prompts)
        scheduled = engine.stats.scheduled_seqs
    assert any(request[0].finish_reason == "stop" for request in expected)
    with running(model(), TORCH, **STATIC_AND_OVERLAP) as engine:
        actual = answers(engine, *prompts)
        assert tokens(actual) == tokens(expected)
        assert engine.stats.generation_tokens == sum(len(request[0].token_ids) for request in expected)
        num_eos = sum(request[0].finish_reason == "stop" for request in expected)
        assert engine.stats.scheduled_seqs == scheduled + num_eos
        assert engine.stats.kv_cache_usage == 0


def test_with_overlap_the_prefix_cache_is_hit_and_right() -> None:
    prompt = engine_prompt(list(range(3, 60)), None, GREEDY)
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, prompt))
    with running(model(), TORCH, **STATIC_AND_OVERLAP) as engine:
        first, second = (answers(engine, prompt) for _ in range(2))
        assert tokens(first) == tokens(second) == expected
        assert second[0][0].cached_tokens == 48
        longer = engine_prompt([*prompt.token_ids, *expected[0][0]], None, GREEDY)
        (completion,) = answers(engine, longer)[0]
        assert completion.cached_tokens == 80  # of 87, and generated tokens are among them


@pytest.mark.parametrize("suffix", [[7], [7, 8, 9]])
def test_a_prompt_that_continues_a_running_answer_does_not_read_a_block_that_this_step_fills(
    suffix: list[int],
) -> None:
    prompt = engine_prompt(list(range(3, 20)), None, GREEDY)
    with running(model(), CPU) as engine:
        answer = tokens(answers(engine, prompt))[0][0]
        ids = [*prompt.token_ids, *answer][: 2 * BLOCK_SIZE] + suffix
        continued = engine_prompt(ids, None, replace(GREEDY, logprobs=1))
        expected = answers(engine, continued)[0][0]
    with running(model(), TORCH) as engine:
        launch, handles = engine._runner.launch, []

        def submit_before_the_block_is_full(batch: Batch) -> Any:
            if batch.scheduled[0].end == 2 * BLOCK_SIZE - 1 and not handles:
                handles.extend(begin(engine, continued))
            return launch(batch)

        engine._runner.launch = submit_before_the_block_is_full  # type: ignore[method-assign]
        answers(engine, prompt)
        actual = handles[0].result()[0]
    assert actual.token_ids == expected.token_ids
    assert [token.logprob for token in actual.logprobs] == pytest.approx(
        [token.logprob for token in expected.logprobs], abs=1e-4
    )


def fails_at(step: int, where: str) -> Callable[[Any], Any]:
    """Returns a wrapper of `launch` that fails in one step: before the device begins, or when the host reads it."""
    steps = iter(range(10_000))

    def wrap(launch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def failing(batch: Any) -> Any:
            current = next(steps)
            if current == step and where == "launch":
                raise RuntimeError("broken")
            collect = launch(batch)
            if current != step:
                return collect

            def failing_collect() -> Any:
                collect()
                raise RuntimeError("broken")

            return failing_collect

        return failing

    return wrap


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_a_failed_step_ends_its_requests_and_the_engine_continues(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS))
    with running(model(), TORCH, max_num_seqs=2, **STATIC_AND_OVERLAP) as engine:
        monkeypatch.setattr(engine._runner, "launch", fails_at(6, where)(engine._runner.launch), raising=True)
        outcomes: list[Any] = []
        for handle in begin(engine, *PROMPTS):
            try:
                outcomes += tokens([handle.result()])
            except InternalError:
                outcomes.append(None)
        assert outcomes.count(None) in (1, 2)  # those in the step, not the waiting ones
        assert all(outcome in (None, answer) for outcome, answer in zip(outcomes, expected, strict=True))
        actual = tokens(answers(engine, *PROMPTS))
    assert actual == expected


def test_with_overlap_a_cancelled_request_and_one_past_its_deadline_end() -> None:
    endless = engine_prompt([7, 8], None, SamplingParams(250, ignore_eos=True))
    with running(model(), TORCH, **STATIC_AND_OVERLAP) as engine:
        cancelled, late = begin(engine, endless, endless, streaming=True)
        next(iter(cancelled))
        next(iter(late))
        cancelled.close()
        late.deadline = 0.0
        ends = [list(handle)[-1] for handle in (cancelled, late)]
        assert all(isinstance(end, Completion) for end in ends)
        assert [end.finish_reason for end in ends] == ["cancelled", "deadline"]
        assert all(0 < end.num_tokens < 250 for end in ends)
        assert engine.stats.kv_cache_usage == 0
