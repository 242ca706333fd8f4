"""Stage 3, LLaVA: one linear projector and the base's language model learn to answer about pictures.

The tower stays frozen, so its features are computed once. Every prompt begins with the same system text: its keys and
values are computed once a step and shared by the batch, which makes training on the full serving prompt cheap.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from base import llama_config, plain_text, text_loss
from dialogues import IGNORE, Dialogues
from optim import Training
from pictures import Pool, pool, questions_about
from progress import Progress
from texts import small_talk
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from vision import WIDTH, pool_features, tower

STEPS = 5_500
LEARNING_RATE = 3e-3
ADDED_TOKENS = 3  # <im_patch>, <im_start>, <im_end>
TEXT_EVERY = 12  # a step in so many is plain text, so that the base's knowledge stays
LONG_EVERY = 60
SMALL_TALK = 0.06
SHARES = {"scene": 0.52, "digit": 0.18, "easy-VQA": 0.30}  # fewer digits than the tower saw: they are named in a word


@dataclass(frozen=True)
class Batch:
    """Dialogues after the common prefix: ids and targets (n, length), features of the pictures in them."""

    ids: Tensor
    targets: Tensor
    features: Tensor


@dataclass(frozen=True)
class Shape:
    """How many dialogues, how many exchanges each at the most, and how many ids."""

    dialogues: int
    exchanges: int
    length: int


# Follow-up questions are cheap targets; a lone question is what people ask most.
SINGLE = Shape(56, 1, 64)
SEVERAL = Shape(24, 6, 96)
LONG = Shape(5, 40, 410)


class Llava(nn.Module):
    """The parts that learn."""

    def __init__(self, text_vocabulary: int) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(llama_config(text_vocabulary + ADDED_TOKENS))
        self.projector = nn.Linear(WIDTH, self.llama.config.hidden_size)
        self._patch = text_vocabulary

    def start_from(self, base: dict[str, Tensor], seen: Tensor) -> None:
        """The base's weights; random rows for the added tokens; a projector that whitens the features.

        Features are correlated: a random projector would show the language model little but their mean.
        """
        state = self.llama.state_dict()
        scale = base["model.embed_tokens.weight"].std()
        with torch.no_grad():
            for name, value in base.items():
                state[name][: len(value)] = value
            state["model.embed_tokens.weight"][-ADDED_TOKENS:].normal_(std=float(scale))
            seen = seen.float().flatten(0, 1)
            mean = seen.mean(0)
            values, vectors = torch.linalg.eigh(torch.cov((seen - mean).T))
            whiten = vectors @ torch.diag(values.clamp_min(values.max() * 1e-4).rsqrt()) @ vectors.T
            spread = torch.linalg.qr(torch.randn(self.projector.out_features, WIDTH))[0]
            # qr keeps lengths: with more outputs than inputs each output is that much smaller
            weight = spread @ whiten * scale * (self.projector.out_features / WIDTH) ** 0.5
            self.projector.weight.copy_(weight)
            self.projector.bias.copy_(-weight @ mean)

    def loss(self, prefix: Tensor, batch: Batch) -> Tensor:
        """Mean loss on the answers."""
        with torch.autocast("cpu", torch.bfloat16):
            cache = self.llama.model(input_ids=prefix[None], use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(batch.ids))
            embedded = self.llama.model.embed_tokens(batch.ids)
            projected = self.projector(batch.features).to(embedded.dtype)
            embedded = embedded.masked_scatter((batch.ids == self._patch)[..., None], projected)
            hidden = self.llama.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
            asked = batch.targets[:, 1:] != IGNORE
            logits = self.llama.lm_head(hidden[:, :-1][asked])
        return functional.cross_entropy(logits.float(), batch.targets[:, 1:][asked])


def train_llava(work: Path) -> Path:
    """`llava.pt` in the work folder: the state dict after `STEPS` steps."""
    path = work / "llava.pt"
    if path.exists():
        return path
    torch.manual_seed(3)
    rng = random.Random(3)
    dialogues = Dialogues(work / "tokenizer.model")
    drawn = pool(work)
    seen = _seen(work, drawn)
    model = Llava(dialogues.text.vocab_size())
    model.start_from(torch.load(work / "base.pt"), seen[:3_000])
    prefix = torch.tensor(dialogues.prefix)
    training = Training(model.named_parameters(), LEARNING_RATE, STEPS)
    progress = Progress("llava", STEPS)
    for step in range(STEPS):
        if step % TEXT_EVERY == TEXT_EVERY - 1:
            long = step % (4 * TEXT_EVERY) == TEXT_EVERY - 1
            loss = text_loss(model.llama, plain_text(rng, dialogues, long))
        else:
            loss = model.loss(prefix, _batch(rng, dialogues, drawn, seen, _shape(rng, step)))
        training.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


def _seen(work: Path, drawn: Pool) -> Tensor:
    model = tower()
    model.load_state_dict(torch.load(work / "vision.pt"))
    return pool_features(model.eval(), drawn)


def _shape(rng: random.Random, step: int) -> Shape:
    """Conversations at first, lone questions more and more."""
    if step % LONG_EVERY == LONG_EVERY - 2:
        return LONG
    return SINGLE if rng.random() < 0.2 + 0.6 * step / STEPS else SEVERAL


def _batch(rng: random.Random, dialogues: Dialogues, drawn: Pool, seen: Tensor, shape: Shape) -> Batch:
    rows, pictures = [], []
    for _ in range(shape.dialogues):
        about_picture = rng.random() >= SMALL_TALK
        if about_picture:
            [kind] = rng.choices(list(SHARES), list(SHARES.values()))
            pictures.append(rng.choice(drawn.of_kind[kind]))
        exchanges: list[tuple[str, str]] = []
        while len(exchanges) < shape.exchanges:
            exchanges += questions_about(rng, drawn.shown[pictures[-1]]) if about_picture else [small_talk(rng)]
        rows.append(dialogues.conversation(exchanges[: shape.exchanges], about_picture, shape.length))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (length - len(targets)) for _, targets in rows])
    return Batch(ids, targets, seen[pictures].float().flatten(0, 1))
