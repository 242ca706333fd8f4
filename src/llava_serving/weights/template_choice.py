"""The conversation template of a model folder: the one that the settings name, or "auto"."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import StartupError
from ..inputs.chat_template import IMAGE_PLACE, LLAVA_1_5, ChatTemplate, TemplateFailure, TemplateMessage
from ..inputs.prompt import ConversationTemplate
from ..inputs.templates import SIMPLE, TEMPLATES, V0, Template
from ..inputs.tokenizer import IMAGE_START, Tokenizer
from ..model_files import damage_hint, read_json

if TYPE_CHECKING:
    from transformers import LlavaConfig

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "conversation_template"  # in a merged folder's config.json
PADDING = "[PAD]"
JINJA_FILE = "chat_template.jinja"
# The JSON files that have held a chat template, the first that transformers reads first.
JSON_FILES = ("processor_config.json", "chat_template.json", "tokenizer_config.json")


def choose_delta_template(requested: str, added_tokens: dict[str, int]) -> Template:
    """Returns the template for a delta. "auto" is v0, or simple for a delta without image markers.

    No file of a delta names the template that it was trained with: its authors went by the delta's name. Of the v0
    deltas only LLaVA-13b-delta-v0-science_qa has no image markers (LLaVA@15f31eb README.md, "Fine-tuning on
    ScienceQA").
    """
    if requested != "auto":
        return TEMPLATES[requested]
    names = ", ".join(added_tokens)
    if IMAGE_START not in added_tokens:
        logger.info(
            "the added tokens (%s) have no %s, as LLaVA-13b-delta-v0-science_qa's: the conversation template is %s",
            names, IMAGE_START, SIMPLE.name,
        )  # fmt: skip
        return SIMPLE
    if PADDING not in added_tokens:
        logger.warning(
            "the added tokens (%s) have no %s, which training with the v0 template added (LLaVA@15f31eb "
            "llava/train/train.py:580): for a delta named v1, set LLAVA_TEMPLATE=v1 or merge --template v1",
            names, PADDING,
        )  # fmt: skip
    return V0


def choose_merged_template(
    requested: str, config: "LlavaConfig", directory: Path, tokenizer: Tokenizer, image_token: str
) -> ConversationTemplate:
    """Returns the template for a merged folder.

    "auto" is the one that its config.json names, and v0 for a model with v0's image token. Any other model has the chat
    template in its files, or LLaVA 1.5's if there is none. Raises StartupError if the template is unknown or places no
    image.
    """
    if requested != "auto":
        return TEMPLATES[requested]
    name = getattr(config, TEMPLATE_KEY, V0.name if tokenizer.is_v0 else None)
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name is not None:
        raise StartupError(
            f"config.json has {TEMPLATE_KEY} {name!r}, which this version does not know; it knows "
            f"{', '.join(TEMPLATES)}: set LLAVA_TEMPLATE to the one that the model was trained with"
        )
    file, source = read_chat_template(directory) or (None, LLAVA_1_5.replace("<image>", image_token))
    if file is None:
        logger.warning("%s has no chat template: LLaVA 1.5's is used (LLaVA's llava_v1)", directory)
    template = ChatTemplate(source, tokenizer.piece(tokenizer.bos_id), tokenizer.piece(tokenizer.eos_id), image_token)
    _check_places_an_image(template, file or directory)
    return template


def read_chat_template(directory: Path) -> tuple[Path, str] | None:
    """Returns the folder's chat template and its file, or None. Raises StartupError if a file is damaged."""
    path = directory / JINJA_FILE
    if path.is_file():
        try:
            return path, path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise StartupError(f"{path} cannot be read: {error}; {damage_hint(path)}") from None
    for name in JSON_FILES:
        path = directory / name
        stored = read_json(path).get("chat_template") if path.is_file() else None
        if source := _default_template(stored):
            return path, source
    return None


def _default_template(stored: Any) -> str | None:
    """Returns the template, or the one named "default" of several."""
    if isinstance(stored, list):
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
    if isinstance(stored, dict):
        stored = stored.get("default")
    return stored if isinstance(stored, str) else None


def _check_places_an_image(template: ChatTemplate, source: Path) -> None:
    try:
        pieces = template.render([TemplateMessage("user", "What is this?", num_images=1)])
    except TemplateFailure as failure:
        raise StartupError(f"the chat template in {source} cannot be rendered: {failure}") from failure
    if pieces.count(IMAGE_PLACE) != 1:
        raise StartupError(
            f"the chat template in {source} writes {pieces.count(IMAGE_PLACE)} times {template.image} for a question "
            "about one image: it is no LLaVA's. Set LLAVA_TEMPLATE to v0 or v1, or remove it for LLaVA 1.5's own"
        )
