"""Can the loaded model talk? Measured before the service reports healthy.

A LLaVA delta is made of differences: served as a model, every next token is about as likely as any other and the loss
is near ln(vocabulary). So it is with a wrong base or a broken file; the service would answer babble with status 200.
"""

import logging
import math

import torch

from .errors import StartupError
from .weights.loader import LoadedModel

logger = logging.getLogger(__name__)

SENTENCE = "The sky is blue and the grass is green. There are seven days in a week and twelve months in a year."
# In units of ln(vocabulary). Measured on a LLaMA of 135 M parameters (SmolLM2-135M-Instruct): 0.27 as it is, 0.54 with
# one of its 30 layers replaced by noise, 1.00 with differences for weights.
LIMIT = 0.45


@torch.inference_mode()
def sentence_loss(loaded: LoadedModel) -> float:
    """Mean next-token cross-entropy on SENTENCE, in nats."""
    ids = torch.tensor([loaded.tokenizer.encode([SENTENCE])], device=loaded.model.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def self_check(loaded: LoadedModel) -> None:
    """Raises StartupError if the model's loss is that of a model which knows no language."""
    loss, chance = sentence_loss(loaded), math.log(loaded.vocab_size)
    if loss < LIMIT * chance:  # false for NaN
        logger.info("self-check passed: loss %.2f on an ordinary sentence, chance is %.2f", loss, chance)
        return
    raise StartupError(
        f"self-check failed: the loss on an ordinary sentence is {loss:.2f}, and guessing among the "
        f"{loaded.vocab_size} tokens would give {chance:.2f}: this model would answer babble. Check that the delta "
        "was merged (a merged folder must not be the delta itself), that base/ is the original LLaMA of the delta's "
        "size (not Vicuna, whose difference the delta already holds, and not Llama 2), and that no file is damaged "
        "(compare their hashes with the source's). LLAVA_SELF_CHECK=false serves it all the same."
    )
