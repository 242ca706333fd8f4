"""Metadata of an image file: the picture has the pixels that it has without metadata, at a bounded cost."""

import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import (
    HEIGHT,
    LIMITS,
    PICTURE,
    PNG_SIGNATURE,
    SCENE,
    WIDTH,
    chunk,
    encode,
    exif,
    pillow_pixels,
    pixels,
    png,
    small_png,
)
from PIL import Image

from llava_serving.errors import BadRequest
from llava_serving.inputs.image import decode, split_metadata

MIB = 1024 * 1024
# A whole file as large as a request may hold, and a part of it that inflates to a gigabyte.
FILE_BYTES = 20 * MIB
BOMB = zlib.compress(bytes(64 * MIB), 9)

# PNG

PNG_FILES = [
    *(encode(PICTURE.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    encode(PICTURE.convert("L"), "PNG", transparency=7),
    encode(PICTURE.quantize(9), "PNG", transparency=3),
    encode(PICTURE.quantize(9), "PNG", transparency=bytes(range(9))),
    encode(PICTURE, "PNG", transparency=(1, 2, 3)),
    png(WIDTH, HEIGHT, 16, 2, np.random.default_rng(0).bytes(WIDTH * HEIGHT * 6)),
]
with warnings.catch_warnings(action="ignore"):  # Pillow advises against RGB for a palette with alpha
    CLEAN_PIXELS = {encoded: pillow_pixels(encoded) for encoded in PNG_FILES}
KEYWORDS = st.sampled_from((b"Comment", b"XML:com.adobe.xmp", b"Raw profile type exif", b"exif", b"xmp", b""))
ANCILLARY_KINDS = st.one_of(
    st.sampled_from(
        (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"hIST")
    ),
    st.sampled_from((b"acTL", b"fcTL", b"tRNS", b"caBX", b"npTc", b"vpAg")),
    st.from_regex(rb"[a-z][a-zA-Z][A-Z][a-z]", fullmatch=True).filter(lambda kind: kind != b"fdAT"),
)
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.tuples(KEYWORDS, st.sampled_from((b"\0", b"\0\0", b"\0\1", b"\0\1\0\0\0", b"\0\1\0en\0\xff\0")),
              st.one_of(st.binary(max_size=40), st.just(BOMB), st.just(BOMB[:-9]))).map(b"".join),
)  # fmt: skip


@st.composite
def ancillary_chunks(draw: st.DrawFn) -> bytes:
    kind, content = draw(ANCILLARY_KINDS), draw(CONTENTS)
    if kind == b"eXIf":
        content = content.replace(b"\x12", b"")  # no orientation: the pixels stay as they are
    built = chunk(kind, content)
    return built[:-4] + draw(st.binary(min_size=4, max_size=4)) if draw(st.booleans()) else built


@settings(deadline=None, max_examples=300)
@given(
    encoded=st.sampled_from(PNG_FILES),
    before=st.lists(ancillary_chunks(), max_size=3),
    after=st.lists(ancillary_chunks(), max_size=3),
    trailing=st.one_of(st.lists(ancillary_chunks(), max_size=2).map(b"".join), st.binary(max_size=30)),
)
def test_ancillary_chunks_of_a_png_never_change_its_pixels(
    encoded: bytes, before: list[bytes], after: list[bytes], trailing: bytes
) -> None:
    header_end, data, end = 33, encoded.index(b"IDAT") - 4, len(encoded) - 12
    built = b"".join(
        (encoded[:header_end], *before, encoded[header_end:data], *before[:1], encoded[data:end], *after)
    ) + encoded[end:]  # fmt: skip
    assert np.array_equal(pixels(built + trailing), CLEAN_PIXELS[encoded])


def test_a_text_chunk_that_inflates_to_over_a_mebibyte_is_ignored() -> None:
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * (MIB + 1))
    assert np.array_equal(pixels(small_png(before=chunk(b"iTXt", text))), pillow_pixels(small_png()))


@pytest.mark.parametrize("length", [0, 1, 500, 2**31 - 1, 2**32 - 1])
def test_a_png_cut_in_its_last_ancillary_chunk_is_read(length: int) -> None:
    cut = encode(PICTURE, "PNG")[:-12] + struct.pack(">I", length) + b"tEXtComment\0"
    assert np.array_equal(pixels(cut), SCENE)


