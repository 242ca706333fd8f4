"""Sampled tokens against the definitions of temperature, top-k, top-p, repetition penalty and the others."""

from collections.abc import Sequence as Rows
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_llava import NoWaiting

from llava_serving.engine.completion import SampledToken
from llava_serving.engine.prompt import SamplingParams
from llava_serving.engine.sequence import Sequence, random_numbers
from llava_serving.model.sampling.sampled import sampled_tokens
from llava_serving.model.sampling.sampler import Sampler

EOS = 2
LOGITS = [2.0, 1.0, 0.0, 3.0, -1.0, 9.0]  # the last is an added token's


def run(sampler: Sampler, logits: torch.Tensor, seqs: Rows[Sequence]) -> list[SampledToken]:
    """Runs a step as ModelRunner does: plans it, stages the arrays, samples, and reads the tokens."""
    for row, seq in enumerate(seqs):
        seq.batch_index = row
    plan = sampler.plan(seqs)
    staged = {name: torch.from_numpy(array) for name, array in plan.arrays.items()}
    return sampled_tokens(sampler(logits, plan, staged), plan.num_alternatives)


def run_once(logits: torch.Tensor, seqs: Rows[Sequence], text_vocab_size: int = 5) -> list[SampledToken]:
    return run(Sampler(text_vocab_size, EOS, len(seqs), torch.device("cpu")), logits, seqs)


def sequence(params: SamplingParams, seen: tuple[int, ...] = (), generated: int = 0) -> Sequence:
    seq = Sequence(0, list(seen) or [0], (), params, random_numbers(params.seed, 0))
    if not seen:
        seq.token_ids = []
        seq.num_prompt_tokens = 0
    seq.token_ids += [4] * generated
    return seq


def sample(logits: list[float], params: SamplingParams, seen: tuple[int, ...] = (), generated: int = 0) -> int | None:
    return run_once(torch.tensor([logits]), [sequence(params, seen, generated)])[0].token


def draws(logits: list[float], **params: float) -> set[int | None]:
    """Returns the tokens that 200 seeds draw, in one batch."""
    seqs = [sequence(SamplingParams(1, seed=seed, **params)) for seed in range(200)]  # type: ignore[arg-type]
    return {sampled.token for sampled in run_once(torch.tensor([logits] * 200), seqs)}


def test_added_tokens_are_never_chosen() -> None:
    assert sample(LOGITS, SamplingParams(1)) == 3
    assert draws(LOGITS, temperature=5.0) == {0, 1, 2, 3, 4}


def test_top_k_keeps_the_k_likeliest_tokens() -> None:
    assert draws(LOGITS, temperature=5.0, top_k=2) == {0, 3}


def test_top_p_keeps_the_fewest_tokens_whose_probabilities_reach_it() -> None:
    assert draws(LOGITS, temperature=1.0, top_p=0.6) == {3}  # 0.64
    assert draws(LOGITS, temperature=1.0, top_p=0.7) == {3, 0}
    assert draws(LOGITS, temperature=1.0, top_p=0.000001) == {3}


def test_top_p_applies_to_the_probabilities_of_the_top_k() -> None:
    assert draws(LOGITS, temperature=1.0, top_k=2, top_p=0.7) == {3}  # 0.73 among the two


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert draws(LOGITS, temperature=0.01) == {3}


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_draws_follow_the_distribution(filters: dict[str, float]) -> None:
    seqs = [sequence(SamplingParams(1, temperature=1.0, seed=seed, **filters)) for seed in range(4000)]  # type: ignore[arg-type]
    drawn = torch.tensor([sampled.token for sampled in run_once(torch.tensor([LOGITS] * 4000), seqs)])
    counts = torch.bincount(drawn, minlength=5) / 4000
    expected = torch.tensor(LOGITS[:5]).softmax(-1)
    allowed = expected >= expected.sort(descending=True).values[2] if filters else torch.ones(5, dtype=torch.bool)
    assert torch.allclose(counts, torch.where(allowed, expected, 0) / expected[allowed].sum(), atol=0.03)


def test_a_repeated_token_is_penalized_whatever_its_sign() -> None:
    assert sample([2.0, 1.9, 0.0, 0.0, 0.0, 0.0], SamplingParams(1, repetition_penalty=1.2), seen=(0, 5)) == 1
    assert sample([-2.0, -2.1, -9, -9, -9, -9], SamplingParams(1, repetition_penalty=1.2), seen=(0,)) == 1


def test_eos_is_not_sampled_before_min_new_tokens_or_with_ignore_eos() -> None:
    logits = [0.0, 0.0, 5.0, 1.0, 0.0, 0.0]
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=2) == 3
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=3) == EOS
    assert sample(logits, SamplingParams(9, ignore_eos=True), generated=8) == 3


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_nan_or_infinity_in_the_logits_of_a_row_gives_it_no_token(broken: float) -> None:
    logits = torch.tensor([LOGITS, [broken, *LOGITS[1:]], LOGITS])
    for temperature in (0.0, 1.0):
        tokens = [s.token for s in run_once(logits, [sequence(SamplingParams(1, temperature=temperature, seed=1))] * 3)]
        assert tokens[1] is None
        assert None not in (tokens[0], tokens[2])


PARAMETERS = st.builds(
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
)
ROWS = st.tuples(
    st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6),
    PARAMETERS,
    st.lists(st.integers(0, 5), max_size=4),
)


