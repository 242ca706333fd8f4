"""The records of a CSV file, and the mistakes between them."""

import csv
from collections.abc import Iterable, Iterator
from typing import TextIO

# Lines that mistakes may have read again, for each line of the file: quotation marks that pair up wrongly line after
# line, in records that are all too long, would else cost the square of the file's length.
MOST_AGAIN = 20


def records(file: TextIO, most: int) -> Iterator[list[str] | csv.Error]:
    """The records that are not blank, and a csv.Error in the place of each mistake, one of more than `most` characters
    among them. `most` bounds what is held of the file.

    A mistake costs its line, not the lines that a quotation mark which nothing closes would take along.
    """
    csv.field_size_limit(max(csv.field_size_limit(), most))
    lines = _Lines(_bounded(file, most), most)
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.end_mistake()
            yield error
            continue
        lines.end_record()
        if record:
            yield record


def _bounded(file: TextIO, most: int) -> Iterator[str]:
    """The lines; of a longer one the first `most` + 1 characters."""
    while line := file.readline(most + 1):
        yield line
        while len(line) > most and not line.endswith(("\n", "\r")):
            line = file.readline(most + 1)


class _Lines:
    """Lines for a reader, which can be given lines again. Raises csv.Error for what makes a record none."""

    def __init__(self, lines: Iterable[str], most: int) -> None:
        self._lines = iter(lines)
        self._most = most
        self._again: list[str] = []  # the next one last
        self._taken: list[str] = []
        self._characters = 0  # taken
        self._new = self._old = 0  # lines so far, read and read again
        # A record that took along the whole rest was open at the start of each of its lines: whatever else is open
        # there takes along the rest as well, so that from then on a record is a line.
        self._ended = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self._taken and (self._ended or (self._again and self._old > MOST_AGAIN * self._new)):
            raise csv.Error("a quotation mark is not closed")
        self._taken.append(self._next())
        self._characters += len(self._taken[-1])
        if self._characters > self._most:
            raise csv.Error(f"it has more than {self._most:,} characters")
        return self._taken[-1]

    def _next(self) -> str:
        if self._again:
            self._old += 1
            return self._again.pop()
        line = next(self._lines, None)
        if line is None:
            self._ended = True
            raise StopIteration
        self._new += 1
        return line

    def end_record(self) -> None:
        self._taken.clear()
        self._characters = 0

    def end_mistake(self) -> None:
        """All but the first line of the record come again."""
        self._again += reversed(self._taken[1:])
        self.end_record()
