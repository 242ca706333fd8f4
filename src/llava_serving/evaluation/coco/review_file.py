"""The judge's replies on the disk, each as it comes: no question is put to a judge twice, whatever ends the run.

The rows have the fields of the authors' review files, and ours.
"""

import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..answers.asking import digest
from ..answers.journal import KeptRows
from ..judge.client import Messages, Reply
from .files import CocoQuestion
from .judge_prompt import Order
from .verdict import Scores, published_scores, tolerant_scores


@dataclass(frozen=True)
class Review:
    """One reply of a judge about one question.

    `published` has the scores by the authors' rule, and `scores` ours, None if the reply has none. Both are those of
    (reference, candidate), whatever order the judge saw.
    """

    content: str
    published: Scores
    scores: Scores | None
    judge: str
    date: str
    usage: Mapping[str, int]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class ReviewRequest:
    """One question to the judge. `key` is a digest of all that the reply depends on."""

    question: CocoQuestion
    order: Order
    messages: Messages
    key: str


def review_request(
    question: CocoQuestion, order: Order, messages: Messages, judge: str, url: str, parameters: Mapping[str, Any]
) -> ReviewRequest:
    """Returns the question to the judge `judge` at the base `url`, sent with `parameters`.

    If both answers are equal, both orders have the same messages: the order is in the key too.
    """
    key = digest(url.rstrip("/"), judge, question.id, order, messages, dict(parameters))
    return ReviewRequest(question, order, messages, key)


class ReviewFile(KeptRows):
    """The reviews of one output folder, by key, in the order in which they came.

    A question has several reviews if the first ones had no scores. Raises StartupError if another run has the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._reviews: dict[str, list[Review]] = defaultdict(list)
        for row in self._journal.rows:
            if _is_review(row):
                self._reviews[row["key"]].append(_review(row))

    def get(self, key: str) -> list[Review]:
        return self._reviews[key]

    def add(self, request: ReviewRequest, url: str, reply: Reply) -> None:
        """Appends a reply."""
        row = {
            "id": uuid.uuid4().hex, "question_id": request.question.question_id, "category": request.question.category,
            "content": reply.text, "tuple": published_scores(reply.text), "order": request.order, "key": request.key,
            "judge": reply.model, "base_url": url, "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "finish_reason": reply.finish_reason, "usage": reply.usage, "parameters": reply.parameters,
            "messages": request.messages,
        }  # fmt: skip
        self._journal.add(row)
        self._reviews[request.key].append(_review(row))


def _is_review(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("key"), str) and isinstance(row.get("content"), str) and row.get("order") in list(Order)


def _review(row: Mapping[str, Any]) -> Review:
    published, scores = published_scores(row["content"]), tolerant_scores(row["content"])
    if row["order"] == Order.CANDIDATE_FIRST:
        published, scores = published[::-1], scores and scores[::-1]
    return Review(
        row["content"], published, scores, str(row.get("judge", "")), str(row.get("date", "")),
        row.get("usage") or {}, row.get("parameters") or {},
    )  # fmt: skip


def as_json(review: Review) -> dict[str, Any]:
    return asdict(review)
