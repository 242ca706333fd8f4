"""Images of a request: the right pixels of every accepted format, and an error about everything else."""

import base64
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import (
    HEIGHT,
    LIMITS,
    PICTURE,
    SCENE,
    WIDTH,
    Pixels,
    chunk,
    encode,
    exif,
    pillow_pixels,
    pixels,
    png,
    small_png,
)
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from llava_serving.errors import BadRequest, RequestError, TooLarge
from llava_serving.inputs.image import FORMATS, ImageLimits, ImageReader, OpenedImage, decode
from llava_serving.inputs.prompt import ImageSource

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


ALPHA = Image.fromarray((SCENE[..., 0] // 2 + 60).astype(np.uint8))


def decode_error(encoded: bytes, limits: ImageLimits = LIMITS) -> RequestError:
    with pytest.raises(RequestError) as error_info:
        decode(encoded, limits)
    return error_info.value


def check_decoded_or_refused(encoded: bytes, limits: ImageLimits = LIMITS) -> None:
    """Raises if decoding has another result than a picture, BadRequest or TooLarge."""
    try:
        image = decode(encoded, limits)
    except (BadRequest, TooLarge):
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= limits.max_pixels
    image.tobytes()


# Files that Pillow does not write


def gif(canvas: tuple[int, int], frame: tuple[int, int], disposal: int) -> bytes:
    """Builds a GIF of one frame with almost no data."""
    control = b"!\xf9\x04" + bytes([disposal << 2, 0, 0, 0, 0])
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0)
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0, 0, 0) + control + descriptor + b"\2\2\x44\1\0;"


def bmp(width: int, height: int, compression: int, data: bytes) -> bytes:
    palette = b"".join(bytes([i, 0, i, 0]) for i in range(256))
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def webp_canvas(width: int, height: int) -> bytes:
    """Builds an animated WebP with a small frame on a large canvas."""
    image = encode(Image.new("RGB", (16, 16), "red"), "WEBP", lossless=True)[12:]
    frame = b"\0" * 6 + b"\x0f\0\0\x0f\0\0" + b"\0" * 4 + image
    canvas = struct.pack("<IB3x", 10, 2) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + canvas + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame))
    return b"RIFF" + struct.pack("<I", len(body) + len(frame)) + body + frame


def patched(encoded: bytes, position: int, data: bytes) -> bytes:
    return encoded[:position] + data + encoded[position + len(data) :]


# The right pixels


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_rgb_is_decoded_unchanged(format: str) -> None:
    assert np.array_equal(pixels(encode(PICTURE, format)), SCENE)


def test_lossless_webp_is_decoded_unchanged() -> None:
    assert np.array_equal(pixels(encode(PICTURE, "WEBP", lossless=True)), SCENE)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_grey_becomes_three_equal_channels(format: str) -> None:
    encoded = encode(PICTURE.convert("L"), format, lossless=True)
    actual = pixels(encoded)
    assert (actual == actual[..., :1]).all()
    assert np.array_equal(actual, pillow_pixels(encoded))
    if format != "JPEG":
        assert np.array_equal(actual[..., 0], np.asarray(PICTURE.convert("L")))


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF"])
def test_one_bit_becomes_black_and_white(format: str) -> None:
    bits = SCENE[..., 0] > 100
    expected = np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=-1)
    assert np.array_equal(pixels(encode(Image.fromarray(bits), format)), expected)


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF"])
@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_palette_indices_become_their_colors(format: str, colors: int) -> None:
    image = PICTURE.quantize(colors)
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    assert np.array_equal(pixels(encode(image, format)), palette[np.asarray(image)])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_transparent_color_of_a_palette_stays_a_color(format: str) -> None:
    image = PICTURE.quantize(16)
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    assert np.array_equal(pixels(encode(image, format, transparency=3)), palette[np.asarray(image)])


