"""A parsed request: its prompts and how to continue them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..inputs.prompt import ImageSource, Prompt
from .parameters import Parameters

Form = Literal["prompts", "list", "table", "chat", "chat_completion", "completion"]


@dataclass(frozen=True)
class ScoreRequest:
    """A request whose form is valid. `echo` says for each prompt whether the answer begins with it.

    `stream` says that the answer is streamed. `parameter_paths` has the path in the request of each parameter that the
    request sets. `num_sequences` is the number of sequences to generate: prompts x n.
    """

    form: Form
    prompts: tuple[Prompt, ...]
    parameters: Parameters
    parameter_paths: Mapping[str, str] = field(compare=False)
    echo: tuple[bool, ...]
    stream: bool = False
    model: str = ""
    logprobs: int | None = None
    include_usage: bool = False
    num_sequences: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_sequences", len(self.prompts) * self.parameters.n)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images of all prompts, in order."""
        return tuple(image for prompt in self.prompts for image in prompt.images)

    def without_image_data(self) -> "ScoreRequest":
        """Returns the request with empty images. A request is kept until its answer ends, and images are large."""
        return replace(self, prompts=tuple(prompt.without_image_data() for prompt in self.prompts))

    def parameter_path(self, name: str) -> str:
        """Returns the path of a parameter as the client wrote it, alias included, for errors about it."""
        return self.parameter_paths.get(name, name)
