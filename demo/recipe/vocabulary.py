"""The tokenizer: SentencePiece with LLaMA's settings, trained on the texts and questions of the recipe.

The corpus contains the service's own prompt, so that its long system text takes few tokens.
"""

import io
import random
from pathlib import Path

import easyvqa
from dialogues import question_text
from digits import digit_questions
from scenes import COLORS, random_objects, scene_questions
from sentencepiece import SentencePieceTrainer
from texts import CHAT, document

VOCAB_SIZE = 1_000


def train_tokenizer(work: Path) -> Path:
    """Returns the path of `tokenizer.model` in the work folder, and trains the model if it does not exist."""
    path = work / "tokenizer.model"
    if not path.exists():
        model = io.BytesIO()
        SentencePieceTrainer.train(  # in memory, because the model would otherwise contain file names
            sentence_iterator=iter(_lines(random.Random(1))), model_writer=model, vocab_size=VOCAB_SIZE,
            model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False,
            num_threads=1, minloglevel=2,
        )  # fmt: skip
        path.write_bytes(model.getvalue())
    return path


def _lines(rng: random.Random) -> list[str]:
    lines = [document(rng) for _ in range(6_000)]
    for _ in range(1_500):
        objects = random_objects(rng, list(COLORS))
        lines += [f"###Human: {q.text}###Assistant: {q.answer}###" for q in scene_questions(rng, objects)]
        lines += [f"###Human: {q.text}###Assistant: {q.answer}###" for q in digit_questions(rng, rng.randrange(10))]
    for questions in list(easyvqa.questions("train").values())[:600]:
        lines += [f"###Human: {text}###Assistant: {answer}###" for text, answer in questions]
    lines += [f"###Human: {text}###Assistant: {answer}###" for text, answer in CHAT * 100]
    # Line breaks separate the lines of the corpus. A line break in a prompt becomes a byte token.
    return lines + question_text("Hi!").replace("\n", " ").split("###") * 1_500
