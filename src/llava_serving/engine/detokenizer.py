"""Token bytes to text, token by token, and the search for stop strings."""

import codecs


class Detokenizer:
    """Decodes UTF-8 incrementally: a character that spans several tokens appears with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: bytes) -> str:
        """Returns the characters that `token` completes."""
        return self._decoder.decode(token)

    def flush(self) -> str:
        """Returns U+FFFD for an unfinished character at the end, else nothing."""
        return self._decoder.decode(b"", final=True)


class StoppedText:
    """A text that ends before the first stop string in it.

    A stop string may span any number of pushes. The push that completes it ends the text.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._num_emitted = 0
        self.text = ""
        self.is_stopped = False

    def push(self, piece: str, search: bool = True) -> bool:
        """Appends `piece`. Returns True, and cuts the text, if that completes a stop string.

        Without `search` no stop string ends the text.
        """
        before = len(self.text)
        self.text += piece
        if not search or not piece:
            return False
        starts = (self.text.find(string, max(0, before - len(string) + 1)) for string in self._stop)
        hits = [start for start in starts if start >= 0]
        if hits:
            self.text = self.text[: min(hits)]
            self.is_stopped = True
        return self.is_stopped

    def emit(self, final: bool = False) -> str:
        """Returns the new text that no later push can cut off; with `final`, all new text."""
        end = len(self.text) if final or self.is_stopped else len(self.text) - self._num_held_back()
        emitted, self._num_emitted = self.text[self._num_emitted : end], max(end, self._num_emitted)
        return emitted

    def _num_held_back(self) -> int:
        """Returns how many characters at the end may be the beginning of a stop string."""
        return max(
            (
                length
                for string in self._stop
                for length in range(1, min(len(string), len(self.text) + 1))
                if self.text.endswith(string[:length])
            ),
            default=0,
        )
