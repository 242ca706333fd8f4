"""Puts questions in text only to a judge, and keeps every answer as it comes."""

from collections.abc import Mapping

from ...progress import Progress
from ..answers.answer_file import AnswerFile
from ..answers.asking import Answers, digest
from ..answers.concurrent_calls import call_each
from .client import JudgeClient, Messages, Reply


def ask_judge(
    description: str, messages: Mapping[str, Messages], judge: JudgeClient, file: AnswerFile, concurrency: int
) -> Answers:
    """Returns the judge's answers to `messages`, by question id. Asks only for what the file does not have.

    Raises EndpointError if the judge is gone, OSError and KeyboardInterrupt. The answers that have come are in the file
    then, and the next run asks failed questions again.
    """
    name = f"{judge.model} at {judge.url}"
    keys = {question_id: _key(name, question_id, judge, asked) for question_id, asked in messages.items()}
    texts = {question_id: text for question_id, key in keys.items() if (text := file.get(key)) is not None}
    missing = [question_id for question_id in messages if question_id not in texts]

    def keep(question_id: str, reply: Reply) -> None:
        metadata = {
            "judge": reply.model, "finish_reason": reply.finish_reason, "usage": reply.usage,
            "parameters": reply.parameters,
        }  # fmt: skip
        prompt = messages[question_id][-1]["content"]
        file.add(keys[question_id], question_id, prompt, reply.text, name, metadata)
        texts[question_id] = reply.text

    with Progress(description, " questions", len(messages), len(texts)) as progress:
        failures = call_each(
            progress, missing, lambda question_id: judge.ask(messages[question_id]), keep, concurrency, judge.stop
        )
    return Answers(texts, {missing[index]: message for index, message in failures.items()})


def _key(name: str, question_id: str, judge: JudgeClient, messages: Messages) -> str:
    """Returns a digest of all that the answer depends on: judge, address, question, messages and parameters."""
    return digest(name, question_id, {"model": judge.model, "messages": messages, **judge.parameters})
