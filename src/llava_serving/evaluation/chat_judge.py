"""A text model that judges: any server of OpenAI's chat completions."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..client.endpoint import Endpoint
from ..errors import StartupError
from .answer_source import AnswerSource
from .asking import digest


@dataclass(frozen=True)
class JudgeQuestion:
    """One question to the judge, in text only.

    The body has no temperature and no limit of tokens, because models that reason refuse them.
    """

    question_id: str
    judge_model: str
    system: str
    prompt: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def body(self) -> dict[str, Any]:
        """Returns the request's body."""
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": self.prompt}]
        return {"model": self.judge_model, "messages": messages, **self.parameters}

    def key(self, model: str) -> str:
        """Returns a digest of all that the answer depends on."""
        return digest(model, self.question_id, self.body())


def judge_source(url: str, model: str, key_variable: str, concurrency: int) -> AnswerSource:
    """Returns the source that asks `model` at the base `url` of an API such as https://api.openai.com/v1.

    The key is in the environment variable `key_variable`. Raises StartupError for a wrong URL.
    """
    try:
        endpoint = Endpoint(f"{url.rstrip('/')}/chat/completions", os.environ.get(key_variable) or None, retries=8)
    except ValueError as error:
        raise StartupError(str(error)) from None
    return AnswerSource(f"{model} at {url}", concurrency, lambda body: endpoint.score(body).body, endpoint.abort)
