"""The conversation templates that LLaVA v0 was trained with, word for word."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """The words of a conversation. `before_user` and `before_assistant` open a turn that says something."""

    name: str
    system: str
    greeting: str
    before_user: str
    before_assistant: str
    after_assistant: tuple["EndOfText", ...]
    open_turn: str  # the assistant's, for the model to go on
    separator: str | None  # text that ends an answer; without it the end-of-text token does


class EndOfText:
    """The end-of-text token in a prompt."""

    text = "</s>"


END_OF_TEXT = EndOfText()

# The system text of every LLaVA that the authors served at that time (LLaVA@ff9b89f llava/conversation.py
# "multimodal"). The missing spaces between sentences are theirs.
SYSTEM = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab."
    "You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail."
)
# The two spaces and the newline are theirs.
V0 = Template(
    name="v0",
    system=SYSTEM,
    greeting="###Human: Hi!###Assistant: Hi there!  How can I help you today?\n",
    before_user="###Human: ",
    before_assistant="###Assistant: ",
    after_assistant=(),
    open_turn="###Assistant:",
    separator="###",
)
# For the deltas named v1 (LLaVA@15f31eb llava/conversation.py "llava_v1"; serve/gradio_web_server.py:190 chooses).
V1 = Template(
    name="v1",
    system=SYSTEM,
    greeting="",
    before_user=" USER: ",
    before_assistant=" ASSISTANT: ",
    after_assistant=(END_OF_TEXT,),
    open_turn=" ASSISTANT:",
    separator=None,
)
TEMPLATES = {template.name: template for template in (V0, V1)}
