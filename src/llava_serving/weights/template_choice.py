"""The conversation template of a model folder: the one that the settings name, or "auto"."""

import logging
from typing import TYPE_CHECKING

from ..errors import StartupError
from ..inputs.templates import SIMPLE, TEMPLATES, V0, Template
from ..inputs.tokenizer import IMAGE_START

if TYPE_CHECKING:
    from transformers import LlavaConfig

logger = logging.getLogger(__name__)

TEMPLATE_KEY = "conversation_template"  # in a merged folder's config.json
PADDING = "[PAD]"


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


def choose_merged_template(requested: str, config: "LlavaConfig") -> Template:
    """Returns the template for a merged folder; "auto" is the one in its config.json, or v0 without one.

    Raises StartupError if config.json names an unknown template.
    """
    name = getattr(config, TEMPLATE_KEY, V0.name) if requested == "auto" else requested
    if name not in TEMPLATES:
        raise StartupError(
            f"config.json has {TEMPLATE_KEY} {name!r}, which this version does not know; it knows "
            f"{', '.join(TEMPLATES)}: set LLAVA_TEMPLATE to the one that the model was trained with"
        )
    return TEMPLATES[name]
