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
# For the delta of ScienceQA, which its authors evaluated with this template (LLaVA@ff9b89f llava/conversation.py
# "simple"; README.md, "ScienceQA": --conv-mode simple). From LLaVA@3c3d89b on, "simple" names another text.
SIMPLE = Template(
    name="simple",
    system="You are LLaVA, a large language model trained by UW Madison WAIV Lab, based on LLaMA architecture."
    "You are designed to assist human with a variety of tasks using natural language."
    "Follow the instructions carefully.",
    greeting=V0.greeting,
    user_prefix=V0.user_prefix,
    assistant_prefix=V0.assistant_prefix,
    assistant_suffix=V0.assistant_suffix,
    generation_prompt=V0.generation_prompt,
    separator=V0.separator,
)
TEMPLATES = {template.name: template for template in (V0, V1, SIMPLE)}