def test_a_png_without_its_end_is_read() -> None:
    assert np.array_equal(pixels(encode(PICTURE, "PNG")[:-12]), SCENE)


def test_text_between_two_parts_of_the_data_is_ignored() -> None:
    encoded = encode(PICTURE, "PNG")
    start = encoded.index(b"IDAT") + 4
    data = encoded[start:-16]
    parts = [chunk(b"IDAT", data[:50]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", b""), chunk(b"IDAT", data[50:])]
    assert np.array_equal(pixels(encoded[: start - 8] + b"".join(parts) + chunk(b"IEND", b"")), SCENE)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_bad_checksum_of_what_decides_the_pixels_is_refused(kind: bytes) -> None:
    encoded = bytearray(encode(PICTURE.quantize(9), "PNG"))
    position = encoded.index(kind)
    length = int.from_bytes(encoded[position - 4 : position])
    encoded[position + 4 + length] ^= 1
    with pytest.raises(BadRequest):
        decode(bytes(encoded), LIMITS)


def test_the_orientation_of_an_exif_chunk_with_a_bad_checksum_is_ignored() -> None:
    turned = encode(PICTURE, "PNG", exif=exif(6))
    position = turned.index(b"eXIf")
    damaged = bytearray(turned)
    damaged[position + 4 + int.from_bytes(turned[position - 4 : position])] ^= 1
    assert pixels(turned).shape == (WIDTH, HEIGHT, 3)
    assert np.array_equal(pixels(bytes(damaged)), SCENE)


XMP = b'<x:xmpmeta tiff:Orientation="6"/>'
RAW_EXIF = b"\nexif\n  38\n" + exif(6).tobytes().hex().encode() + b"\n"


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"eXIf", exif(6).tobytes()[6:]),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0XMP\0" + zlib.compress(XMP)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + bytes(8 * MIB))),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW_EXIF),
    ],
)
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_orientation_in_each_kind_of_png_metadata_applies(metadata: bytes, position: str) -> None:
    rows = b"\1\2\3\4\5\6"
    assert pixels(png(2, 1, 8, 2, rows, **{position: metadata})).shape == (2, 1, 3)


# JPEG

JPEG_FILES = [
    *(encode(PICTURE.convert(mode), "JPEG", quality=95) for mode in ("L", "RGB", "CMYK")),
    encode(PICTURE, "JPEG", progressive=True),
    encode(PICTURE, "JPEG", keep_rgb=True, quality=95),
]
JPEG_MARKERS = st.sampled_from((*range(0xE0, 0xF0), 0xFE))
JPEG_PREFIXES = st.sampled_from(
    (b"", b"JFIF\0", b"JFIF", b"Adobe", b"Exif\0\0", b"Exif\0\0II*\0", b"http://ns.adobe.com/xap/1.0/\0", b"FPXR\0",
     b"ICC_PROFILE\0", b"ICC_PROFILE\0\1\2", b"Photoshop 3.0\0", b"Photoshop 3.0\x008BIM\3\xed\0\0",
     b"Photoshop 3.0\x008BIM", b"MPF\0", b"MPF\0II*\0\x08\0\0\0\1\0")
)  # fmt: skip


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@st.composite
def metadata_segments(draw: st.DrawFn) -> bytes:
    marker, prefix = draw(JPEG_MARKERS), draw(JPEG_PREFIXES)
    content = prefix + draw(st.binary(max_size=30)).replace(b"\x12", b"")
    # A whole JFIF or Adobe segment says how the colors are stored.
    if marker in (0xE0, 0xEE):
        content = content[: 13 if marker == 0xE0 else 11]
    return segment(marker, content)


@settings(deadline=None, max_examples=300)
@given(
    encoded=st.sampled_from(JPEG_FILES),
    metadata=st.lists(metadata_segments(), max_size=4),
    early=st.booleans(),
    filling=st.integers(0, 3),
)
def test_application_segments_of_a_jpeg_never_change_its_pixels(
    encoded: bytes, metadata: list[bytes], early: bool, filling: int
) -> None:
    position = 2 if early else encoded.index(b"\xff\xda")
    built = encoded[:position] + b"\xff" * filling + b"".join(metadata) + encoded[position:]
    assert np.array_equal(pixels(built), pillow_pixels(encoded))


