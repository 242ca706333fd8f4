"""The self-check at start: the service refuses to report healthy with a model that answers nonsense."""

import logging

import torch

from ..errors import StartupError
from ..weights.loader import LoadedModel
from ..weights.sentence_loss import SENTENCE, chance_loss, knows_language, next_token_loss

logger = logging.getLogger(__name__)


@torch.inference_mode()
def sentence_loss(loaded: LoadedModel) -> float:
    """The mean next-token cross-entropy on SENTENCE, in nats, by transformers' forward pass."""
    ids = torch.tensor([loaded.tokenizer.encode([SENTENCE]).token_ids], device=loaded.model.device)
    return next_token_loss(loaded.model(input_ids=ids, use_cache=False).logits[0], ids[0])


def self_check(loaded: LoadedModel) -> None:
    """Raises StartupError if the model's loss is that of a model which knows no language."""
    loss, chance = sentence_loss(loaded), chance_loss(loaded.vocab_size)
    if knows_language(loss, loaded.vocab_size):
        logger.info("self-check passed: loss %.2f on an ordinary sentence, chance is %.2f", loss, chance)
        return
    raise StartupError(
        f"self-check failed: the loss on an ordinary sentence is {loss:.2f}, and guessing among the "
        f"{loaded.vocab_size} tokens would give {chance:.2f}: this model would answer nonsense. Check that the delta "
        "was merged (a merged folder must not be the delta itself), that base/ is the original LLaMA of the delta's "
        "size (not Vicuna, whose difference the delta already holds, and not Llama 2), and that no file is damaged "
        "(compare their hashes with the source's). LLAVA_SELF_CHECK=false serves it all the same."
    )
