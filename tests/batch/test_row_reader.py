"""The requests that the reader makes of JSON lines, CSV files and images, and the errors of wrong rows."""

import csv
import json
import re
import string
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from batch_cases import DEFAULTS, IMAGES, encoded_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_serving.batch.input_row import RowDefaults
from llava_serving.batch.row_reader import IMAGE_SUFFIXES, read_input_rows
from llava_serving.errors import RequestError
from llava_serving.inputs.image import FORMATS

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)


def read(path: Path, defaults: RowDefaults = DEFAULTS) -> list[Any]:
    """Returns the JSON of each request, or the code of its error."""
    return [
        row.request.code if isinstance(row.request, RequestError) else json.loads(row.request)
        for row in read_input_rows(path, path.name, defaults)
    ]


def test_every_image_format_of_the_service_has_a_suffix_and_no_other() -> None:
    formats = Image.registered_extensions()
    assert {formats[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)


def prompt(body: Any) -> Any:
    """Returns the prompt of a request's body, or the code of its error."""
    return body if isinstance(body, str) else body["input_data"]["input_string"][0]


@given(texts=st.lists(TEXT, max_size=8), extra=st.booleans())
def test_a_csv_has_the_prompts_that_were_written(texts: list[str], extra: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "input_string"] if extra else ["input_string"])
            writer.writerows([["7", text] if extra else [text] for text in texts])
        assert [body["input_data"]["input_string"] for body in read(path)] == [[text] for text in texts]


@given(values=st.lists(st.dictionaries(st.text(string.ascii_letters), TEXT), max_size=8), blanks=st.booleans())
def test_each_json_line_is_one_request_unchanged(values: list[Any], blanks: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        path.write_text(("\n\n" if blanks else "\n").join(json.dumps(value) for value in values), "utf-8")
        assert read(path) == values


def test_a_json_line_that_is_too_long_is_an_error_and_the_next_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"a":1}\n"' + b"x" * 5_000_000 + b'"\n{"b":2}\n' + b"y" * 2_000_000)
    assert read(path) == [{"a": 1}, "body_too_large", {"b": 2}, "body_too_large"]
    longest = json.dumps("z" * (DEFAULTS.max_bytes - 2))
    path.write_text(f'{longest}\n{{"b":2}}\n')
    assert read(path) == [json.loads(longest), {"b": 2}]


@given(texts=st.lists(TEXT.filter(lambda text: '"' not in text), min_size=1, max_size=8), data=st.data())
def test_an_unclosed_quotation_mark_makes_only_its_line_an_error(texts: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(texts)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["input_string", "id"])
            writer.writerows([text, "7"] for text in texts[:index])
            file.write('"Is it 5 wide?,8\r\n')
            for text in texts[index:]:
                csv.writer(file, quoting=csv.QUOTE_NONE, escapechar="\\").writerow([re.sub(r"\W", "x", text), "7"])
        prompts = [prompt(body) for body in read(path)]
    assert prompts == texts[:index] + ["invalid_table"] + [re.sub(r"\W", "x", text) for text in texts[index:]]


@pytest.mark.parametrize("max_bytes", [1_000_000, 20_000])  # with 20,000 every malformed record is too long
def test_quotation_marks_that_pair_across_lines_make_only_their_lines_errors(max_bytes: int, tmp_path: Path) -> None:
    """Each malformed line closes the quotation of the one before and opens another, to the end of the file."""
    path = tmp_path / "table.csv"
    lines = ['a","\n' if number % 10 else "good,1\n" for number in range(60_000)]
    path.write_text("input_string,id\nfirst,1\n" + "".join(lines))
    kinds = [body if isinstance(body, str) else "good" for body in read(path, RowDefaults("?", {}, max_bytes))]
    assert kinds == ["good"] + ["invalid_table" if number % 10 else "good" for number in range(60_000)]


