"""One question of the report as HTML: the picture, both answers, and the judge's words."""

from collections.abc import Mapping
from html import escape

from ..coco.files import PictureContext, picture_name
from ..coco.judge_prompt import Order
from ..coco.judged_question import JudgedQuestion
from ..coco.review_file import Review

VERDICTS = {
    "win": "answer is better", "tie": "equal", "loss": "reference is better", "unparsable": "without scores",
    "unjudged": "not judged", "unanswered": "not answered",
}  # fmt: skip
ORDERS = {
    Order.REFERENCE_FIRST: "Assistant 1 is the reference, Assistant 2 the answer",
    Order.CANDIDATE_FIRST: "Assistant 1 is the answer, Assistant 2 the reference",
}


def verdict_of(row: JudgedQuestion) -> str:
    """Returns a key of VERDICTS."""
    if row.candidate is None:
        return "unanswered"
    if not row.is_judged:
        return "unjudged"
    if row.scores is None:
        return "unparsable"
    reference, candidate = row.scores
    return "win" if candidate > reference else "loss" if candidate < reference else "tie"


def question_card(row: JudgedQuestion, index: int, contexts: Mapping[str, PictureContext]) -> str:
    """Returns the card of one question. `index` is its place in the file."""
    question, verdict = row.question, verdict_of(row)
    context = contexts.get(picture_name(question.image))
    gap = 0.0 if row.scores is None else row.scores[1] - row.scores[0]
    return (
        f'<article class="card question" data-index="{index}" data-category="{escape(question.category)}" '
        f'data-verdict="{verdict}" data-gap="{gap}">'
        f'<div><div class="picture"><img data-picture="{escape(question.image)}" alt="{escape(_alt(row, context))}">'
        f"{_boxes(context)}</div></div>"
        f'<div><p class="asked">{escape(question.text)}</p>'
        f'<span class="tag">{escape(question.category)}</span><span class="tag">question {escape(question.id)}</span>'
        f'<span class="tag {verdict}">{VERDICTS[verdict]}</span>'
        f'<div class="answers">{_answer("Reference", row.reference, row.scores and row.scores[0])}'
        f"{_answer('Answer', row.candidate, row.scores and row.scores[1])}</div>"
        f"{_verdicts(row)}{_captions(context)}</div></article>"
    )


def _alt(row: JudgedQuestion, context: PictureContext | None) -> str:
    return context.captions[0] if context is not None and context.captions else row.question.image


def _boxes(context: PictureContext | None) -> str:
    if context is None:
        return ""
    rects = []
    for box in context.instances:
        x1, y1, x2, y2 = (1000 * value for value in box.bbox)
        rects.append(
            f'<rect x="{x1:.0f}" y="{y1:.0f}" width="{x2 - x1:.0f}" height="{y2 - y1:.0f}">'
            f"<title>{escape(box.category)}</title></rect>"
        )
    return f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'


def _answer(title: str, text: str | None, score: float | None) -> str:
    points = "" if score is None else f'<span class="points">{score:g}</span>'
    body = '<p class="soft">none</p>' if text is None else f"<p>{escape(text)}</p>"
    return f"<div><h3>{title}{points}</h3>{body}</div>"


def _verdicts(row: JudgedQuestion) -> str:
    replies = [(order, review) for order, reviews in row.verdicts.items() for review in reviews]
    if not replies:
        return ""
    return f"<details><summary>The judge's words</summary>{''.join(_reply(*reply) for reply in replies)}</details>"


def _reply(order: Order, review: Review) -> str:
    about = f"{ORDERS[order]}. {review.judge}, {review.date[:10]}"
    return f'<p class="soft">{escape(about)}</p><p class="words">{escape(review.content)}</p>'


def _captions(context: PictureContext | None) -> str:
    if context is None:
        return ""
    captions = "\n".join(context.captions)
    boxes = ", ".join(box.category for box in context.instances)
    return (
        f"<details><summary>What the judge knew about the picture</summary>"
        f'<p class="words">{escape(captions)}\n\n{escape(boxes)}</p></details>'
    )
