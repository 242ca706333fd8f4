import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Reference

from llava_serving.engine.detokenizer import Detokenizer
from llava_serving.errors import StartupError
from llava_serving.inputs.prompt import ImageSource
from llava_serving.inputs.templates import END_OF_TEXT
from llava_serving.inputs.tokenizer import ImageTokens, Tokenizer, added_tokens, load_sentencepiece
from llava_serving.weights.loader import LoadedModel

PICTURE = ImageSource("", "")


def test_a_prompt_starts_with_bos_and_is_sentencepiece_s(loaded: LoadedModel, reference: Reference) -> None:
    assert loaded.tokenizer.encode(["What is in the image?"]) == [1, *reference.text.encode("What is in the image?")]


@pytest.mark.parametrize("text", [" Hello", "  two spaces", "trailing ", "\n", "tabs\tand\nlines", ""])
def test_white_space_of_raw_text_is_kept(loaded: LoadedModel, reference: Reference, text: str) -> None:
    assert loaded.tokenizer.encode([text]) == [1, *reference.text.encode(text)]


def test_white_space_beside_an_image_is_dropped_and_text_after_it_starts_afresh(
    loaded: LoadedModel, reference: Reference
) -> None:
    ids = loaded.tokenizer.encode(["What is it?\n", PICTURE, " \n###Assistant:"])
    encode = reference.text.encode
    assert ids == [1, *encode("What is it?"), *reference.image_ids(), *encode("###Assistant:")]
    assert reference.text.id_to_piece(encode("###Assistant:")[0]).startswith("\u2581")


def test_an_end_of_text_is_its_token_and_text_after_it_starts_afresh(loaded: LoadedModel, reference: Reference) -> None:
    ids = loaded.tokenizer.encode(["A dog.", END_OF_TEXT, " USER: Sure?"])
    encode = reference.text.encode
    assert ids == [1, *encode("A dog."), 2, *encode("USER: Sure?")]


def test_images_side_by_side(loaded: LoadedModel, reference: Reference) -> None:
    assert loaded.tokenizer.encode([PICTURE, PICTURE]) == [1, *reference.image_ids(), *reference.image_ids()]


@pytest.mark.parametrize("typed", ["</s>", "<s>", "<unk>", "<im_patch>", "<im_start><im_end>", "[PAD]", "<0x0A>"])
def test_special_tokens_typed_by_a_caller_are_characters(loaded: LoadedModel, typed: str) -> None:
    ids = loaded.tokenizer.encode([f"a {typed} b"])[1:]
    assert 1 not in ids
    assert 2 not in ids
    assert max(ids) < loaded.tokenizer.text_vocab_size
    assert b"".join(map(loaded.tokenizer.token_bytes, ids)) == f" a {typed} b".encode()


@given(text=st.text())
def test_the_bytes_of_the_tokens_are_the_text(loaded: LoadedModel, text: str) -> None:
    ids = loaded.tokenizer.encode([text])[1:]
    # SentencePiece puts a space before the first word, and reads its own word mark as a space.
    expected = f" {text}".replace("\u2581", " ") if text else ""
    assert b"".join(map(loaded.tokenizer.token_bytes, ids)).decode() == expected


@given(text=st.text(), cuts=st.lists(st.integers(0, 60)))
def test_any_split_of_the_bytes_gives_the_same_text(text: str, cuts: list[int]) -> None:
    whole = text.encode()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    detokenizer = Detokenizer()
    pieces = [detokenizer.push(whole[a:b]) for a, b in itertools.pairwise(edges)]
    assert "".join(pieces) + detokenizer.flush() == text


def test_an_unfinished_character_is_shown_as_one() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push("é".encode()[:1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_without_markers_an_image_is_its_patches(parts_dir: Path) -> None:
    tokenizer = Tokenizer(
        load_sentencepiece(parts_dir / "delta"), ImageTokens(patch=400, count=3, start=None, end=None)
    )
    assert tokenizer.encode([PICTURE]) == [1, 400, 400, 400]


def test_tokenizer_json_alone_is_refused(tmp_path: Path) -> None:
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
def test_added_tokens_are_found_where_transformers_writes_them(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    assert added_tokens(tmp_path) == {"<im_patch>": 7}


@given(text=st.text(), images=st.integers(0, 2))
def test_the_fewest_tokens_are_never_more_than_there_are(loaded: LoadedModel, text: str, images: int) -> None:
    segments = [text, *[PICTURE] * images]
    assert loaded.tokenizer.fewest_tokens(segments) <= len(loaded.tokenizer.encode(segments))
