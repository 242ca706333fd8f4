"""Prompts to token ids as v0's tokenizer, and token ids back to text."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Reference

from llava_serving.engine.detokenizer import Detokenizer
from llava_serving.errors import StartupError
from llava_serving.inputs.prompt import ImageSource
from llava_serving.inputs.templates import EOS
from llava_serving.inputs.tokenizer import EncodedPrompt, ImageTokens, Tokenizer, added_tokens, load_sentencepiece
from llava_serving.weights.loader import LoadedModel

IMAGE = ImageSource("", "")


def test_a_text_is_encoded_as_bos_and_the_ids_of_sentencepiece(loaded: LoadedModel, reference: Reference) -> None:
    text = "What is in the image?"
    assert loaded.tokenizer.encode([text]) == EncodedPrompt((1, *reference.sentencepiece.encode(text)), ())


@pytest.mark.parametrize("text", [" Hello", "  two spaces", "trailing ", "\n", "tabs\tand\nlines", ""])
def test_white_space_at_the_ends_of_a_prompt_is_encoded(loaded: LoadedModel, reference: Reference, text: str) -> None:
    assert loaded.tokenizer.encode([text]).token_ids == (1, *reference.sentencepiece.encode(text))


def test_white_space_next_to_an_image_is_dropped_and_the_text_after_it_begins_with_a_word_mark(
    loaded: LoadedModel, reference: Reference
) -> None:
    token_ids = loaded.tokenizer.encode(["What is it?\n", IMAGE, " \n###Assistant:"]).token_ids
    encode = reference.sentencepiece.encode
    assert token_ids == (1, *encode("What is it?"), *reference.image_ids(), *encode("###Assistant:"))
    assert reference.sentencepiece.id_to_piece(encode("###Assistant:")[0]).startswith("\u2581")


def test_white_space_after_an_eos_token_is_dropped(loaded: LoadedModel, reference: Reference) -> None:
    token_ids = loaded.tokenizer.encode(["A dog.", EOS, " USER: Sure?"]).token_ids
    encode = reference.sentencepiece.encode
    assert token_ids == (1, *encode("A dog."), 2, *encode("USER: Sure?"))


def test_two_adjacent_images_have_their_tokens_one_after_the_other(loaded: LoadedModel, reference: Reference) -> None:
    encoded = loaded.tokenizer.encode([IMAGE, IMAGE])
    assert encoded.token_ids == (1, *reference.image_ids(), *reference.image_ids())
    assert encoded.image_starts == (2, 2 + len(reference.image_ids()))


@given(texts=st.lists(st.text(max_size=5)))
def test_image_starts_are_the_first_patch_of_each_image(loaded: LoadedModel, texts: list[str]) -> None:
    encoded = loaded.tokenizer.encode([segment for text in texts for segment in (text, IMAGE)])
    image = loaded.tokenizer.image
    patches = [i for i, token_id in enumerate(encoded.token_ids) if token_id == image.patch]
    assert list(encoded.image_starts) == patches[:: image.count]
    assert len(encoded.image_starts) == len(texts)


@pytest.mark.parametrize("typed", ["</s>", "<s>", "<unk>", "<im_patch>", "<im_start><im_end>", "[PAD]", "<0x0A>"])
def test_the_name_of_a_special_token_in_a_text_is_characters(loaded: LoadedModel, typed: str) -> None:
    ids = loaded.tokenizer.encode([f"a {typed} b"]).token_ids[1:]
    assert 1 not in ids
    assert 2 not in ids
    assert max(ids) < loaded.tokenizer.text_vocab_size
    assert b"".join(map(loaded.tokenizer.token_bytes, ids)) == f" a {typed} b".encode()


@given(text=st.text())
def test_the_bytes_of_the_tokens_of_any_text_are_the_text(loaded: LoadedModel, text: str) -> None:
    ids = loaded.tokenizer.encode([text]).token_ids[1:]
    # SentencePiece puts a space before the first word, and reads its own word mark as a space.
    expected = f" {text}".replace("\u2581", " ") if text else ""
    assert b"".join(map(loaded.tokenizer.token_bytes, ids)).decode() == expected


@given(text=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_the_detokenizer_returns_the_text_however_its_bytes_are_split(text: str, cuts: list[int]) -> None:
    whole = text.encode()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    detokenizer = Detokenizer()
    texts = [detokenizer.push(whole[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(texts) + detokenizer.flush() == text


def test_the_detokenizer_ends_an_incomplete_character_with_a_replacement_character() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push("é".encode()[:1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_an_image_without_markers_is_its_patches(parts_dir: Path) -> None:
    tokenizer = Tokenizer(
        load_sentencepiece(parts_dir / "delta"), ImageTokens(patch=400, count=3, start=None, end=None)
    )
    assert tokenizer.encode([IMAGE]) == EncodedPrompt((1, 400, 400, 400), (1,))


def test_a_folder_with_only_tokenizer_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match=r"tokenizer\.model"):
        load_sentencepiece(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", '{"<im_patch>": 7}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {"content": "<im_patch>"}}}'),
        ("tokenizer.json", '{"added_tokens": [{"id": 7, "content": "<im_patch>"}]}'),
    ],
)
def test_added_tokens_are_read_from_any_file_that_transformers_writes(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    assert added_tokens(tmp_path) == {"<im_patch>": 7}


@given(text=st.text(), images=st.integers(0, 2))
def test_the_minimum_token_count_is_never_above_the_token_count(loaded: LoadedModel, text: str, images: int) -> None:
    segments = [text, *[IMAGE] * images]
    assert loaded.tokenizer.min_token_count(segments) <= len(loaded.tokenizer.encode(segments).token_ids)