def test_the_alpha_values_of_a_palette_are_dropped() -> None:
    image = PICTURE.quantize(16)
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    encoded = encode(image, "PNG", transparency=bytes(range(0, 160, 10)))
    assert np.array_equal(pixels(encoded), palette[np.asarray(image)])


def test_the_transparent_color_of_rgb_stays_a_color() -> None:
    assert np.array_equal(pixels(encode(PICTURE, "PNG", transparency=tuple(SCENE[3, 4].tolist()))), SCENE)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_alpha_is_dropped(format: str, options: dict[str, Any]) -> None:
    image = PICTURE.copy()
    image.putalpha(ALPHA)
    assert np.array_equal(pixels(encode(image, format, **options)), SCENE)


def test_the_alpha_of_grey_is_dropped() -> None:
    grey = PICTURE.convert("L")
    image = Image.merge("LA", (grey, ALPHA))
    assert np.array_equal(pixels(encode(image, "PNG")), np.repeat(np.asarray(grey)[..., None], 3, axis=-1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_pillow_does(mode: str, progressive: bool) -> None:
    encoded = encode(PICTURE.convert(mode), "JPEG", quality=95, progressive=progressive)
    assert np.array_equal(pixels(encoded), pillow_pixels(encoded))
    grey = PICTURE.convert("L").convert("RGB") if mode == "L" else PICTURE
    assert np.abs(pixels(encoded).astype(int) - np.asarray(grey)).mean() < 12


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossy_webp_is_decoded_as_pillow_does(mode: str) -> None:
    encoded = encode(PICTURE.convert(mode), "WEBP", quality=80)
    assert np.array_equal(pixels(encoded), pillow_pixels(encoded))


def test_each_of_the_65536_greys_becomes_its_high_byte() -> None:
    values = np.arange(65536, dtype=">u2").reshape(256, 256)
    actual = pixels(png(256, 256, 16, 0, values.tobytes()))
    assert np.array_equal(actual, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1))


@pytest.mark.parametrize(
    ("color_type", "channels", "rgb"), [(0, 1, [0, 0, 0]), (2, 3, [0, 1, 2]), (4, 2, [0, 0, 0]), (6, 4, [0, 1, 2])]
)
def test_sixteen_bit_channels_become_their_high_byte(color_type: int, channels: int, rgb: list[int]) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(">u2")
    actual = pixels(png(WIDTH, HEIGHT, 16, color_type, values.tobytes()))
    assert np.array_equal(actual, (values >> 8).astype(np.uint8)[..., rgb])


def test_sixteen_bit_grey_with_a_transparent_color_is_read() -> None:
    encoded = png(2, 1, 16, 0, b"\x12\x34\xff\xff", before=chunk(b"tRNS", b"\x12\x34"))
    assert pixels(encoded).tolist() == [[[0x12] * 3, [0xFF] * 3]]


@pytest.mark.parametrize(("bits", "row"), [(1, 0b01000000), (2, 0b00011011), (4, 0x5A)])
def test_grey_of_few_bits_spans_black_to_white(bits: int, row: int) -> None:
    count = 8 // bits
    values = [row >> (8 - bits * (i + 1)) & (1 << bits) - 1 for i in range(count)]
    expected = [[[value * 255 // ((1 << bits) - 1)] * 3 for value in values]]
    assert pixels(png(count, 1, bits, 0, bytes([row]))).tolist() == expected


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {}), ("GIF", {"disposal": 2}), ("GIF", {"disposal": 3}), ("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_an_animation_becomes_its_first_frame(format: str, options: dict[str, Any]) -> None:
    first = PICTURE.quantize(200).convert("RGB")
    others = [first.transpose(Image.Transpose.ROTATE_180), Image.new("RGB", first.size, "red")]
    encoded = encode(first, format, save_all=True, append_images=others, duration=40, **options)
    assert Image.open(BytesIO(encoded)).n_frames == 3  # type: ignore[attr-defined]
    assert np.array_equal(pixels(encoded), np.asarray(first))


def test_a_jpeg_with_several_pictures_becomes_the_first() -> None:
    encoded = encode(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (5, 5))])
    assert Image.open(BytesIO(encoded)).format == "MPO"
    assert np.array_equal(pixels(encoded), pillow_pixels(encoded))


# Orientation: how EXIF says to turn the stored picture (EXIF 2.32, 4.6.4 A)

TRANSFORMS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TRANSFORMS)
@pytest.mark.parametrize(("format", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_picture_is_turned_upright(format: str, options: dict[str, Any], orientation: int) -> None:
    encoded = encode(PICTURE, format, exif=exif(orientation), **options)
    assert np.array_equal(pixels(encoded), TRANSFORMS[orientation](pillow_pixels(encoded)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_a_picture_of_any_mode_is_turned_upright(mode: str) -> None:
    image = PICTURE.convert("L").convert("I;16") if mode == "I;16" else PICTURE.convert(mode)
    plain = pixels(encode(image, "PNG"))
    assert np.array_equal(pixels(encode(image, "PNG", exif=exif(6))), TRANSFORMS[6](plain))


def test_the_orientation_in_xmp_applies_if_there_is_no_exif() -> None:
    encoded = encode(PICTURE, "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="8"/>')
    assert np.array_equal(pixels(encoded), TRANSFORMS[8](pillow_pixels(encoded)))


def exif_block(*entries: tuple[int, int, int, bytes], more: bytes = b"") -> bytes:
    """Builds EXIF; an entry is a tag, a type, a count, and a value or its position."""
    rows = b"".join(
        struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries
    )
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + b"\0" * 4 + more


SHORT, ASCII, RATIONAL = 3, 2, 5


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(SHORT, 1, b"\0\0"), (SHORT, 1, b"\x09\0"), (SHORT, 1, b"\xff\xff"), (SHORT, 0, b""), (SHORT, 2, b"\0\0\6\0"),
     (ASCII, 2, b"6"), (7, 4, b"\6\6\6\6"), (99, 1, b"\6")],
)  # fmt: skip
def test_an_invalid_orientation_is_ignored(kind: int, count: int, value: bytes) -> None:
    encoded = encode(PICTURE, "JPEG", exif=exif_block((0x0112, kind, count, value)))
    assert np.array_equal(pixels(encoded), pillow_pixels(encoded))


@pytest.mark.parametrize(
    "block",
    [b"", b"MM", b"no TIFF header", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01", encode(PICTURE, "PNG")],
)
def test_exif_that_cannot_be_read_is_ignored(block: bytes) -> None:
    assert np.array_equal(pixels(small_png(before=chunk(b"eXIf", block))), [[[1, 2, 3], [4, 5, 6]]])
    encoded = encode(PICTURE, "JPEG", exif=b"Exif\0\0" + block)
    assert np.array_equal(pixels(encoded), pillow_pixels(encode(PICTURE, "JPEG")))


def test_the_orientation_in_exif_that_pillow_cannot_write_applies() -> None:
    description = (0x010E, RATIONAL, 1, struct.pack("<I", 38))  # a number, where EXIF has a text
    block = exif_block(description, (0x0112, SHORT, 1, b"\6"), more=struct.pack("<II", 1, 2))
    encoded = encode(PICTURE, "JPEG", exif=block)
    assert np.array_equal(pixels(encoded), TRANSFORMS[6](pillow_pixels(encoded)))


PICTURE_TEXT = base64.b64encode(encode(PICTURE, "PNG")).decode()


@pytest.mark.parametrize(("data", "error"), [("!!!!", BadRequest), ("A" * 4000, TooLarge), (PICTURE_TEXT, TooLarge)])
def test_every_error_about_an_image_has_its_path(data: str, error: type[RequestError]) -> None:
    with pytest.raises(error) as error_info:
        ImageReader(ImageLimits(2000, 100), None).read(
            ImageSource(data, "messages[2].content[1].image_url.url"), OpenedImage.decode
        )
    assert error_info.value.param == "messages[2].content[1].image_url.url"


# Limits


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_on_pixels_is_exact_and_the_error_has_both_sizes(format: str) -> None:
    encoded = encode(PICTURE, format)
    assert decode(encoded, ImageLimits(10_000, WIDTH * HEIGHT)).size == (WIDTH, HEIGHT)
    error = decode_error(encoded, ImageLimits(10_000, WIDTH * HEIGHT - 1))
    assert (type(error), error.code) == (TooLarge, "image_too_large")
    assert f"{WIDTH} x {HEIGHT}" in error.message
    assert str(WIDTH * HEIGHT - 1) in error.message


def test_a_limit_on_pixels_above_pillow_s_own_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(PICTURE, "PNG")
    for pillow_limit in (None, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
        assert decode(encoded, ImageLimits(10_000, WIDTH * HEIGHT)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_on_bytes_is_exact_and_checked_first(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    encoded = encode(PICTURE, format)
    assert decode(encoded, ImageLimits(len(encoded), 1000)).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened"))
    error = decode_error(encoded, ImageLimits(len(encoded) - 1, 1))
    assert (type(error), error.code) == (TooLarge, "image_too_large")
    assert f"{len(encoded) - 1:,} bytes" in error.message


JPEG = encode(PICTURE, "JPEG")
HUGE = {
    "PNG": patched(small_png(), 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))),
    "PNG without data": png(50_000, 50_000, 8, 2, b""),
    "PNG of 2 billion squared": png(2**31 - 1, 2**31 - 1, 16, 6, b""),
    "JPEG": patched(JPEG, JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_000, 65_000)),
    "GIF": gif((65_535, 65_535), (1, 1), 0),
    "GIF with a large frame": gif((1, 1), (50_000, 50_000), 0),
    "GIF with a frame to be cleared": gif((50_000, 50_000), (50_000, 50_000), 2),
    "GIF with a frame to be restored": gif((1, 1), (50_000, 50_000), 3),
    "BMP": bmp(50_000, 50_000, 0, b""),
    "BMP upside down": bmp(50_000, -50_000, 0, b""),
    "WebP canvas": webp_canvas(16_383, 16_383),
    "WebP canvas of 60,000 squared": webp_canvas(60_000, 60_000),
    "WebP lossy": patched(encode(PICTURE, "WEBP"), 26, struct.pack("<HH", 16_383, 16_383)),
    "WebP lossless": patched(encode(PICTURE, "WEBP", lossless=True), 21, struct.pack("<I", 16_382 | 16_382 << 14)),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_picture_in_a_small_file_is_refused_without_decoding(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert len(HUGE[name]) < 2000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    error = decode_error(HUGE[name])
    assert (type(error), error.code) == (TooLarge, "image_too_large")
    assert "50,000,000 pixels" in error.message


def test_refusing_a_huge_picture_takes_less_than_16_mib() -> None:
    # Runs in a new process: the peak memory of this process includes other tests.
    script = """
import base64, json, resource, sys
from llava_serving.errors import TooLarge
from llava_serving.inputs.image import ImageLimits, decode
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def refuse(name, data, limits):
    try: decode(base64.b64decode(data), limits)
    except TooLarge: return
    raise SystemExit(f"{name} was not refused")
files = json.load(sys.stdin)
for name, data in files.items(): refuse(name, data, ImageLimits(10**6, 10))  # Pillow loads its plugins
for name, data in files.items():
    before = peak()
    refuse(name, data, ImageLimits(10**6, 50_000_000))
    if peak() - before > 16 * 1024: raise SystemExit(f"{name} took {peak() - before} KiB")
print("done", len(files))
"""
    files = {name: base64.b64encode(data).decode() for name, data in HUGE.items()}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(files), env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"done {len(HUGE)}\n"


def progressive_scans(count: int) -> bytes:
    """Builds a JPEG of `count` scans by repeating the last one."""
    encoded = encode(PICTURE, "JPEG", progressive=True)
    last = encoded[encoded.rindex(b"\xff\xda") : -2]
    return encoded[:-2] + last * (count - encoded.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_more_than_100_scans_is_refused() -> None:
    assert decode(progressive_scans(100), LIMITS).mode == "RGB"
    error = decode_error(progressive_scans(101))
    assert (type(error), error.code) == (BadRequest, "invalid_image")
    assert "more than 100 JPEG scans" in error.message


def exif_blocks(count: int) -> bytes:
    return JPEG[:2] + b"\xff\xe1\0\x0aExif\0\0MM" * count + JPEG[2:]


def color_profiles(count: int) -> bytes:
    return small_png(before=chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile")) * count)


@pytest.mark.parametrize("build", [exif_blocks, color_profiles])
def test_more_than_100_parts_of_metadata_are_ignored(build: Callable[[int], bytes]) -> None:
    assert np.array_equal(pixels(build(101)), pixels(build(0)))


def test_a_run_length_encoded_bmp_is_refused_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    error = decode_error(bmp(50_000_000, 1, 1, b"\1\1\0\0"))  # takes half a minute to decode on a slow core
    assert (type(error), error.code) == (BadRequest, "invalid_image")
    assert "run-length" in error.message
    assert "PNG" in error.message


# Files that are no image, or an image in another format


@pytest.mark.parametrize(
    "encoded",
    [
        b"\0", b"hello", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", bytes(10_000),
        b"<html></html>", b"%PDF-1.7\n", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"PK\3\4",
        np.random.default_rng(0).bytes(10_000),
        png(0, 5, 8, 2, b""), gif((0, 0), (0, 0), 0), bmp(0, 5, 0, b""),
        *(encode(PICTURE, format) for format in ("TIFF", "PPM", "ICO", "JPEG2000", "PCX", "TGA", "DDS", "AVIF")),
    ],
)  # fmt: skip
def test_a_file_in_no_accepted_format_is_refused_with_the_accepted_formats(encoded: bytes) -> None:
    error = decode_error(encoded)
    assert (type(error), error.code) == (BadRequest, "invalid_image")
    for format in FORMATS:
        assert format in error.message


@pytest.mark.parametrize("format", FORMATS)
def test_three_quarters_of_a_file_are_refused(format: str) -> None:
    encoded = encode(PICTURE, format)
    error = decode_error(encoded[: len(encoded) // 2 + len(encoded) // 4])
    assert (type(error), error.code) == (BadRequest, "invalid_image")
    assert format in error.message


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_anywhere_is_read_or_refused(format: str) -> None:
    encoded = encode(PICTURE.resize((6, 5)), format)
    for length in range(0, len(encoded), 1 + len(encoded) // 400):
        check_decoded_or_refused(encoded[:length])


def test_the_error_about_a_damaged_picture_has_its_format() -> None:
    error = decode_error(png(2, 1, 8, 2, b"") + chunk(b"IDAT", b"no zlib stream"))
    assert error.message.startswith("the PNG image is damaged")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"eXIf"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_png_chunks_of_megabytes_are_read_or_refused(kind: bytes, position: str) -> None:
    bomb = zlib.compress(bytes(8 * 1024 * 1024))
    data = {
        b"zTXt": b"a\0\0" + bomb,
        b"iTXt": b"a\0\1\0\0\0" + bomb,
        b"iCCP": b"a\0\0" + bomb,
        b"tEXt": b"a\0" + bytes(1024 * 1024),
        b"eXIf": bytes(1024 * 1024),
    }[kind]
    check_decoded_or_refused(small_png(**{position: chunk(kind, data) * 3}))


def test_many_text_chunks_are_read_or_refused() -> None:
    check_decoded_or_refused(small_png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1024 * 1024))) * 80))


def with_checksums(encoded: bytes) -> bytes:
    """Corrects the checksums of a damaged PNG, so that the decoder reaches the damage."""
    result, position = bytearray(encoded), 8
    while encoded.startswith(b"\x89PNG\r\n\x1a\n") and position + 12 <= len(result):
        end = position + 8 + int.from_bytes(result[position : position + 4])
        if end + 4 > len(result):
            break
        result[end : end + 4] = struct.pack(">I", zlib.crc32(result[position + 4 : end]))
        position = end + 4
    return bytes(result)


def valid_files() -> list[bytes]:
    tagged = exif(6)
    tagged[ExifTags.Base.XResolution] = 72.0
    tagged[ExifTags.Base.ImageDescription] = "x"
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 50, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    text.add_text("Raw profile type exif", "\nexif\n  4\n4d4d002a")
    frames: dict[str, Any] = {"save_all": True, "append_images": [PICTURE.rotate(180)]}
    return [
        *(encode(PICTURE.convert(mode), "PNG", exif=tagged) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        png(WIDTH, HEIGHT, 16, 0, bytes(WIDTH * HEIGHT * 2)),
        encode(PICTURE, "PNG", pnginfo=text, icc_profile=b"1" * 300),
        encode(PICTURE, "PNG", **frames),
        *(encode(PICTURE.convert(mode), "JPEG", exif=tagged, dpi=(3, 3)) for mode in ("L", "RGB", "CMYK")),
        encode(PICTURE, "JPEG", progressive=True, icc_profile=b"1" * 100, xmp=b"<tiff:Orientation>3<"),
        encode(PICTURE, "MPO", **frames, exif=tagged),
        *(encode(PICTURE.convert(mode), "WEBP", exif=tagged) for mode in ("RGB", "RGBA")),
        encode(PICTURE, "WEBP", lossless=True),
        encode(PICTURE, "WEBP", **frames),
        *(encode(PICTURE.convert(mode), "GIF", comment=b"x") for mode in ("1", "L", "P")),
        encode(PICTURE, "GIF", **frames, disposal=2, transparency=1, loop=3),
        *(encode(PICTURE.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
        bmp(9, 7, 1, b"\x09\x01\0\0\x05\x02\0\0\0\2\1\1\0\3abc\0\0\1"),
    ]


FILES = valid_files()
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.booleans(),
        st.integers(0, 4),
        st.one_of(st.binary(max_size=4), st.sampled_from((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(encoded=st.sampled_from(FILES), edits=EDITS, checksums=st.booleans(), length=st.floats(0, 1.5))
def test_a_damaged_file_is_read_or_refused(
    encoded: bytes, edits: list[tuple[float, bool, int, bytes]], checksums: bool, length: float
) -> None:
    for fraction, in_header, dropped, inserted in edits:
        position = int(fraction * min(len(encoded), 120 if in_header else len(encoded)))
        encoded = encoded[:position] + inserted + encoded[position + dropped :]
    if length < 1:
        encoded = encoded[: int(length * len(encoded))]
    check_decoded_or_refused(with_checksums(encoded) if checksums else encoded, ImageLimits(100_000, 1_000_000))


MAGIC = st.sampled_from((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8X"))


@settings(max_examples=300, deadline=None)
@given(magic=MAGIC, content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(magic: bytes, content: bytes) -> None:
    check_decoded_or_refused(magic + content, ImageLimits(100_000, 1_000_000))


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.text(max_size=100), st.from_regex(r"(?i)data:[^,]{0,20},?.{0,50}", fullmatch=True)))
def test_any_short_text_is_refused_with_its_path(data: str) -> None:
    with pytest.raises((BadRequest, TooLarge)) as error_info:  # no text this short is an image
        ImageReader(LIMITS, None).read(ImageSource(data, "images[0]"), OpenedImage.decode)
    assert error_info.value.param == "images[0]"
