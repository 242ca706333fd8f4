"""The judge's prompt, word for word that of LLaVA's authors, because another prompt gives other scores.

NOTICE: `SYSTEM` and `RULE` are from LLaVA (https://github.com/haotian-liu/LLaVA at 15f31eb,
llava/eval/eval_gpt_review_visual.py and llava/eval/table/rule.json, where conv, detail and complex have one text).
They are licensed under the Apache License, Version 2.0, https://www.apache.org/licenses/LICENSE-2.0, and unchanged.
"""

from enum import StrEnum

from ..judge.client import Messages
from .files import PictureContext

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with five descriptive sentences describing the same image and the bounding box coordinates "
    "of each object in the scene. These coordinates are in the form of bounding boxes, represented as (x1, y1, x2, y2) "
    "with floating numbers ranging from 0 to 1. These values correspond to the top left x, top left y, bottom right x, "
    "and bottom right y. \nPlease rate the helpfulness, relevance, accuracy, level of details of their responses. Each "
    "assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\nPlease first output a single line containing only two values indicating the scores for Assistant 1 "
    "and 2, respectively. The two scores are separated by a space.\nIn the subsequent line, please provide a "
    "comprehensive explanation of your evaluation, avoiding any potential bias and ensuring that the order in which "
    "the responses were presented does not affect your judgment."
)


class Order(StrEnum):
    """Whose answer the judge reads first, as Assistant 1. The authors' scripts knew only the first order."""

    REFERENCE_FIRST = "reference_first"
    CANDIDATE_FIRST = "candidate_first"


def judge_messages(
    question: str, context: PictureContext | None, reference: str, candidate: str, order: Order
) -> Messages:
    """Returns the messages of one question to the judge. Without a context its block is left out."""
    first, second = (reference, candidate) if order is Order.REFERENCE_FIRST else (candidate, reference)
    blocks = [
        *([] if context is None else [_context_block(context)]),
        f"[Question]\n{question}",
        *_answer_blocks(1, first),
        *_answer_blocks(2, second),
        f"[System]\n{RULE}",
    ]
    content = "".join(f"{block}\n\n" for block in blocks)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def _context_block(context: PictureContext) -> str:
    captions = "\n".join(context.captions)
    boxes = "\n".join(f"{box.category}: {list(box.bbox)}" for box in context.instances)
    return f"[Context]\n{captions}\n\n{boxes}"


def _answer_blocks(number: int, text: str) -> list[str]:
    return [f"[Assistant {number}]\n{text}", f"[End of Assistant {number}]"]
