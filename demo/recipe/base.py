"""Stage 1, the base: a LLaMA trained on plain text, without dialogues and images."""

import random
from pathlib import Path

import torch
from dialogues import IGNORE, Dialogues
from optimizers import Optimizers
from progress import Progress
from texts import document
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 512
EMBEDDING_SCALE = 0.3  # with transformers' 0.02 the noise of the first layers dominates the residual stream
STEPS = 900
LEARNING_RATE = 4e-3
BATCH, LENGTH = 16, 128
LONG_BATCH, LONG_LENGTH = 4, 448  # every 16th step, so that the model learns late positions


def llama_config(vocab_size: int) -> LlamaConfig:
    """Returns the shape of the language model, which has 1.6 million parameters.

    Uses eager attention: for sequences this short its backward pass is faster than that of fused attention.
    """
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=160, intermediate_size=432, num_hidden_layers=4, num_attention_heads=5,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip


def train_base(work: Path) -> Path:
    """Trains for STEPS steps and returns the path of the state dict, `base.pt` in the work folder.

    Trains nothing if the file exists.
    """
    path = work / "base.pt"
    if path.exists():
        return path
    torch.manual_seed(1)
    rng = random.Random(1)
    dialogues = Dialogues(work / "tokenizer.model")
    model = LlamaForCausalLM(llama_config(dialogues.text.vocab_size()))
    nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_SCALE)
    optimizers = Optimizers(model.named_parameters(), LEARNING_RATE, STEPS)
    progress = Progress("base", STEPS)
    for step in range(STEPS):
        loss = text_loss(model, text_batch(rng, dialogues, step % 16 == 15))
        optimizers.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


def text_batch(rng: random.Random, dialogues: Dialogues, long: bool) -> torch.Tensor:
    """Returns token ids (batch, length) of documents, each `<s>` text `</s>`, cut to one length."""
    batch, length = (LONG_BATCH, LONG_LENGTH) if long else (BATCH, LENGTH)
    rows = []
    for _ in range(batch):
        row: list[int] = []
        while len(row) < length:
            row += [*dialogues.encode([document(rng)]), dialogues.tokenizer.eos_id]
        rows.append(row[:length])
    return torch.tensor(rows)


def text_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Returns the mean next-token loss, without the first token of each document as a target."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == 1, IGNORE)
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
