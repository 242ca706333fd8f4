"""Stage 1, the base: a LLaMA that has read plain text and has seen neither a dialogue nor a picture."""

import random
from pathlib import Path

import torch
from dialogues import IGNORE, Dialogues
from optim import Training
from progress import Progress
from texts import document
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
EMBEDDING_SCALE = 0.3  # transformers' 0.02 leaves the residual stream to the first layers' noise
STEPS = 900
LEARNING_RATE = 4e-3
BATCH, LENGTH = 16, 128
LONG_BATCH, LONG_LENGTH = 4, 448  # now and then, so that far positions are familiar


def llama_config(vocabulary: int) -> LlamaConfig:
    """The language model's shape: 1.6 million parameters.

    Plain attention: for sequences this short its backward pass is faster than the fused one's.
    """
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=160, intermediate_size=432, num_hidden_layers=4, num_attention_heads=5,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip


def train_base(work: Path) -> Path:
    """`base.pt` in the work folder: the state dict after `STEPS` steps."""
    path = work / "base.pt"
    if path.exists():
        return path
    torch.manual_seed(1)
    rng = random.Random(1)
    dialogues = Dialogues(work / "tokenizer.model")
    model = LlamaForCausalLM(llama_config(dialogues.text.vocab_size()))
    nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_SCALE)
    training = Training(model.named_parameters(), LEARNING_RATE, STEPS)
    progress = Progress("base", STEPS)
    for step in range(STEPS):
        loss = text_loss(model, plain_text(rng, dialogues, step % 16 == 15))
        training.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


def plain_text(rng: random.Random, dialogues: Dialogues, long: bool) -> torch.Tensor:
    """A batch of documents, `<s>` text `</s>` after one another, cut to one length."""
    batch, length = (LONG_BATCH, LONG_LENGTH) if long else (BATCH, LENGTH)
    rows = []
    for _ in range(batch):
        row: list[int] = []
        while len(row) < length:
            row += [*dialogues.encode([document(rng)]), dialogues.tokenizer.eos_id]
        rows.append(row[:length])
    return torch.tensor(rows)


def text_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss; the jump from one document to the next is not to be learned."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == 1, IGNORE)
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