@pytest.mark.parametrize("length", [0, 1])
def test_a_comment_of_an_impossible_length_is_ignored(length: int) -> None:
    encoded = JPEG_FILES[1]
    built = encoded[:2] + b"\xff\xfe" + struct.pack(">H", length) + encoded[2:]
    assert np.array_equal(pixels(built), pillow_pixels(encoded))


def test_the_adobe_segment_decides_the_colors() -> None:
    encoded = encode(PICTURE, "JPEG", quality=95, keep_rgb=True)
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")  # no transform: RGB
    start = encoded.index(b"\xff\xdb")
    for built in (adobe, adobe + adobe, segment(0xEE, b"Adobe\0\x64\0\0\0\0\1") + adobe):
        file = encoded[:2] + built + encoded[start:]
        assert np.array_equal(pixels(file), pillow_pixels(file))
        assert np.abs(pixels(file).astype(int) - SCENE).mean() < 12


def test_the_orientation_in_exif_split_over_two_segments_applies() -> None:
    block = exif(6).tobytes()
    encoded = encode(PICTURE, "JPEG")
    parts = segment(0xE1, block[:20]) + segment(0xE1, b"Exif\0\0" + block[20:])
    assert pixels(encoded[:2] + parts + encoded[2:]).shape == (WIDTH, HEIGHT, 3)


# WebP

WEBP_FILES = [
    encode(PICTURE, "WEBP"),
    encode(PICTURE, "WEBP", lossless=True),
    encode(PICTURE.convert("RGBA"), "WEBP", lossless=True),
    encode(Image.merge("RGBA", (*PICTURE.split(), PICTURE.split()[1])), "WEBP", exact=True),
    encode(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)], lossless=True),
]


def riff_chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(content) if length is None else length) + content + b"\0" * (len(content) % 2)


def webp(chunks: bytes, length: int | None = None) -> bytes:
    return b"RIFF" + struct.pack("<I", len(chunks) + 4 if length is None else length) + b"WEBP" + chunks


def extended(encoded: bytes, flags: int) -> bytes:
    """Returns the chunks of a WebP, with the flags added to its VP8X chunk."""
    chunks = encoded[12:]
    if not chunks.startswith(b"VP8X"):
        canvas = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
        return riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + canvas) + chunks
    return chunks[:8] + bytes([chunks[8] | flags]) + chunks[9:]


@settings(deadline=None, max_examples=300)
@given(
    encoded=st.sampled_from(WEBP_FILES),
    flags=st.sampled_from((0, 0x20, 0x08, 0x04, 0x2C)),
    kinds=st.lists(st.sampled_from((b"EXIF", b"XMP ", b"ICCP", b"ABCD", b"\0\0\0\0")), max_size=3),
    content=st.binary(max_size=30).map(lambda content: content.replace(b"\x12", b"")),
    early=st.booleans(),
    excess=st.sampled_from((0, 0, 1, 2, 1000, 2**32 - 31)),
    trailing=st.binary(max_size=10),
)
def test_metadata_chunks_of_a_webp_never_change_its_pixels(
    encoded: bytes, flags: int, kinds: list[bytes], content: bytes, early: bool, excess: int, trailing: bytes
) -> None:
    chunks = extended(encoded, flags)
    metadata = b"".join(riff_chunk(kind, content) for kind in kinds)
    position = 18 if early else len(chunks)
    last = riff_chunk(b"EXIF", content, len(content) + excess) if excess else b""
    built = chunks[:position] + metadata + chunks[position:] + last
    assert np.array_equal(pixels(webp(built) + trailing), pillow_pixels(encoded))


def test_a_damaged_later_frame_of_a_webp_is_ignored() -> None:
    encoded = WEBP_FILES[-1]
    second = encoded.rindex(b"ANMF")
    assert encoded.index(b"ANMF") < second
    expected = pillow_pixels(encoded)
    assert np.array_equal(pixels(encoded[: second + 30]), expected)
    assert np.array_equal(pixels(encoded[: second + 4] + b"\xff" * 40 + encoded[second + 44 :]), expected)


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP "])
def test_the_orientation_in_webp_metadata_applies(kind: bytes) -> None:
    content = exif(6).tobytes() if kind == b"EXIF" else XMP
    chunks = extended(encode(PICTURE, "WEBP"), 0x0C) + riff_chunk(kind, content)
    assert pixels(webp(chunks)).shape == (WIDTH, HEIGHT, 3)