@settings(deadline=None)
@given(rows=st.lists(ROWS, min_size=2, max_size=6))
def test_a_row_gets_the_same_token_in_a_batch_as_alone(
    rows: list[tuple[list[float], SamplingParams, list[int]]],
) -> None:
    def seqs() -> list[Sequence]:
        return [sequence(params, tuple(seen)) for _, params, seen in rows]

    together = run_once(torch.tensor([logits for logits, *_ in rows]), seqs())
    alone = [run_once(torch.tensor([logits]), [seq])[0] for (logits, *_), seq in zip(rows, seqs(), strict=True)]
    assert together == alone


def sample_by_definition(logits: torch.Tensor, seq: Sequence, text_vocab_size: int) -> int:
    """Samples one row with whole sorts in float64, written from the docstrings of Sampler and SamplingParams."""
    scores = logits[:text_vocab_size].float()
    params = seq.params
    if params.repetition_penalty != 1.0:
        for token in {token for token in seq.token_ids if token < text_vocab_size}:
            scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    if params.ignore_eos or seq.num_generated < params.min_new_tokens:
        scores[EOS] = -torch.inf
    if params.temperature == 0:
        return int(scores.argmax())
    logits64 = scores.double()
    order = logits64.argsort(descending=True, stable=True)
    probabilities = ((logits64[order] - logits64.max()) / params.temperature).softmax(-1)
    removed = torch.arange(len(order)) >= (params.top_k or len(order))
    probabilities = probabilities.masked_fill(removed, 0) / probabilities.masked_fill(removed, 0).sum()
    if params.top_p < 1:
        removed |= probabilities.cumsum(-1) - probabilities >= params.top_p
    removed[0] = False
    logits64[order[removed]] = -torch.inf
    sums = ((logits64 - logits64.max()) / params.temperature).softmax(-1).cumsum(-1)
    number = random_numbers(params.seed, 0).random() * float(sums[-1])
    return int(torch.searchsorted(sums, torch.tensor(number, dtype=torch.float64), right=True))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), params=st.lists(PARAMETERS, min_size=1, max_size=5), size=st.sampled_from([7, 400]))
def test_sampled_tokens_equal_the_definitions(seed: int, params: list[SamplingParams], size: int) -> None:
    """Logits are rounded to quarters, so that many are equal. No sum of probabilities meets a `top_p` exactly."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(params), size + 3, generator=random) * 12).round() / 4
    seen = torch.randint(0, size + 3, (len(params), 6), generator=random).tolist()
    seqs = [sequence(one, tuple(row)) for one, row in zip(params, seen, strict=True)]
    expected = [sample_by_definition(row.clone(), seq, size) for row, seq in zip(logits, seqs, strict=True)]
    assert [sampled.token for sampled in run_once(logits, seqs, size)] == expected


PENALIZED = SamplingParams(99, repetition_penalty=3.0)


def test_a_repetition_penalty_covers_tokens_that_only_the_device_knows() -> None:
    sampler = Sampler(5, EOS, 1, torch.device("cpu"))
    logits, seq = torch.tensor([[4.0, 3.0, 0.0, 2.0, 0.0, 0.0]]), sequence(PENALIZED)
    sampled = []
    for _ in range(3):  # the host never appends the sampled token
        sampled.append(run(sampler, logits, [seq])[0].token)
        seq.num_pending += 1
    assert sampled == [0, 1, 3]


def test_a_repetition_penalty_follows_the_sequence_that_now_has_the_row() -> None:
    sampler = Sampler(5, EOS, 1, torch.device("cpu"))
    logits = torch.tensor([[4.0, 3.0, 0.0, 2.0, 0.0, 0.0]])
    first = with_id(sequence(PENALIZED, seen=(1,)), 1)
    (sampled,) = run(sampler, logits, [first])
    assert sampled.token == 0
    second = with_id(sequence(PENALIZED, seen=(0,)), 2)
    (sampled,) = run(sampler, logits, [second])
    assert sampled.token == 1
    first.token_ids.append(0)  # the first sequence returns after a preemption
    (sampled,) = run(sampler, logits, [first])
    assert sampled.token == 3


def with_id(seq: Sequence, seq_id: int) -> Sequence:
    seq.seq_id = seq_id
    return seq


def test_sampling_never_waits_for_the_device_between_plan_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a CPU uses the shortlist, which reads values, so it is off here."""
    monkeypatch.setattr("llava_serving.model.sampling.draw.shortlist", lambda *_: None)
    params = SamplingParams(9, temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.2, logprobs=2, seed=3)
    all_params = [
        params,
        replace(params, top_k=0),
        replace(params, top_p=1.0, top_k=0, logprobs=None),
        SamplingParams(9),
    ]
    seqs = [with_id(sequence(one, seen=(1, 2, 3)), i) for i, one in enumerate(all_params)]
    for row, seq in enumerate(seqs):
        seq.batch_index = row
    sampler = Sampler(32_000, EOS, 4, torch.device("cpu"))
    plan = sampler.plan(seqs)
    staged = {name: torch.from_numpy(array) for name, array in plan.arrays.items()}
    logits = torch.randn(4, 32_003) * 4
    with NoWaiting():
        sampled = sampler(logits, plan, staged)
    expected = [sample_by_definition(row.clone(), seq, 32_000) for row, seq in zip(logits, seqs, strict=True)]
    assert sampled.tokens.tolist() == expected
