"""Puts all questions to a judge, and keeps every reply."""

from collections.abc import Iterable, Mapping, Sequence

from ...progress import Progress
from ..answers.concurrent_calls import call_each
from ..judge.client import JudgeClient
from .files import CocoQuestion, PictureContext, picture_name
from .judge_prompt import Order, judge_messages
from .review_file import Review, ReviewFile, ReviewRequest, review_request

# A reply without scores is asked for again, up to this number of replies.
MAX_REPLIES = 3


def review_requests(
    questions: Iterable[CocoQuestion],
    contexts: Mapping[str, PictureContext],
    references: Mapping[str, str],
    candidates: Mapping[str, str],
    judge: JudgeClient,
    orders: Sequence[Order],
) -> list[ReviewRequest]:
    """Returns the questions to the judge, about each question that has both answers."""
    requests = []
    for question in questions:
        if question.id not in references or question.id not in candidates:
            continue
        context = contexts.get(picture_name(question.image))
        for order in orders:
            messages = judge_messages(question.text, context, references[question.id], candidates[question.id], order)
            requests.append(review_request(question, order, messages, judge.model, judge.url, judge.parameters))
    return requests


def review_all(
    requests: Sequence[ReviewRequest], judge: JudgeClient, file: ReviewFile, concurrency: int
) -> dict[str, str]:
    """Asks the judge for what the file does not have. Returns the messages of failed requests by question id.

    The next run asks failed requests again. Raises EndpointError if the judge is gone, OSError and KeyboardInterrupt.
    """
    missing = [request for request in requests if not is_settled(file.get(request.key))]

    def ask(request: ReviewRequest) -> None:
        while not is_settled(file.get(request.key)):
            file.add(request, judge.url, judge.ask(request.messages))

    with Progress("judged", " verdicts", len(requests), len(requests) - len(missing)) as progress:
        failures = call_each(progress, missing, ask, lambda *_: None, concurrency, judge.stop)
    return {missing[index].question.id: message for index, message in failures.items()}


def is_settled(reviews: Sequence[Review]) -> bool:
    """Returns whether the judge has given scores, or was asked often enough."""
    return len(reviews) >= MAX_REPLIES or any(review.scores is not None for review in reviews)
