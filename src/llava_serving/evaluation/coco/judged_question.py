"""A question with both answers and the judge's verdicts: one row of the report and of its JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .files import CocoQuestion
from .judge_prompt import Order
from .review_file import Review, ReviewFile, ReviewRequest
from .verdict import Scores


@dataclass(frozen=True)
class JudgedQuestion:
    """`verdicts` has the judge's replies by order, in the order in which they came; it is empty before judging."""

    question: CocoQuestion
    reference: str | None
    candidate: str | None
    verdicts: Mapping[Order, list[Review]] = field(default_factory=dict)

    @property
    def is_judged(self) -> bool:
        """Whether the judge has replied in each order that it was asked in."""
        return bool(self.verdicts) and all(self.verdicts.values())

    @property
    def scores(self) -> Scores | None:
        """The scores of (reference, candidate): the mean over the orders. None if the scores of any order are missing.

        A question with scores in one order alone would bring in the judge's preference for a position.
        """
        by_order = [self.scores_in(order) for order in self.verdicts]
        present = [scores for scores in by_order if scores is not None]
        if not present or len(present) < len(by_order):
            return None
        return sum(s[0] for s in present) / len(present), sum(s[1] for s in present) / len(present)

    def scores_in(self, order: Order) -> Scores | None:
        """The scores of the last reply that has some."""
        scores = [review.scores for review in self.verdicts.get(order, ()) if review.scores is not None]
        return scores[-1] if scores else None

    @property
    def published(self) -> Scores | None:
        """The scores as the authors counted them: the first reply, the reference first, -1 without scores."""
        reviews = self.verdicts.get(Order.REFERENCE_FIRST)
        return reviews[0].published if reviews else None


def judged_questions(
    questions: Iterable[CocoQuestion],
    references: Mapping[str, str],
    candidates: Mapping[str, str],
    requests: Iterable[ReviewRequest],
    file: ReviewFile,
) -> list[JudgedQuestion]:
    verdicts: dict[str, dict[Order, list[Review]]] = {}
    for request in requests:
        verdicts.setdefault(request.question.id, {})[request.order] = file.get(request.key)
    return [
        JudgedQuestion(
            question, references.get(question.id), candidates.get(question.id), verdicts.get(question.id, {})
        )
        for question in questions
    ]
