from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reference import Reference

from llava_serving.engine import Completion, GenerateEngine, Generation, SamplingParams, Submission
from llava_serving.engine.detokenizer import StopText
from llava_serving.engine.sampler import Sampler
from llava_serving.weights.loader import LoadedModel

GREEDY = SamplingParams(max_new_tokens=24)
EOS = 2


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> GenerateEngine:
    tokenizer = loaded.tokenizer
    return GenerateEngine(loaded.model, tokenizer.token_bytes, tokenizer.text_vocab_size, tokenizer.eos_id)


def generate(
    engine: GenerateEngine, ids: list[int], params: SamplingParams, pixels: torch.Tensor | None = None
) -> Generation:
    return engine.submit(Submission(tuple(ids), pixels, params)).result()


def only(generation: Generation) -> Completion:
    (completion,) = generation.completions
    return completion


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@pytest.mark.parametrize("text", ["The sky", "", "What color is it? 12"])
def test_greedy_tokens_equal_stock_generate(engine: GenerateEngine, reference: Reference, text: str) -> None:
    ids = [1, *reference.text.encode(text)]
    assert list(only(generate(engine, ids, GREEDY)).token_ids) == reference.greedy(ids, None, 24)


@pytest.mark.parametrize("images", [1, 2])
def test_greedy_tokens_equal_stock_generate_with_images(
    engine: GenerateEngine, reference: Reference, images: int
) -> None:
    pixels = reference.pixels(*(picture(i) for i in range(images)))
    ids = [1, *reference.text.encode("See"), *reference.image_ids() * images, *reference.text.encode("So?")]
    assert list(only(generate(engine, ids, GREEDY, pixels)).token_ids) == reference.greedy(ids, pixels, 24)


def test_the_image_matters(engine: GenerateEngine, reference: Reference) -> None:
    ids = [1, *reference.image_ids()]
    answers = {only(generate(engine, ids, GREEDY, reference.pixels(picture(i)))).token_ids for i in range(5)}
    assert len(answers) > 1


SAMPLING = replace(GREEDY, temperature=1.0, seed=7)


def test_a_seed_gives_the_same_tokens_whatever_runs_before_and_beside(engine: GenerateEngine) -> None:
    alone = only(generate(engine, [1, 50], SAMPLING))
    crowd = [engine.submit(Submission((1, 60 + i), None, replace(SAMPLING, seed=i))) for i in range(3)]
    again = engine.submit(Submission((1, 50), None, SAMPLING))
    torch.manual_seed(0)
    assert only(again.result()) == alone
    assert len({only(future.result()).token_ids for future in crowd}) == 3


def test_another_seed_and_no_seed_give_other_tokens(engine: GenerateEngine) -> None:
    seeds = [1, 2, 3, None, None]
    assert len({only(generate(engine, [1, 50], replace(SAMPLING, seed=s))).token_ids for s in seeds}) == len(seeds)


def test_n_sequences_differ_and_the_first_is_that_of_n_1(engine: GenerateEngine) -> None:
    several = generate(engine, [1, 50], replace(SAMPLING, n=3)).completions
    assert len({completion.token_ids for completion in several}) == 3
    assert several[0] == only(generate(engine, [1, 50], SAMPLING))


def test_length_ends_a_sequence(engine: GenerateEngine) -> None:
    completion = only(generate(engine, [1, 50], replace(GREEDY, max_new_tokens=5, ignore_eos=True)))
    assert (completion.num_tokens, completion.finish_reason) == (5, "length")


def test_a_stop_string_across_tokens_ends_the_text_before_it(engine: GenerateEngine) -> None:
    params = replace(SAMPLING, ignore_eos=True, max_new_tokens=40)
    free = only(generate(engine, [1, 50], params))
    stop = free.text[10:16]
    stopped = only(generate(engine, [1, 50], replace(params, stop=(stop,))))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.num_tokens < free.num_tokens


