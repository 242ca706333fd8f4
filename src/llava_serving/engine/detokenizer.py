"""Token bytes to text as they arrive, ended by the first stop string."""

import codecs


class Detokenizer:
    """Incremental UTF-8: a character whose bytes come in several tokens appears with its last byte."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: bytes) -> str:
        """The characters that `token` completes."""
        return self._decoder.decode(token)

    def flush(self) -> str:
        """What an unfinished character leaves behind: U+FFFD or nothing."""
        return self._decoder.decode(b"", final=True)


class StopText:
    """Text that ends before the first of `stop` to occur in it.

    A stop string may span any number of pushes; it counts from the push that completes it.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._settled = 0
        self.text = ""
        self.stopped = False

    def push(self, piece: str, searching: bool = True) -> bool:
        """Appends `piece`; true, with the text cut, if that completed a stop string. `searching` false never does."""
        before = len(self.text)
        self.text += piece
        if not searching or not piece:
            return False
        starts = (self.text.find(string, max(0, before - len(string) + 1)) for string in self._stop)
        hits = [start for start in starts if start >= 0]
        if hits:
            self.text = self.text[: min(hits)]
            self.stopped = True
        return self.stopped

    def settle(self, final: bool = False) -> str:
        """The text since the last call that no later push can take back; with `final`, all of it."""
        end = len(self.text) if final or self.stopped else len(self.text) - self._num_unsettled()
        settled, self._settled = self.text[self._settled : end], max(end, self._settled)
        return settled

    def _num_unsettled(self) -> int:
        """How many characters at the end are the beginning of a stop string."""
        return max(
            (
                length
                for string in self._stop
                for length in range(1, min(len(string), len(self.text) + 1))
                if self.text.endswith(string[:length])
            ),
            default=0,
        )
