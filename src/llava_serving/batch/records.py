"""The records of a CSV file, and the mistakes between them."""

import csv
from collections.abc import Iterable, Iterator


def records(lines: Iterable[str]) -> Iterator[list[str] | csv.Error]:
    """The records that are not blank, and a csv.Error in the place of each mistake.

    A mistake costs its line: a quotation mark that nothing closes would else take along every line that follows.
    """
    again = _Lines(lines)
    reader = csv.reader(again, strict=True)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            again.end_mistake()
            yield error
            continue
        again.end_record()
        if record:
            yield record


class _Lines:
    """Lines for a reader, which can be given lines again."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._again: list[str] = []  # the next one last
        self._taken: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self._taken.append(line)
        return line

    def end_record(self) -> None:
        self._taken.clear()

    def end_mistake(self) -> None:
        """All but the first line of the record come again."""
        self._again += reversed(self._taken[1:])
        self._taken.clear()
