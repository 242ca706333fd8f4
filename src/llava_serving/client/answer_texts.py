"""The texts in an answer's body: what the client prints and a batch tells."""

from typing import Any


def texts(body: Any) -> list[list[str]]:
    """The answers of each row, whatever the form of the request was. Raises ValueError for what is no answer's body."""
    try:
        if isinstance(body, dict) and "output" in body:
            return [[str(body["output"])]]
        if isinstance(body, dict):
            return [[str(choice["message"]["content"]) for choice in body["choices"]]]
        if isinstance(body, list):
            return [[str(text) for text in row.values()] if isinstance(row, dict) else [str(row)] for row in body]
    except (KeyError, TypeError):
        pass
    raise ValueError("the answer is of no form that is known")
