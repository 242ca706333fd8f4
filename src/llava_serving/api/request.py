"""A parsed request: its prompts and how to continue them."""

from dataclasses import dataclass
from typing import Literal

from ..inputs.prompt import Prompt
from .parameters import Parameters, ParsedParameters

Form = Literal["prompts", "list", "table", "chat", "chat_completion"]


@dataclass(frozen=True)
class ScoreRequest:
    """A request whose form is valid. `echo` says for each prompt whether the answer begins with it."""

    form: Form
    prompts: tuple[Prompt, ...]
    parsed_parameters: ParsedParameters
    echo: tuple[bool, ...]
    model: str = ""
    logprobs: int | None = None
    include_usage: bool = False

    @property
    def parameters(self) -> Parameters:
        return self.parsed_parameters.values

    @property
    def num_sequences(self) -> int:
        """Returns the number of sequences to generate: prompts x n."""
        return len(self.prompts) * self.parameters.n

    def parameter_path(self, name: str) -> str:
        """Returns the path of a parameter in the request, for errors about it."""
        return self.parsed_parameters.path(name)
