"""A model's own chat template: a conversation in Jinja, rendered as transformers renders it.

The settings of Jinja are those of transformers (utils/chat_template_utils.py). A template is a program of the model's
files, so Jinja's sandbox runs it. Texts of a request never become special tokens: they are marked while the template
runs.
"""

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .templates import EOS, EosToken

if TYPE_CHECKING:
    from jinja2 import Template as JinjaTemplate

# The prompt of LLaVA 1.5 (LLaVA@c121f04 llava/conversation.py "llava_v1"), for folders without a chat template.
LLAVA_1_5 = """\
{%- if messages[0]['role'] != 'system' -%}
    {{- "A chat between a curious human and an artificial intelligence assistant. " -}}
    {{- "The assistant gives helpful, detailed, and polite answers to the human's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] != 'system' -%}{{- message['role'].upper() + ': ' -}}{%- endif -%}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
    {{- eos_token if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
MARK = "\ufdd0"  # a character that Unicode excludes from texts


class ImagePlace:
    """The place of the next image in a rendered conversation."""


IMAGE_PLACE = ImagePlace()
Piece = str | EosToken | ImagePlace


class TemplateFailure(Exception):
    """The template refuses the conversation, or is no valid Jinja. The message is Jinja's or the template's own."""


@dataclass(frozen=True)
class TemplateMessage:
    """One message. `places_images` says that the text has the image token where its images belong."""

    role: str
    text: str
    num_images: int
    places_images: bool = False


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the texts of the three special tokens that it may write."""

    source: str
    bos: str
    eos: str
    image: str

    name = "chat"
    separator = None  # only the EOS token ends an answer

    def render(self, messages: Sequence[TemplateMessage]) -> list[Piece]:
        """Returns the conversation and the beginning of the answer, without a BOS token at its start.

        Images stand before the text of their message, as in LLaVA 1.5's training, unless the template orders them.
        Raises TemplateFailure.
        """
        conversation = [{"role": message.role, "content": self._content(message)} for message in messages]
        rendered = _rendered(self.source, conversation, self.bos, self.eos).removeprefix(self.bos)
        special: dict[str, Piece] = {self.image: IMAGE_PLACE, self.eos: EOS}
        split = re.split("|".join(f"({re.escape(token)})" for token in special), rendered)
        return [special.get(piece, piece.replace(MARK, "")) for piece in split if piece]

    def _content(self, message: TemplateMessage) -> list[dict[str, str]]:
        images = 0 if message.places_images else message.num_images
        text = message.text.replace(MARK, "")
        for token in (self.bos, self.eos, *(() if message.places_images else (self.image,))):
            text = text.replace(token, token[0] + MARK + token[1:])
        return [{"type": "image"}] * images + [{"type": "text", "text": text}]


def _rendered(source: str, messages: list[dict[str, Any]], bos: str, eos: str) -> str:
    from jinja2 import TemplateError

    try:
        return _compile(source).render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise TemplateFailure(str(error)) from error


@lru_cache(maxsize=4)
def _compile(source: str) -> "JinjaTemplate":
    # Imported here, because most models have no Jinja template, and each input process would import it.
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's texts for training. It writes nothing."""

        tags = {"generation"}  # noqa: RUF012 (an instance variable of the base class)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)
