"""The texts in the body of an answer."""

from typing import Any


def answer_texts(body: Any) -> list[list[str]]:
    """Returns the texts of each prompt's sequences, for every form of request.

    An answer in OpenAI's forms lists the choices of all prompts together, and so does the result.
    Raises ValueError if `body` is not the body of an answer.
    """
    try:
        if isinstance(body, dict) and "output" in body:
            return [[str(body["output"])]]
        if isinstance(body, dict):
            return [[_choice_text(choice) for choice in body["choices"]]]
        if isinstance(body, list):
            return [[str(text) for text in row.values()] if isinstance(row, dict) else [str(row)] for row in body]
    except (KeyError, TypeError):
        pass
    raise ValueError("the answer has an unknown form")


def _choice_text(choice: Any) -> str:
    """Returns the text of a choice of a legacy completion (`text`) or of a chat completion (`message`)."""
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
