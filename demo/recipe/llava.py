"""Stage 3, LLaVA: a linear projector and the base's language model learn to answer questions about images.

The tower is frozen, so its features are computed once. Every prompt begins with the same system text. Its keys and
values are computed once per step and shared by the batch, which makes training on the full serving prompt cheap.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from base import llama_config, text_batch, text_loss
from dialogues import IGNORE, Dialogues
from optimizers import Optimizers
from progress import Progress
from texts import small_talk
from torch import Tensor, nn
from torch.nn import functional
from training_images import ImagePool, load_pool, questions_about
from transformers import LlamaForCausalLM
from vision import WIDTH, build_tower, pool_features

STEPS = 5_500
LEARNING_RATE = 3e-3
ADDED_TOKENS = 3  # <im_patch>, <im_start>, <im_end>
TEXT_EVERY = 12  # every 12th step trains on plain text, so that the model keeps the base's knowledge
LONG_EVERY = 60
SMALL_TALK = 0.06
# Fewer digits than for the tower, because their answers are single words.
SHARES = {"scene": 0.52, "digit": 0.18, "easy-VQA": 0.30}


@dataclass(frozen=True)
class Batch:
    """Dialogues after the common prefix: ids and targets (n, length), and the features of their images."""

    ids: Tensor
    targets: Tensor
    features: Tensor


@dataclass(frozen=True)
class BatchShape:
    """The number of dialogues, and the maximum number of exchanges and of ids in each."""

    dialogues: int
    max_exchanges: int
    max_length: int


# Follow-up questions are cheap targets. Most people ask a single question.
SINGLE = BatchShape(56, 1, 64)
SEVERAL = BatchShape(24, 6, 96)
LONG = BatchShape(5, 40, 410)


class Llava(nn.Module):
    """The language model and the projector, which this stage trains."""

    def __init__(self, text_vocab_size: int) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(llama_config(text_vocab_size + ADDED_TOKENS))
        self.projector = nn.Linear(WIDTH, self.llama.config.hidden_size)
        self._patch = text_vocab_size

    def initialize(self, base: dict[str, Tensor], features: Tensor) -> None:
        """Copies the base's weights, draws rows for the added tokens, and makes a projector that whitens `features`.

        The features are correlated, and a random projector would pass on little more than their mean.
        """
        state = self.llama.state_dict()
        scale = base["model.embed_tokens.weight"].std()
        with torch.no_grad():
            for name, value in base.items():
                state[name][: len(value)] = value
            state["model.embed_tokens.weight"][-ADDED_TOKENS:].normal_(std=float(scale))
            features = features.float().flatten(0, 1)
            mean = features.mean(0)
            values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
            whiten = vectors @ torch.diag(values.clamp_min(values.max() * 1e-4).rsqrt()) @ vectors.T
            expand = torch.linalg.qr(torch.randn(self.projector.out_features, WIDTH))[0]
            # QR keeps lengths, so more outputs than inputs make each output smaller.
            weight = expand @ whiten * scale * (self.projector.out_features / WIDTH) ** 0.5
            self.projector.weight.copy_(weight)
            self.projector.bias.copy_(-weight @ mean)

    def loss(self, prefix: Tensor, batch: Batch) -> Tensor:
        """Returns the mean loss on the answers."""
        with torch.autocast("cpu", torch.bfloat16):
            cache = self.llama.model(input_ids=prefix[None], use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(batch.ids))
            embedded = self.llama.model.embed_tokens(batch.ids)
            projected = self.projector(batch.features).to(embedded.dtype)
            embedded = embedded.masked_scatter((batch.ids == self._patch)[..., None], projected)
            hidden = self.llama.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state
            is_target = batch.targets[:, 1:] != IGNORE
            logits = self.llama.lm_head(hidden[:, :-1][is_target])
        return functional.cross_entropy(logits.float(), batch.targets[:, 1:][is_target])


def train_llava(work: Path) -> Path:
    """Trains for STEPS steps and returns the path of the state dict, `llava.pt` in the work folder.

    Trains nothing if the file exists.
    """
    path = work / "llava.pt"
    if path.exists():
        return path
    torch.manual_seed(3)
    rng = random.Random(3)
    dialogues = Dialogues(work / "tokenizer.model")
    pool = load_pool(work)
    features = _features(work, pool)
    model = Llava(dialogues.text.vocab_size())
    model.initialize(torch.load(work / "base.pt"), features[:3_000])
    prefix = torch.tensor(dialogues.prefix)
    optimizers = Optimizers(model.named_parameters(), LEARNING_RATE, STEPS)
    progress = Progress("llava", STEPS)
    for step in range(STEPS):
        if step % TEXT_EVERY == TEXT_EVERY - 1:
            long = step % (4 * TEXT_EVERY) == TEXT_EVERY - 1
            loss = text_loss(model.llama, text_batch(rng, dialogues, long))
        else:
            loss = model.loss(prefix, _batch(rng, dialogues, pool, features, _batch_shape(rng, step)))
        optimizers.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


def _features(work: Path, pool: ImagePool) -> Tensor:
    model = build_tower()
    model.load_state_dict(torch.load(work / "vision.pt"))
    return pool_features(model.eval(), pool)


def _batch_shape(rng: random.Random, step: int) -> BatchShape:
    """Returns a shape. The share of single questions grows with the step."""
    if step % LONG_EVERY == LONG_EVERY - 2:
        return LONG
    return SINGLE if rng.random() < 0.2 + 0.6 * step / STEPS else SEVERAL


def _batch(rng: random.Random, dialogues: Dialogues, pool: ImagePool, features: Tensor, shape: BatchShape) -> Batch:
    rows, images = [], []
    for _ in range(shape.dialogues):
        about_image = rng.random() >= SMALL_TALK
        if about_image:
            [kind] = rng.choices(list(SHARES), list(SHARES.values()))
            images.append(rng.choice(pool.indices_by_kind[kind]))
        exchanges: list[tuple[str, str]] = []
        while len(exchanges) < shape.max_exchanges:
            exchanges += questions_about(rng, pool.contents[images[-1]]) if about_image else [small_talk(rng)]
        rows.append(dialogues.conversation(exchanges[: shape.max_exchanges], about_image, shape.max_length))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets + [IGNORE] * (length - len(targets)) for _, targets in rows])
    return Batch(ids, targets, features[images].float().flatten(0, 1))
