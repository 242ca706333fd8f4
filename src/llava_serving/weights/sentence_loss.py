"""Whether a language model knows language, told by its loss on one ordinary sentence.

A LLaVA delta is made of differences: served as a model, it finds every next token about equally likely, and its loss is
near ln(vocabulary size). The same holds for a merge with a wrong base and for a damaged file.
"""

import math

import torch
from torch.nn.functional import cross_entropy

SENTENCE = "The sky is blue and the grass is green. There are seven days in a week and twelve months in a year."
# In units of ln(vocabulary size). Measured on a LLaMA of 135 M parameters (SmolLM2-135M-Instruct): 0.27 as it is, 0.54
# with one of its 30 layers replaced by noise, 1.00 with differences for weights.
LIMIT = 0.45


def next_token_loss(logits: torch.Tensor, token_ids: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats, of logits (tokens, vocabulary size) and ids (tokens,)."""
    return float(cross_entropy(logits[:-1].float(), token_ids[1:]))


def chance_loss(vocab_size: int) -> float:
    """The loss, in nats, of a model that guesses."""
    return math.log(vocab_size)


def knows_language(loss: float, vocab_size: int) -> bool:
    """Whether the loss on SENTENCE is far below that of guessing. A NaN is not."""
    return loss < LIMIT * chance_loss(vocab_size)
