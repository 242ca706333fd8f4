"""The tokenizer: SentencePiece with LLaMA's settings, trained on the texts and questions of the recipe.

The service's own prompt is in the corpus, so that its long system text costs few tokens.
"""

import io
import random
from pathlib import Path

import easyvqa
from dialogues import question_text
from digits import digit_questions
from scenes import COLORS, random_things, scene_questions
from sentencepiece import SentencePieceTrainer
from texts import CHAT, document

SIZE = 1_000


def train_tokenizer(work: Path) -> Path:
    """`tokenizer.model` in the work folder."""
    path = work / "tokenizer.model"
    if not path.exists():
        model = io.BytesIO()
        SentencePieceTrainer.train(  # from memory: the model file would keep the names of files
            sentence_iterator=iter(_lines(random.Random(1))), model_writer=model, vocab_size=SIZE, model_type="bpe",
            byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=True,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=1.0,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
        path.write_bytes(model.getvalue())
    return path


def _lines(rng: random.Random) -> list[str]:
    lines = [document(rng) for _ in range(6_000)]
    for _ in range(1_500):
        things = random_things(rng, list(COLORS))
        lines += [f"###Human: {q.text}###Assistant: {q.answer}###" for q in scene_questions(rng, things)]
        lines += [f"###Human: {q.text}###Assistant: {q.answer}###" for q in digit_questions(rng, rng.randrange(10))]
    for asked in list(easyvqa.questions("train").values())[:600]:
        lines += [f"###Human: {text}###Assistant: {answer}###" for text, answer in asked]
    lines += [f"###Human: {text}###Assistant: {answer}###" for text, answer in CHAT * 100]
    # Line breaks separate the corpus's lines; the prompt's own becomes its byte token.
    return lines + question_text("Hi!").replace("\n", " ").split("###") * 1_500
