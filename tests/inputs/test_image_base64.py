"""Base64 of images: every variant that clients send is decoded, and every other text is refused with its fault."""

import base64
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from image_cases import LIMITS, Pixels, encode
from PIL import Image

from llava_serving.errors import BadRequest, RequestError, TooLarge
from llava_serving.inputs.image import ImageReader, OpenedImage
from llava_serving.inputs.image_base64 import decode_base64
from llava_serving.inputs.prompt import ImageSource

MIB = 1024 * 1024
MAX_BYTES = 20 * MIB


def read(data: str) -> Pixels:
    return np.asarray(ImageReader(LIMITS, None).read(ImageSource(data, "images[0]"), OpenedImage.decode))


def refusal(data: str) -> str:
    """Returns the message of the refusal, which is short and has the path of the image."""
    with pytest.raises(BadRequest) as error_info:
        read(data)
    error = error_info.value
    assert (error.code, error.param) == ("invalid_image", "images[0]")
    assert len(error.message) < 250
    return error.message


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
ENCODED = encode(Image.fromarray(NOISE), "PNG")
ENCODED += bytes((1 - len(ENCODED)) % 3)  # a length that base64 pads with two characters
TEXT = base64.b64encode(ENCODED).decode()
URL_SAFE_TEXT = base64.urlsafe_b64encode(ENCODED).decode()
MIME_TEXT = base64.encodebytes(ENCODED).decode()
ESCAPED_TEXT = TEXT.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
HEADER = "data:image/png;base64,"


def test_the_text_has_each_special_character() -> None:
    assert {"+", "/", "="} <= set(TEXT)
    assert TEXT.endswith("==")


# What is decoded


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        MIME_TEXT,
        MIME_TEXT.replace("\n", "\r\n"),
        "\n" + TEXT + "\n\n",
        " ".join(re.findall(r".{1,7}", TEXT)),
        "\u00a0".join(re.findall(r".{1,99}", TEXT)),
        "\ufeff" + TEXT,
        TEXT.rstrip("="),
        TEXT + "==",
        URL_SAFE_TEXT,
        URL_SAFE_TEXT.rstrip("="),
        ESCAPED_TEXT,
        ESCAPED_TEXT.replace("%2B", "%2b").replace("%2F", "/"),
        f'"{TEXT}"',
        f"'{TEXT}'",
        f' "{MIME_TEXT}" ',
        *(
            uri
            for header in (
                HEADER, HEADER + "\n", HEADER + '"', "data:;base64,", "DATA:IMAGE/PNG;BASE64,",
                " data:image/png;base64,",
                "data:image/png;name=a.png;base64,", "data:image/png; base64,",
                "data:image/jpeg;base64,",  # the bytes decide, not the media type
            )
            for uri in (header + TEXT, header + MIME_TEXT, header + URL_SAFE_TEXT.rstrip("="), header + ESCAPED_TEXT)
        ),
        f'"{HEADER}{TEXT}"',
        f"'{HEADER}{URL_SAFE_TEXT}'\n",
    ],
)  # fmt: skip
def test_a_picture_is_read_from_each_variant(data: str) -> None:
    assert np.array_equal(read(data), NOISE)


WHITESPACE = st.text(alphabet=" \t\r\n\f\v\u2003", max_size=3)
WRAPPERS = st.sampled_from(("{}", '"{}"', "'{}'", ' "{}"\n', "data:image/png;base64,{}", "'data:;base64,{}'"))


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=300), url_safe=st.booleans(), padded=st.booleans(),
       positions=st.lists(st.integers(0, 410), max_size=5), space=WHITESPACE, wrapper=WRAPPERS)  # fmt: skip
def test_each_variant_is_decoded_as_the_standard_library_decodes_base64(
    content: bytes, url_safe: bool, padded: bool, positions: list[int], space: str, wrapper: str
) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(content).decode()
    text = text if padded else text.rstrip("=")
    for position in sorted(positions, reverse=True):
        text = text[:position] + space + text[position:]
    assert decode_base64(wrapper.format(text), 300) == content