def test_no_stop_before_min_new_tokens(engine: GenerateEngine) -> None:
    params = replace(SAMPLING, ignore_eos=True, max_new_tokens=40)
    text = only(generate(engine, [1, 50], params)).text
    stopped = only(generate(engine, [1, 50], replace(params, stop=(text[3:5],), min_new_tokens=30)))
    assert stopped.num_tokens >= 30


def test_logprobs_are_the_model_s(engine: GenerateEngine, reference: Reference) -> None:
    ids = [1, *reference.text.encode("The sky")]
    completion = only(generate(engine, ids, replace(GREEDY, logprobs=2, repetition_penalty=1.7, max_new_tokens=6)))
    whole = torch.tensor([[*ids, *completion.token_ids]])
    with torch.inference_mode():
        expected = reference.model(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    for row, token, told in zip(expected, completion.token_ids, completion.logprobs, strict=True):
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = [alternative.logprob for alternative in told.alternatives]
        assert best == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def sample(logits: list[float], params: SamplingParams, seen: tuple[int, ...] = (), generated: int = 0) -> int:
    sampler = Sampler(params, 0, torch.tensor([5]), EOS)
    return sampler(torch.tensor(logits), torch.tensor(seen, dtype=torch.long), generated)


def draws(logits: list[float], **params: float) -> set[int]:
    """The tokens that 200 seeds draw."""
    return {sample(logits, SamplingParams(1, seed=seed, **params)) for seed in range(200)}  # type: ignore[arg-type]


LOGITS = [2.0, 1.0, 0.0, 3.0, -1.0, 9.0]  # the last is banned


def test_added_tokens_are_never_chosen() -> None:
    assert sample(LOGITS, SamplingParams(1)) == 3
    assert draws(LOGITS, temperature=5.0) == {0, 1, 2, 3, 4}


def test_top_k_keeps_the_likeliest() -> None:
    assert draws(LOGITS, temperature=5.0, top_k=2) == {0, 3}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert draws(LOGITS, temperature=1.0, top_p=0.6) == {3}  # 0.64
    assert draws(LOGITS, temperature=1.0, top_p=0.7) == {3, 0}
    assert draws(LOGITS, temperature=1.0, top_p=0.000001) == {3}


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert draws(LOGITS, temperature=0.01) == {3}


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(SamplingParams(1, temperature=1.0, seed=1), 0, torch.tensor([5]), EOS)
    logits = torch.tensor(LOGITS)
    counts = torch.zeros(6)
    for _ in range(4000):
        counts[sampler(logits, torch.tensor([], dtype=torch.long), 0)] += 1
    expected = torch.tensor(LOGITS[:5]).softmax(-1)
    assert torch.allclose(counts[:5] / 4000, expected, atol=0.03)


def test_a_repeated_token_is_penalized_whatever_its_sign() -> None:
    assert sample([2.0, 1.9, 0.0, 0.0, 0.0, 0.0], SamplingParams(1, repetition_penalty=1.2), seen=(0,)) == 1
    assert sample([-2.0, -2.1, -9, -9, -9, -9], SamplingParams(1, repetition_penalty=1.2), seen=(0,)) == 1


def test_eos_waits_for_min_new_tokens_and_is_ignored_on_request() -> None:
    logits = [0.0, 0.0, 5.0, 1.0, 0.0, 0.0]
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=2) == 3
    assert sample(logits, SamplingParams(9, min_new_tokens=3), generated=3) == EOS
    assert sample(logits, SamplingParams(9, ignore_eos=True), generated=8) == 3


@given(
    text=st.text("ab#", max_size=30), stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3), cut=st.data()
)
def test_any_split_of_the_text_stops_at_the_same_place(text: str, stops: list[str], cut: st.DataObject) -> None:
    stop_text = StopText(tuple(stops))
    position = 0
    while position < len(text):
        width = cut.draw(st.integers(1, 3))
        if stop_text.push(text[position : position + width]):
            break
        position += width
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
        assert stop_text.text == text
        return
    # The push that completes a stop string ends the text before it.
    assert stop_text.stopped
    assert any(stop_text.text + s == text[: len(stop_text.text) + len(s)] for s in stops)
    assert not any(s in stop_text.text for s in stops)
