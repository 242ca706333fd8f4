"""Reads the records of a CSV file, and goes on after a malformed record.

If row 10 of 1,000 opens a quotation mark that nothing closes, the `csv` module loses 990 rows. This reader loses 1.
"""

import csv
from collections.abc import Iterable, Iterator
from typing import TextIO

# At most this many replayed lines per line of the file. Without it a hostile file takes quadratic time: each of its
# lines opens a quotation mark that a later line closes, and every such record is too long.
MAX_REPLAYS_PER_LINE = 20


def read_csv_records(file: TextIO, max_characters: int) -> Iterator[list[str] | csv.Error]:
    """Yields the records that are not blank, and a csv.Error in place of each malformed record.

    A record of more than `max_characters` is malformed, and at most about that much of the file is held in memory. A
    malformed record ends with its first line, so an open quotation mark does not take the lines after it along.
    """
    return (record for _, record in read_raw_csv_records(file, max_characters))


def read_raw_csv_records(file: TextIO, max_characters: int) -> Iterator[tuple[str, list[str] | csv.Error]]:
    """Yields what `read_csv_records` yields, each with its text. Of a longer line the text has the beginning."""
    csv.field_size_limit(max(csv.field_size_limit(), max_characters))
    lines = _ReplayedLines(_truncated_lines(file, max_characters), max_characters)
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.end_malformed_record(), error
            continue
        text = lines.end_record()
        if record:
            yield text, record


def _truncated_lines(file: TextIO, max_characters: int) -> Iterator[str]:
    """Yields the lines, and of a longer line its first `max_characters` + 1."""
    while line := file.readline(max_characters + 1):
        yield line
        while len(line) > max_characters and not line.endswith(("\n", "\r")):
            line = file.readline(max_characters + 1)


class _ReplayedLines:
    """Gives lines to csv.reader. After a malformed record it gives the lines after the record's first again.

    Raises csv.Error where a record must end.
    """

    def __init__(self, lines: Iterable[str], max_characters: int) -> None:
        self._lines = iter(lines)
        self._max_characters = max_characters
        self._lines_to_replay: list[str] = []  # the next line last
        self._record: list[str] = []  # the lines of the current record
        self._record_characters = 0
        self._num_lines = self._num_replays = 0
        # Set once a record has run to the end of the file. A later open quotation mark would do so again, so from then
        # on each record is one line.
        self._is_exhausted = False

    def __iter__(self) -> "_ReplayedLines":
        return self

    def __next__(self) -> str:
        if self._record and self._must_end_record():
            raise csv.Error("a quotation mark is not closed")
        line = self._next_line()
        self._record.append(line)
        self._record_characters += len(line)
        if self._record_characters > self._max_characters:
            raise csv.Error(f"it has more than {self._max_characters:,} characters")
        return line

    def end_record(self) -> str:
        """Returns the record's text."""
        text = "".join(self._record)
        self._record.clear()
        self._record_characters = 0
        return text

    def end_malformed_record(self) -> str:
        """Ends the record with its first line, and returns that line. Its other lines are given again."""
        self._lines_to_replay += reversed(self._record[1:])
        del self._record[1:]
        return self.end_record()

    def _must_end_record(self) -> bool:
        has_replayed_enough = self._num_replays > MAX_REPLAYS_PER_LINE * self._num_lines
        return self._is_exhausted or (bool(self._lines_to_replay) and has_replayed_enough)

    def _next_line(self) -> str:
        if self._lines_to_replay:
            self._num_replays += 1
            return self._lines_to_replay.pop()
        line = next(self._lines, None)
        if line is None:
            self._is_exhausted = True
            raise StopIteration
        self._num_lines += 1
        return line