@settings(deadline=None)
@given(text=st.text(alphabet="AZaz09+/=", min_size=1, max_size=24))
def test_text_that_the_standard_library_refuses_is_refused(text: str) -> None:
    body = text.rstrip("=")
    try:
        expected = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError:
        expected = b""
    assume(expected or body)
    if expected:
        assert decode_base64(text, 300) == expected
    else:
        with pytest.raises(BadRequest, match="not valid base64"):
            decode_base64(text, 300)


def test_an_image_of_many_slices_is_decoded() -> None:
    content = np.random.default_rng(1).bytes(3 * MIB + 1)
    assert decode_base64(base64.b64encode(content).decode(), MAX_BYTES) == content


def test_padding_at_the_end_of_a_slice_is_refused() -> None:
    text = "A" * (MIB - 2) + "==" + "A" * MIB
    with pytest.raises(BadRequest, match=r"padding \(=\) at position 1048574"):
        decode_base64(text, MAX_BYTES)


# What is refused


@pytest.mark.parametrize("data", ["", " ", "\r\n", "''", "data:;base64,", "data:image/png;base64,\n"])
def test_an_empty_image_is_refused(data: str) -> None:
    assert "empty" in refusal(data)


@pytest.mark.parametrize(
    "data",
    ["!!!!", "YWJjZ", "=", "YW=Jj", "\u00e9" * 4, "\0\0\0\0", "\ud800aaa", "data:;base64,YWJjZ", "data:;base64,%41%41"],
)
def test_invalid_base64_is_refused_with_the_path(data: str) -> None:
    assert refusal(data).startswith("the image is not valid base64: ")


@pytest.mark.parametrize(
    "data",
    ["data:", "data:,", "data:image/png," + TEXT, "data:image/png;base64", "data:image/png;base64;x," + TEXT],
)
def test_the_error_about_a_data_uri_without_base64_shows_the_form(data: str) -> None:
    message = refusal(data)
    assert "has no ;base64" in message
    assert "data:image/png;base64,<data>" in message


@pytest.mark.parametrize("data", ["image/png;base64," + TEXT, ";base64," + TEXT, "base64," + TEXT])
def test_a_data_uri_without_its_scheme_is_named(data: str) -> None:
    assert 'a data: URI without "data:"' in refusal(data)


@pytest.mark.parametrize(
    "path",
    ["/home/me/cat.png", "/home/me/cat", "/tmp/x.b64", "./cat.jpg", "../images/cat", "~/cat.webp", "cat.png",
     "My Cat.JPG",
     "images/cat.jpeg", "C:\\images\\cat.png", "d:/images/cat", "\\\\server\\share\\cat", '"/home/me/cat.png"',
     HEADER + "/home/me/cat.png"],
)  # fmt: skip
def test_a_path_is_named(path: str) -> None:
    assert "it looks like a file path" in refusal(path)


@pytest.mark.parametrize(
    "url",
    ["//example.com/cat.png", "www.example.com/cat.png", "example.com/cat.png", "example.com:8080/cat", "http//x.y/z",
     "https:/", HEADER + "https://example.com/cat.png"],
)  # fmt: skip
def test_a_url_without_its_scheme_is_named(url: str) -> None:
    with pytest.raises(RequestError) as error_info:
        read(url)
    assert "URL" in error_info.value.message


@pytest.mark.parametrize("url", ["https://example.com/cat.png", ' "https://example.com/cat.png" ', "file:///cat.png"])
def test_a_url_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(BadRequest, match="does not fetch image URLs") as error_info:
        read(url)
    assert (error_info.value.code, error_info.value.param) == ("image_url_not_allowed", "images[0]")


