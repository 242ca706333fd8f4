"""Static decode steps and a host one step behind, on a CPU by torch's operators: the same rules as on a GPU."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llava import TEXT_IDS, NoWaiting, answers, begin, running, small_llava, submission, tokens
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.prompt import EnginePrompt, SamplingParams
from llava_serving.errors import InternalError
from llava_serving.model.attention import Span
from llava_serving.model.backend import CPU, TORCH, triton_backend
from llava_serving.model.paged_attention import PagedAttention
from llava_serving.model.static_decode import bucket_sizes

AHEAD: dict[str, Any] = {"static_decode": True, "overlap": True}
WHOLE_CONTEXT = 16  # blocks


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
STARTS = st.sampled_from([[], list(range(3, 40)), [9] * 20])  # few, so that prompts share beginnings
TEXTS = st.lists(st.integers(3, TEXT_IDS - 1), min_size=1, max_size=40)
REQUESTS = st.lists(
    st.builds(
        lambda start, text, picture, params: submission(start + text, picture, params),
        STARTS, TEXTS, st.sampled_from([None, None, 1, 2]), PARAMS,
    ),
    min_size=1,
    max_size=8,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.sampled_from([WHOLE_CONTEXT, 200]), st.sampled_from([8, 64]), st.sampled_from([1, 2]))
def test_any_mix_of_requests_is_answered_as_without(
    requests: list[EnginePrompt], num_blocks: int, step_tokens: int, num_kv_heads: int
) -> None:
    """With a small cache sequences are preempted, with few tokens a step prompts are computed in chunks."""
    limits = {"num_blocks": num_blocks, "max_num_batched_tokens": step_tokens}
    with running(model(num_kv_heads), CPU, **limits) as engine:
        expected = answers(engine, *requests)
    with running(model(num_kv_heads), TORCH, **limits, **AHEAD) as engine:
        found = answers(engine, *requests)
    assert tokens(found) == tokens(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
            assert [told.logprob for told in one.logprobs] == pytest.approx(
                [told.logprob for told in other.logprobs], abs=1e-4
            )


GREEDY = SamplingParams(30, ignore_eos=True)
PROMPTS = [submission([3 + number] * (5 + 7 * number), None, GREEDY) for number in range(5)]


@pytest.mark.parametrize("path", [{}, {"static_decode": True}, {"overlap": True}, AHEAD])
def test_paged_attention_answers_as_the_cpu_s(path: dict[str, Any]) -> None:
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS))
    with running(model(), TORCH, max_num_batched_tokens=16, **path) as engine:
        assert tokens(answers(engine, *PROMPTS)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_a_gpu_answers_as_a_cpu(step_tokens: int) -> None:
    """Graphs, overlap and Triton's kernels, with prompts in many chunks that nothing is sampled from."""
    long = [submission(list(range(3, 190)), number % 3, GREEDY) for number in range(6)]
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS, *long))
    on_gpu, device = small_llava().to("cuda"), torch.device("cuda")
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": step_tokens}
    with running(on_gpu, triton_backend(device), **limits, **AHEAD) as engine:
        assert tokens(answers(engine, *PROMPTS, *long)) == expected


def test_bucket_sizes_end_with_the_most_sequences() -> None:
    assert bucket_sizes(64) == [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64]
    assert bucket_sizes(6) == [1, 2, 4, 6]
    assert bucket_sizes(1) == [1]


def test_a_launch_waits_for_the_device_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill, mixed and decode steps, with pictures, penalties and filters; without the shortlist, a CPU's alone."""
    monkeypatch.setattr("llava_serving.model.sampler._shortlist", lambda *_: None)
    sampling = SamplingParams(20, temperature=0.9, top_p=0.9, top_k=20, repetition_penalty=1.2, seed=4, logprobs=2)
    with running(model(), TORCH, max_num_batched_tokens=16, **AHEAD) as engine:
        launch = engine._runner.launch

        def watched(batch: Any) -> Any:
            with NoWaiting():
                return launch(batch)

        monkeypatch.setattr(engine._runner, "launch", watched)
        answers(engine, *PROMPTS, submission([8] * 30, 1, sampling), submission([9], 2, sampling))


