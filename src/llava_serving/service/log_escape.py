"""Escapes characters in log lines that would forge another line, or that a terminal would obey."""

import logging

KEPT = "\n\t"  # of tracebacks


class ControlCharacterFilter(logging.Filter):
    """Writes each character of a message that is not printable as Python's escape of it, for example `\\x1b`.

    Azure's server logs the path of a request decoded, and `%0d`, `%1b` and `%e2%80%a8` stand for such characters.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True for every record. Changes the record's message if it must be escaped."""
        message = record.getMessage()
        if not message.isprintable():
            record.msg, record.args = "".join(map(_escaped, message)), ()
        return True


def _escaped(character: str) -> str:
    if character.isprintable() or character in KEPT:
        return character
    return character.encode("unicode_escape").decode()
