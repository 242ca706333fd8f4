"""The texts in the body of an answer."""

from typing import Any


def answer_texts(body: Any) -> list[list[str]]:
    """Returns the texts of each prompt's sequences, for every form of request.

    Raises ValueError if `body` is not the body of an answer.
    """
    try:
        if isinstance(body, dict) and "output" in body:
            return [[str(body["output"])]]
        if isinstance(body, dict):
            return [[str(choice["message"]["content"]) for choice in body["choices"]]]
        if isinstance(body, list):
            return [[str(text) for text in row.values()] if isinstance(row, dict) else [str(row)] for row in body]
    except (KeyError, TypeError):
        pass
    raise ValueError("the answer has an unknown form")
