"""Logits of a batch to tokens, against the definitions."""

from collections.abc import Sequence as Rows
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_llava import NoWaiting

from llava_serving.engine.completion import SampledToken
from llava_serving.engine.prompt import SamplingParams
from llava_serving.engine.sequence import Sequence, random_numbers
from llava_serving.model.sampler import Sampler, sampled_tokens

EOS = 2
LOGITS = [2.0, 1.0, 0.0, 3.0, -1.0, 9.0]  # the last is an added token's


def run(sampler: Sampler, logits: torch.Tensor, seqs: Rows[Sequence]) -> list[SampledToken]:
    """A step, as the runner has it: planned, staged, sampled, read."""
    for row, seq in enumerate(seqs):
        seq.batch_index = row
    plan = sampler.plan(seqs)
    staged = {name: torch.from_numpy(array) for name, array in plan.arrays.items()}
    return sampled_tokens(sampler(logits, plan, staged), plan)


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
    """The tokens that 200 seeds draw, in one batch."""
    seqs = [sequence(SamplingParams(1, seed=seed, **params)) for seed in range(200)]  # type: ignore[arg-type]
    return {sampled.token for sampled in run_once(torch.tensor([logits] * 200), seqs)}


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
    drawn = torch.tensor([sampled.token for sampled in run_once(torch.tensor([LOGITS] * 4000), seqs)])
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


@given(rows=st.lists(ROWS, min_size=2, max_size=6))
def test_a_row_gets_what_it_gets_alone(rows: list[tuple[list[float], SamplingParams, list[int]]]) -> None:
    def seqs() -> list[Sequence]:
        return [sequence(params, tuple(seen)) for _, params, seen in rows]

    together = run_once(torch.tensor([logits for logits, *_ in rows]), seqs())
    alone = [run_once(torch.tensor([logits]), [seq])[0] for (logits, *_), seq in zip(rows, seqs(), strict=True)]
    assert together == alone


def by_the_definitions(logits: torch.Tensor, seq: Sequence, text_vocab_size: int) -> int:
    """One row by whole sorts in float64, written from the sampler's promises."""
    scores = logits[:text_vocab_size].float()
    params = seq.params
    if params.repetition_penalty != 1.0:
        for token in {token for token in seq.token_ids if token < text_vocab_size}:
            scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    if params.ignore_eos or seq.num_generated < params.min_new_tokens:
        scores[EOS] = -torch.inf
    if params.temperature == 0:
        return int(scores.argmax())
    kept = scores.double()
    order = kept.argsort(descending=True, stable=True)
    probabilities = ((kept[order] - kept.max()) / params.temperature).softmax(-1)
    beyond = torch.arange(len(order)) >= (params.top_k or len(order))
    probabilities = probabilities.masked_fill(beyond, 0) / probabilities.masked_fill(beyond, 0).sum()
    if params.top_p < 1:
        beyond |= probabilities.cumsum(-1) - probabilities >= params.top_p
    beyond[0] = False
    kept[order[beyond]] = -torch.inf
    sums = ((kept - kept.max()) / params.temperature).softmax(-1).cumsum(-1)
    number = random_numbers(params.seed, 0).random() * float(sums[-1])
    return int(torch.searchsorted(sums, torch.tensor(number, dtype=torch.float64), right=True))


@given(seed=st.integers(0, 10**6), params=st.lists(PARAMETERS, min_size=1, max_size=5), size=st.sampled_from([7, 400]))
def test_sampled_tokens_are_those_of_the_definitions(seed: int, params: list[SamplingParams], size: int) -> None:
    """Logits rounded to quarters, so that many are equal; `top_p` that no sum of them meets exactly."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(params), size + 3, generator=random) * 12).round() / 4
    seen = torch.randint(0, size + 3, (len(params), 6), generator=random).tolist()
    seqs = [sequence(one, tuple(row)) for one, row in zip(params, seen, strict=True)]
    expected = [by_the_definitions(row.clone(), seq, size) for row, seq in zip(logits, seqs, strict=True)]
    assert [sampled.token for sampled in run_once(logits, seqs, size)] == expected


PENALIZED = SamplingParams(99, repetition_penalty=3.0)


def test_a_penalty_knows_tokens_that_the_host_does_not_know_yet() -> None:
    sampler = Sampler(5, EOS, 1, torch.device("cpu"))
    logits, seq = torch.tensor([[4.0, 3.0, 0.0, 2.0, 0.0, 0.0]]), sequence(PENALIZED)
    found = []
    for _ in range(3):  # the host never learns what was sampled
        found.append(run(sampler, logits, [seq])[0].token)
        seq.num_pending += 1
    assert found == [0, 1, 3]


def test_a_row_that_another_sequence_takes_over_is_filled_anew() -> None:
    sampler = Sampler(5, EOS, 1, torch.device("cpu"))
    logits = torch.tensor([[4.0, 3.0, 0.0, 2.0, 0.0, 0.0]])
    first = replace_id(sequence(PENALIZED, seen=(1,)), 1)
    assert run(sampler, logits, [first])[0].token == 0
    second = replace_id(sequence(PENALIZED, seen=(0,)), 2)
    assert run(sampler, logits, [second])[0].token == 1
    first.token_ids.append(0)  # it comes back after a preemption
    assert run(sampler, logits, [first])[0].token == 3


def replace_id(seq: Sequence, seq_id: int) -> Sequence:
    seq.seq_id = seq_id
    return seq


def test_sampling_waits_for_nothing_between_plan_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: without the shortlist, which a CPU alone takes, for it looks at what it found."""
    monkeypatch.setattr("llava_serving.model.sampler._shortlist", lambda *_: None)
    params = SamplingParams(9, temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.2, logprobs=2, seed=3)
    kinds = [params, replace(params, top_k=0), replace(params, top_p=1.0, top_k=0, logprobs=None), SamplingParams(9)]
    seqs = [replace_id(sequence(one, seen=(1, 2, 3)), number) for number, one in enumerate(kinds)]
    for row, seq in enumerate(seqs):
        seq.batch_index = row
    sampler = Sampler(32_000, EOS, 4, torch.device("cpu"))
    plan = sampler.plan(seqs)
    staged = {name: torch.from_numpy(array) for name, array in plan.arrays.items()}
    logits = torch.randn(4, 32_003) * 4
    with NoWaiting():
        sampled = sampler(logits, plan, staged)
    expected = [by_the_definitions(row.clone(), seq, 32_000) for row, seq in zip(logits, seqs, strict=True)]
    assert sampled.tokens.tolist() == expected