# GIF

GIF_FILES = [
    encode(PICTURE.quantize(9), "GIF"),
    encode(PICTURE.convert("L"), "GIF"),
    encode(PICTURE.quantize(9), "GIF", transparency=3),
    encode(PICTURE.quantize(9), "GIF", save_all=True, append_images=[PICTURE.rotate(180).quantize(9)], disposal=2),
]
GIF_LABELS = st.sampled_from((0xFE, 0xFF, 0x01, 0xF9, 0x00))


def extension(label: int, blocks: list[bytes]) -> bytes:
    return b"!" + bytes([label]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


@st.composite
def extensions(draw: st.DrawFn) -> bytes:
    label = draw(GIF_LABELS)
    # A graphic control extension of four bytes is no metadata: it says which color is transparent.
    largest = 3 if label == 0xF9 else 255
    return extension(label, draw(st.lists(st.binary(min_size=1, max_size=largest), max_size=3)))


def gif_header_bytes(encoded: bytes) -> int:
    return 13 + (3 << (encoded[10] & 7) + 1 if encoded[10] & 0x80 else 0)


@settings(deadline=None, max_examples=300)
@given(encoded=st.sampled_from(GIF_FILES), metadata=st.lists(extensions(), max_size=3), trailing=st.binary(max_size=9))
def test_extensions_of_a_gif_never_change_its_pixels(encoded: bytes, metadata: list[bytes], trailing: bytes) -> None:
    position = gif_header_bytes(encoded)
    built = encoded[:position] + b"".join(metadata) + encoded[position:] + trailing
    assert np.array_equal(pixels(built), pillow_pixels(encoded))


def test_the_transparent_color_fills_the_canvas_around_a_gif_s_frame() -> None:
    encoded = bytearray(encode(PICTURE.quantize(9), "GIF", transparency=3))
    encoded[6:10] = struct.pack("<HH", WIDTH + 5, HEIGHT + 5)
    actual = pixels(bytes(encoded))
    assert np.array_equal(actual, pillow_pixels(bytes(encoded)))
    color = PICTURE.quantize(9).getpalette()[9:12]  # type: ignore[index]
    assert actual[-1, -1].tolist() == color


# The cost


def peak_allocation(read: Callable[[], object]) -> int:
    """Returns the most bytes that Python allocates meanwhile. Pillow's pixels are not among them."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def repeated(part: bytes, size: int = FILE_BYTES - 4096) -> bytes:
    return part * (size // len(part))


def exif_of_overlapping_values(size: int) -> bytes:
    """Builds EXIF of 5,000 entries, each of which says that its value is all of the EXIF."""
    entries = b"".join(struct.pack("<HHII", 0x1000 + i, 7, size - 100, 8) for i in range(5000))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries).ljust(size, b"\0")


def jpeg_with(metadata: bytes) -> bytes:
    encoded = encode(PICTURE, "JPEG")
    return encoded[:2] + metadata + encoded[2:]


def gif_with(metadata: bytes) -> bytes:
    position = gif_header_bytes(GIF_FILES[0])
    return GIF_FILES[0][:position] + metadata + GIF_FILES[0][position:]


COSTLY_METADATA = {
    "PNG, inflating XMP": lambda: small_png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB) * 90),
    "PNG, inflating text": lambda: small_png(chunk(b"zTXt", b"Comment\0\0" + BOMB) * 90),
    "PNG, inflating EXIF": lambda: small_png(chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB) * 90),
    "PNG, inflating color profiles": lambda: small_png(repeated(chunk(b"iCCP", b"name\0\0" + BOMB))),
    "PNG, text of 19 MiB": lambda: small_png(chunk(b"tEXt", b"Comment\0" + bytes(19 * MIB))),
    "PNG, EXIF of overlapping values": lambda: small_png(chunk(b"eXIf", exif_of_overlapping_values(19 * MIB))),
    "PNG, many empty chunks": lambda: small_png(repeated(chunk(b"teXt", b""), MIB // 4)),
    "PNG, many private chunks after the data": lambda: small_png(b"", repeated(chunk(b"teXt", b""), MIB // 4)),
    "JPEG, EXIF of overlapping values": lambda: jpeg_with(
        segment(0xE1, b"Exif\0\0" + exif_of_overlapping_values(65_000))
    ),
    "JPEG, many comments": lambda: jpeg_with(repeated(segment(0xFE, b"x"), MIB // 4)),
    "JPEG, many JFIF segments": lambda: jpeg_with(repeated(segment(0xE0, b"JFIF\0" + bytes(9)), MIB // 4)),
    "JPEG, fill bytes": lambda: jpeg_with(b"\xff" * 19 * MIB),
    "WebP, EXIF of overlapping values": lambda: webp(
        extended(WEBP_FILES[0], 8) + riff_chunk(b"EXIF", exif_of_overlapping_values(19 * MIB))
    ),
    "GIF, many comments": lambda: gif_with(repeated(extension(0xFE, [b"xy"]), MIB // 4)),
    "GIF, one comment of many blocks": lambda: gif_with(extension(0xFE, [b"xy"] * (MIB // 12))),
}


@pytest.mark.parametrize("name", COSTLY_METADATA)
def test_costly_metadata_takes_less_than_four_mebibytes(name: str) -> None:
    encoded = COSTLY_METADATA[name]()
    assert len(encoded) < FILE_BYTES
    assert decode(encoded, LIMITS).mode == "RGB"  # Pillow loads its plugins
    assert peak_allocation(lambda: decode(encoded, LIMITS)) < 4 * MIB


def test_many_exif_blocks_are_read_once() -> None:
    encoded = jpeg_with(repeated(segment(0xE1, b"Exif\0\0MM"), MIB // 4))
    assert np.array_equal(pixels(encoded), pillow_pixels(encode(PICTURE, "JPEG")))
    assert peak_allocation(lambda: decode(encoded, LIMITS)) < 4 * MIB


def test_no_color_profile_of_a_png_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.PngImagePlugin._safe_zlib_decompress", lambda data: pytest.fail("inflated"))
    encoded = small_png(before=chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile")) * 1000)
    assert np.array_equal(pixels(encoded), pillow_pixels(small_png()))


NOISE = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("JPEG", {"quality": 100}), ("WEBP", {"quality": 95, "method": 0})]
)
def test_a_picture_is_copied_once(format: str, options: dict[str, object]) -> None:
    encoded = encode(Image.fromarray(NOISE), format, **options)
    copies = peak_allocation(lambda: decode(encoded, LIMITS)) / len(encoded)
    # WebP's decoder gets the whole file, and Pillow puts its frame into bytes.
    assert copies < (1.3 if format != "WEBP" else 2.3 + NOISE.nbytes * 4 / 3 / len(encoded))


@pytest.mark.parametrize("name", [name for name in COSTLY_METADATA if name.startswith("PNG")])
def test_refusing_a_png_with_costly_metadata_takes_less_than_four_mebibytes(name: str) -> None:
    encoded = COSTLY_METADATA[name]().replace(b"IDAT", b"JDAT")

    def refuse() -> None:
        with pytest.raises(BadRequest, match="damaged"):
            decode(encoded, LIMITS)

    refuse()
    assert peak_allocation(refuse) < 4 * MIB


def test_many_parts_of_a_png_s_data_are_decoded_as_one() -> None:
    encoded = encode(PICTURE, "PNG")
    start = encoded.index(b"IDAT") + 4
    data = encoded[start:-16]
    parts = b"".join(chunk(b"IDAT", data[i : i + 1]) + chunk(b"IDAT", b"") * 20 for i in range(len(data)))
    file = encoded[: start - 8] + parts + chunk(b"IEND", b"")
    assert np.array_equal(pixels(file), SCENE)
    assert len(split_metadata(file).picture) == len(encoded)


def test_the_signature_of_a_png_alone_is_refused() -> None:
    with pytest.raises(BadRequest, match="not a readable"):
        decode(PNG_SIGNATURE + chunk(b"tEXt", b"a\0b"), LIMITS)
