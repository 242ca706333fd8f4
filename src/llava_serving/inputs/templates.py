"""The conversation templates that LLaVA v0 was trained with, word for word."""

from dataclasses import dataclass


class EosToken:
    """The end-of-sequence token in a prompt."""

    text = "</s>"


EOS = EosToken()


@dataclass(frozen=True)
class Template:
    """The words around the messages of a conversation.

    A prompt is `system`, `greeting`, each message after its prefix, and `generation_prompt`.
    """

    name: str
    system: str
    greeting: str  # messages that every conversation begins with
    user_prefix: str
    assistant_prefix: str
    assistant_suffix: tuple[EosToken, ...]
    generation_prompt: str  # begins the assistant's answer
    separator: str | None  # text that ends an answer; None if only the EOS token ends it


# The system text of every LLaVA that the authors served at that time (LLaVA@ff9b89f llava/conversation.py
# "multimodal"). The missing spaces between sentences are theirs.
SYSTEM = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab."
    "You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail."
)
# The two spaces and the newline in the greeting are the authors'.
V0 = Template(
    name="v0",
    system=SYSTEM,
    greeting="###Human: Hi!###Assistant: Hi there!  How can I help you today?\n",
    user_prefix="###Human: ",
    assistant_prefix="###Assistant: ",
    assistant_suffix=(),
    generation_prompt="###Assistant:",
    separator="###",
)
# For the deltas named v1 (LLaVA@15f31eb llava/conversation.py "llava_v1"; serve/gradio_web_server.py:190 chooses).
V1 = Template(
    name="v1",
    system=SYSTEM,
    greeting="",
    user_prefix=" USER: ",
    assistant_prefix=" ASSISTANT: ",
    assistant_suffix=(EOS,),
    generation_prompt=" ASSISTANT:",
    separator=None,
)
TEMPLATES = {template.name: template for template in (V0, V1)}
