"""What a person sets besides the conversation: the system message, and parameters in OpenAI's names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# The service continues the question's text as it is, instead of putting it into a conversation template.
NO_TEMPLATE = "none"


@dataclass(frozen=True)
class Options:
    """The options of the page, in the order of its components. None stands for the service's default.

    A number that was typed wrong stays a text, so that the service says what it accepts.
    """

    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | str | None = None
    seed: int | str | None = None
    template: str | None = None

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters that are set, without the system message."""
        return {name: value for name, value in asdict(self).items() if name != "system" and value is not None}

    @classmethod
    def from_page(cls, *values: Any) -> "Options":
        """Returns the options from the values of the page's components, where an empty text is the default."""
        options = cls(*(value if value != "" else None for value in values))
        return replace(options, max_tokens=_integer(options.max_tokens), seed=_integer(options.seed))

    @classmethod
    def from_json(cls, body: Mapping[str, Any], system: str | None) -> "Options":
        """Returns the options that a body of OpenAI's form sets. Ignores everything else in the body.

        Raises ValueError if a parameter has another type.
        """
        values = {field.name: body.get(field.name) for field in fields(cls) if field.name != "system"}
        template = values.pop("template")
        wrong = [name for name, value in values.items() if isinstance(value, bool | str | list | dict)]
        if wrong or not isinstance(template, str | None):
            raise ValueError(f"{', '.join(wrong) or 'template'} has the wrong type")
        return cls(system, **values, template=template)


def _integer(value: int | str | None) -> int | str | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return value