@pytest.mark.parametrize("num_malformed", [1, 45, 200])
def test_records_of_several_lines_are_read_after_malformed_records(num_malformed: int, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("input_string,id\n" + 'a","\n' * num_malformed + 'x"y,1\n' + '"line one\nline two",2\n' * 1000)
    prompts = [body["input_data"]["input_string"][0] for body in read(path) if not isinstance(body, str)]
    assert prompts.count("line one\nline two") >= 999
    assert not [text for text in prompts if text in ("line one", 'line two"')]


def test_a_csv_line_that_is_too_long_is_an_error_and_is_never_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w") as file:
        file.write("input_string\nfirst\n")
        for _ in range(50):
            file.write("x" * 1_000_000)
        file.write("\nsecond\n")
    tracemalloc.start()
    bodies = read(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [prompt(body) for body in bodies] == ["first", "invalid_table", "second"]
    assert peak_bytes < 20_000_000


def test_an_image_in_a_csv_cell_may_be_large(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"input_string, image\n?,{'A' * 200_000}\n")
    (body,) = read(path)
    assert body["input_data"]["images"] == ["A" * 200_000]


def test_an_image_path_that_cannot_exist_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    path = tmp_path / "table.csv"
    path.write_bytes(b'input_string,image\n?,a\0.png\n?,circle.png\n?,gone.tiff\n?,\n?,"data:image/x.y;base64,AAAA"\n')
    *wrong, without_image, with_uri = read(path)
    assert wrong == ["invalid_image"] * 3
    assert without_image["input_data"]["input_string"] == ["?"]
    assert with_uri["input_data"]["images"] == ["data:image/x.y;base64,AAAA"]


def test_a_csv_reads_images_only_from_its_own_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.png"
    (inside / "deep").mkdir(parents=True)
    for path in (inside / "deep" / "digit.png", outside):
        path.write_bytes((IMAGES / "digit.png").read_bytes())
    (inside / "link.png").symlink_to(outside)
    table = inside / "table.csv"
    table.write_text(
        f"input_string,image\n?,deep/digit.png\n?,../secret.png\n?,{outside}\n?,link.png\n?,no.png\n?,AAAA\n"
    )
    first, *others, last = read(table)
    assert first["input_data"]["images"] == [encoded_image("digit.png")]
    assert others == ["invalid_image"] * 4
    assert last["input_data"]["images"] == ["AAAA"], "text without a dot is base64"


def test_prompt_txt_overrides_the_default_prompt_of_an_image(tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes((IMAGES / "digit.png").read_bytes())
    (body,) = read(image)
    assert body["input_data"]["input_string"] == ["What is in the image?"]
    assert body["input_data"]["parameters"] == {"max_new_tokens": 8}
    (tmp_path / "prompt.txt").write_text("Which digit is it?\n")
    (body,) = read(image)
    assert body["input_data"]["input_string"] == ["Which digit is it?"]
    assert read(tmp_path / "prompt.txt") == []
    (tmp_path / "prompt.txt").write_text("\n")
    assert read(image)[0]["input_data"]["input_string"] == ["What is in the image?"]


def test_an_unreadable_prompt_txt_is_an_error(tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    image.write_bytes((IMAGES / "digit.png").read_bytes())
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe?")
    assert read(image) == ["no_prompt"]
    (tmp_path / "prompt.txt").unlink()
    (tmp_path / "prompt.txt").mkdir()
    assert read(image) == ["no_prompt"]


def test_a_missing_image_is_an_error_of_row_0_and_another_missing_file_of_no_row(tmp_path: Path) -> None:
    (lines,) = read_input_rows(tmp_path / "gone.jsonl", "gone.jsonl", DEFAULTS)
    assert (lines.index, getattr(lines.request, "code", "")) == (None, "unreadable_input")
    (image,) = read_input_rows(tmp_path / "gone" / "gone.png", "gone.png", DEFAULTS)
    assert (image.index, getattr(image.request, "code", "")) == (0, "invalid_image")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"input_string;image\na;b\n", "separates its columns by semicolons: save it with commas"),
        (b'"input_string";"image"\r\n"a";"b"\r\n', "separates its columns by semicolons: save it with commas"),
        (b"id\tinput_string\n1\ta\n", "separates its columns by tabs: save it with commas"),
        ("input_string,image\na,b\n".encode("utf-16"), "is in UTF-16: save it as UTF-8"),
    ],
)
def test_a_csv_with_other_separators_or_in_utf_16_is_told_so(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    (row,) = read_input_rows(path, path.name, DEFAULTS)
    assert isinstance(row.request, RequestError)
    assert cause in row.request.message