@pytest.mark.parametrize("wrapper", ["{}", '"{}"', HEADER + "{}"])
@pytest.mark.parametrize("length", range(len(ENCODED) - 11, len(ENCODED) + 1))
def test_plus_turned_into_spaces_is_named(wrapper: str, length: int) -> None:
    text = base64.b64encode(ENCODED[:length]).decode().replace("+", " ")
    assert 'form-encoding turns "+" into a space' in refusal(wrapper.format(text))


def test_padding_that_fits_only_with_the_spaces_tells_that_plus_was_turned_into_spaces() -> None:
    text = "A" * 30 + "++" + "A" * 10 + "=="
    assert len(decode_base64(text, 300)) == 31
    with pytest.raises(BadRequest, match="form-encoding"):
        decode_base64(text.replace("+", " "), 300)


@pytest.mark.parametrize("text", [f"b'{TEXT}'", f'b"{TEXT}"', f"\"b'{TEXT}'\""])
def test_a_literal_of_python_bytes_is_named(text: str) -> None:
    assert "Python bytes literal" in refusal(text)


@pytest.mark.parametrize("wrapper", ["{}", HEADER + "{}"])
@pytest.mark.parametrize("length", [5, 101, 2049, 4001])
def test_a_text_cut_off_is_named(wrapper: str, length: int) -> None:
    message = refusal(wrapper.format(TEXT[:length]))
    assert f"it is cut off: {length:,} characters" in message


@pytest.mark.parametrize("ellipsis", ["...", "\u2026"])
def test_a_text_that_ends_in_an_ellipsis_is_cut_off(ellipsis: str) -> None:
    assert "cut off" in refusal(TEXT[:40] + ellipsis)


@settings(deadline=None)
@given(
    character=st.characters(exclude_characters="%").filter(
        lambda c: not (c.isspace() or c in "=-_+/\"'\ufeff" or (c.isascii() and c.isalnum()))
    ),
    index=st.integers(10, 4000),
    wrapper=st.sampled_from(("{}", '  "{}"', HEADER + "{}", " '" + HEADER + "{}'")),
)
def test_a_wrong_character_is_named_with_its_position(character: str, index: int, wrapper: str) -> None:
    data = wrapper.format(TEXT[:index] + character + TEXT[index:])
    position = data.index(character, data.index(TEXT[:index]))
    assert f"the character {character!a} at position {position} (counted from 0)" in refusal(data)


def test_padding_before_the_end_is_named_with_its_position() -> None:
    assert "padding (=) at position 40 (counted from 0)" in refusal(TEXT[:40] + "=" + TEXT[40:])


@pytest.mark.parametrize("data", ["!" * 10_000, "x" * 10_001, "/" * 10_001, "é" * 10_000, "=" * 10_000, "%" * 10_000])
def test_no_refusal_repeats_a_long_text(data: str) -> None:
    refusal(data)  # checks the length of the message


# Limits


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=300), line=st.integers(1, 90), end=st.sampled_from(("\n", "\r\n", "\t")))
def test_line_breaks_do_not_count_towards_the_limit_on_bytes(content: bytes, line: int, end: str) -> None:
    text = base64.b64encode(content).decode()
    broken = "".join(text[i : i + line] + end for i in range(0, len(text), line))
    assert decode_base64(broken, len(content)) == content
    with pytest.raises(TooLarge):
        decode_base64("A" * 4 + broken, len(content))


@pytest.mark.parametrize("prefix", ["", HEADER])
def test_base64_over_the_limit_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *args, **options: pytest.fail("decoded"))
    with pytest.raises(TooLarge, match="1,000 bytes") as error_info:
        decode_base64(prefix + "A" * 1400, 1000)
    assert error_info.value.code == "image_too_large"


@pytest.mark.parametrize("end", ["==", "", "!", "A", "\u2003"])
def test_decoding_or_refusing_allocates_less_than_five_times_the_image(end: str) -> None:
    data = base64.b64encode(np.random.default_rng(2).bytes(4 * MIB)).decode().rstrip("=") + end
    tracemalloc.start()
    try:
        decode_base64(data, MAX_BYTES)
    except BadRequest:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5 * 4 * MIB
