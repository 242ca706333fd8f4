"""Logits of a batch to tokens, against the definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_serving.engine.sequence import SamplingParams, Sequence, random_numbers
from llava_serving.model.sampler import Sampler

EOS = 2
LOGITS = [2.0, 1.0, 0.0, 3.0, -1.0, 9.0]  # the last is an added token's
SAMPLER = Sampler(text_vocab_size=5, eos_id=EOS)


def sequence(params: SamplingParams, seen: tuple[int, ...] = (), generated: int = 0) -> Sequence:
    seq = Sequence(0, list(seen) or [0], (), params, random_numbers(params.seed, 0))
    if not seen:
        seq.token_ids = []
        seq.num_prompt_tokens = 0
    seq.token_ids += [4] * generated
    return seq


def sample(logits: list[float], params: SamplingParams, seen: tuple[int, ...] = (), generated: int = 0) -> int | None:
    return SAMPLER(torch.tensor([logits]), [sequence(params, seen, generated)])[0].token


def draws(logits: list[float], **params: float) -> set[int | None]:
    """The tokens that 200 seeds draw, in one batch."""
    seqs = [sequence(SamplingParams(1, seed=seed, **params)) for seed in range(200)]  # type: ignore[arg-type]
    return {sampled.token for sampled in SAMPLER(torch.tensor([logits] * 200), seqs)}


def test_added_tokens_are_never_chosen() -> None:
    assert sample(LOGITS, SamplingParams(1)) == 3
    assert draws(LOGITS, temperature=5.0) == {0, 1, 2, 3, 4}


def test_top_k_keeps_the_likeliest() -> None:
    assert draws(LOGITS, temperature=5.0, top_k=2) == {0, 3}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert draws(LOGITS, temperature=1.0, top_p=0.6) == {3}  # 0.64
    assert draws(LOGITS, temperature=1.0, top_p=0.7) == {3, 0}
    assert draws(LOGITS, temperature=1.0, top_p=0.000001) == {3}


def test_top_p_counts_among_the_top_k() -> None:
    assert draws(LOGITS, temperature=1.0, top_k=2, top_p=0.7) == {3}  # 0.73 of the two


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert draws(LOGITS, temperature=0.01) == {3}


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_draws_follow_the_distribution(cut: dict[str, float]) -> None:
    seqs = [sequence(SamplingParams(1, temperature=1.0, seed=seed, **cut)) for seed in range(4000)]  # type: ignore[arg-type]
    drawn = torch.tensor([sampled.token for sampled in SAMPLER(torch.tensor([LOGITS] * 4000), seqs)])
    counts = torch.bincount(drawn, minlength=5) / 4000
    expected = torch.tensor(LOGITS[:5]).softmax(-1)
    kept = expected >= expected.sort(descending=True).values[2] if cut else torch.ones(5, dtype=torch.bool)
    assert torch.allclose(counts, torch.where(kept, expected, 0) / expected[kept].sum(), atol=0.03)


def test_a_repeated_token_is_penalized_whatever_its_sign() -> None:
    assert sample([2.0, 1.9, 0.0, 0.0, 0.0, 0.0], SamplingParams(1, repetition_penalty=1.2), seen=(0, 5)) == 1
    assert sample([-2.0, -2.1, -9, -9, -9, -9], SamplingParams(1, repetition_penalty=1.2), seen=(0,)) == 1


def test_eos_waits_for_min_new_tokens_and_is_ignored_on_request() -> None:
    logits = [0.0, 0.0, 5.0, 1.0, 0.0, 0.0]
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=2) == 3
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=3) == EOS
    assert sample(logits, SamplingParams(9, ignore_eos=True), generated=8) == 3


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_no_number_gives_no_token(broken: float) -> None:
    logits = torch.tensor([LOGITS, [broken, *LOGITS[1:]], LOGITS])
    for temperature in (0.0, 1.0):
        tokens = [s.token for s in SAMPLER(logits, [sequence(SamplingParams(1, temperature=temperature, seed=1))] * 3)]
        assert tokens[1] is None
        assert None not in (tokens[0], tokens[2])


ROWS = st.tuples(
    st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    st.builds(
        SamplingParams,
        max_new_tokens=st.just(9),
        min_new_tokens=st.integers(0, 3),
        temperature=st.sampled_from([0.0, 0.3, 1.0, 9.0]),
        top_p=st.sampled_from([1.0, 0.9, 0.1]),
        top_k=st.integers(0, 6),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
        seed=st.integers(0, 99),
        ignore_eos=st.booleans(),
        logprobs=st.sampled_from([None, 0, 3]),
    ),
    st.lists(st.integers(0, 5), max_size=4),
)


@given(rows=st.lists(ROWS, min_size=2, max_size=6))
def test_a_row_gets_what_it_gets_alone(rows: list[tuple[list[float], SamplingParams, list[int]]]) -> None:
    def seqs() -> list[Sequence]:
        return [sequence(params, tuple(seen)) for _, params, seen in rows]

    together = SAMPLER(torch.tensor([logits for logits, *_ in rows]), seqs())
    alone = [SAMPLER(torch.tensor([logits]), [seq])[0] for (logits, *_), seq in zip(rows, seqs(), strict=True)]
    assert together == alone
