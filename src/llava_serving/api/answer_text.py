"""A completion's text as the client receives it: stripped, or with its prompt, whole or in pieces."""

from ..inputs.prompt import Prompt
from .score_request import ScoreRequest


class AnswerText:
    """A completion's text as the client receives it, in any number of pieces.

    The answer to a prompt in a template is stripped, as the authors did. A raw prompt is continued where it ends. With
    `echo` the prompt comes first and nothing is stripped.
    """

    def __init__(self, prompt: Prompt, echo: bool) -> None:
        self._prefix = prompt.text if echo else ""
        self._strips = prompt.in_template and not echo
        # SentencePiece drops the space that it puts before the first word of a text.
        self._drops_space = not prompt.in_template and not prompt.text
        self._has_begun = False
        self._held_space = ""

    def push(self, piece: str) -> str:
        """Returns the text to send after `piece`. White space at the end waits for the text behind it."""
        if self._strips:
            piece = self._held_space + piece if self._has_begun else piece.lstrip()
            stripped = piece.rstrip()
            self._held_space = piece[len(stripped) :]
            piece = stripped
            self._has_begun = self._has_begun or bool(piece)
        elif self._drops_space and piece:
            piece = piece.removeprefix(" ")
            self._drops_space = False
        return self._take_prefix() + piece

    def flush(self) -> str:
        """Returns the text that is left at the end: the prompt, if there was no piece."""
        return self._take_prefix()

    def _take_prefix(self) -> str:
        prefix, self._prefix = self._prefix, ""
        return prefix


def answer_texts(request: ScoreRequest) -> dict[tuple[int, int], AnswerText]:
    """Returns the AnswerText of each sequence, by (prompt index, index)."""
    return {
        (prompt_index, index): AnswerText(prompt, echo)
        for prompt_index, (prompt, echo) in enumerate(zip(request.prompts, request.echo, strict=True))
        for index in range(request.parameters.n)
    }
