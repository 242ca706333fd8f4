"""The texts in an answer's body: what the client prints and a batch tells."""

from typing import Any


def texts(body: Any) -> list[list[str]]:
    """The answers of each row, whatever the form of the request was."""
    if isinstance(body, dict):
        if "choices" in body:
            return [[str(choice["message"]["content"]) for choice in body["choices"]]]
        return [[str(body.get("output", body))]]
    return [[str(text) for text in row.values()] if isinstance(row, dict) else [str(row)] for row in body]