def test_padding_rows_write_to_the_null_block_alone() -> None:
    with running(model(), TORCH, **AHEAD) as engine:
        (stage,) = engine._runner._stages  # type: ignore[attr-defined]
        assert isinstance(stage.attention, PagedAttention)
        arrays = stage.attention.decode_arrays([Span(0, 17, 18, [5, 9])], 4)
        staged = {name: torch.from_numpy(array) for name, array in arrays.items()}
        before = stage.cache.key_slots[0].clone()
        stage.attention.decode(staged, 0, torch.randn(4, 6, 32))
        changed = (stage.cache.key_slots[0] != before).any(-1).any(0).nonzero().flatten() // 16
    assert set(changed.tolist()) <= {9, stage.cache.null_block}
    assert 9 in changed


def test_an_end_seen_one_step_late_costs_one_token_that_nobody_gets() -> None:
    """EOS comes as a surprise: the step after it is under way already."""
    ending = [submission([number, 4, 5], None, SamplingParams(60, temperature=1.0, seed=number)) for number in range(9)]
    with running(model(), CPU) as engine:
        expected = answers(engine, *ending)
        steps = engine.stats.scheduled_seqs
    assert any(row[0].finish_reason == "stop" for row in expected)
    with running(model(), TORCH, **AHEAD) as engine:
        found = answers(engine, *ending)
        assert tokens(found) == tokens(expected)
        assert engine.stats.generation_tokens == sum(len(row[0].token_ids) for row in expected)
        late = sum(row[0].finish_reason == "stop" for row in expected)
        assert engine.stats.scheduled_seqs == steps + late
        assert engine.stats.kv_cache_usage == 0


def test_what_is_cached_under_overlap_is_found_and_right() -> None:
    prompt = submission(list(range(3, 60)), None, GREEDY)
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, prompt))
    with running(model(), TORCH, **AHEAD) as engine:
        first, second = (answers(engine, prompt) for _ in range(2))
        assert tokens(first) == tokens(second) == expected
        assert second[0][0].cached_tokens == 48
        longer = submission([*prompt.token_ids, *expected[0][0]], None, GREEDY)
        assert answers(engine, longer)[0][0].cached_tokens == 80  # of 87, generated tokens among them


def fails_at(step: int, where: str) -> Callable[[Any], Any]:
    """A runner's `launch` that fails in one step, before the device begins or once it is done."""
    count = iter(range(10_000))

    def wrap(launch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def failing(batch: Any) -> Any:
            now = next(count)
            if now == step and where == "launch":
                raise RuntimeError("broken")
            collect = launch(batch)
            if now != step:
                return collect

            def failed() -> Any:
                collect()
                raise RuntimeError("broken")

            return failed

        return failing

    return wrap


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(model(), CPU) as engine:
        expected = tokens(answers(engine, *PROMPTS))
    with running(model(), TORCH, max_num_seqs=2, **AHEAD) as engine:
        monkeypatch.setattr(engine._runner, "launch", fails_at(6, where)(engine._runner.launch), raising=True)
        outcomes: list[Any] = []
        for generation in begin(engine, *PROMPTS):
            try:
                outcomes += tokens(generation.result())
            except InternalError:
                outcomes.append(None)
        assert outcomes.count(None) in (1, 2)  # those of the step, not those that wait
        assert all(outcome in (None, right) for outcome, right in zip(outcomes, expected, strict=True))
        assert tokens(answers(engine, *PROMPTS)) == expected


def test_who_leaves_and_whose_time_is_up_end_under_overlap() -> None:
    endless = submission([7, 8], None, SamplingParams(250, ignore_eos=True))
    with running(model(), TORCH, **AHEAD) as engine:
        leaver, late = begin(engine, endless, endless, streaming=True)
        next(iter(leaver)), next(iter(late))
        leaver.close()
        late.deadline = 0.0
        ends = [list(generation)[-1].completion for generation in (leaver, late)]  # type: ignore[union-attr]
        assert [end.finish_reason for end in ends] == ["cancelled", "deadline"]
        assert all(0 < end.num_tokens < 250 for end in ends)
        assert engine.stats.kv_cache_usage == 0
