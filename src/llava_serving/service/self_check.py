"""The self-check at start: the service refuses to report healthy with a model or a runner that answers nonsense.

The sentence goes through the runner that will serve, with its KV cache and kernels: two chunks of a prompt, then decode
steps. transformers' forward pass is the reference. That is one pass over all weights for each step and one for the
reference, the fewest with which a decode step reads what another decode step and two chunks have written.
"""

import logging
from itertools import pairwise

import torch

from ..engine.prompt import SamplingParams
from ..engine.scheduler import Batch, ScheduledChunk
from ..engine.sequence import Sequence, random_numbers
from ..errors import StartupError
from ..model.kv_cache import BLOCK_SIZE
from ..model.model_runner import ModelRunner
from ..model.packed_linear import PackedLinear
from ..weights.loader import LoadedModel
from ..weights.sentence_loss import SENTENCE, chance_loss, knows_language, next_token_loss

logger = logging.getLogger(__name__)
NUM_DECODE_STEPS = 2
# The largest accepted error of one token's logits, relative to the norm of the reference's, each without its mean.
# Measured on a CPU, healthy: the demo model 9e-7, 0.002 and 0.02; 40 random layers 0.01 in float16 and 0.1 in bfloat16.
# A cache that one layer does not write: 0.7 to 2.7 in the demo model, 0.12 to 1.6 in the 40 layers.
TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 0.2}
# With inputs, keys or values in 8 bits, in any dtype. Healthy: the demo model 0.006 to 0.07.
INTEGER_TOLERANCE = 0.2


def sentence_ids(loaded: LoadedModel) -> list[int]:
    return list(loaded.tokenizer.encode([SENTENCE]).token_ids[: loaded.context_length])


@torch.inference_mode()
def reference_logits(loaded: LoadedModel) -> torch.Tensor:
    """Returns the logits (tokens, vocabulary) of SENTENCE by transformers' forward pass, float32 on the CPU."""
    ids = torch.tensor([sentence_ids(loaded)], device=loaded.model.device)
    logits: torch.Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().cpu()


def runner_logits(loaded: LoadedModel, runner: ModelRunner) -> torch.Tensor:
    """Returns the same logits by the runner, which must not run another batch meanwhile.

    Uses the first blocks of the KV cache, in descending order, so that a block's number is not its place.
    """
    ids = sentence_ids(loaded)
    num_blocks = -(-len(ids) // BLOCK_SIZE)
    seq = Sequence(-1, ids, (), SamplingParams(max_new_tokens=1), random_numbers(0, 0))
    seq.block_table = list(reversed(range(num_blocks)))
    prompt = max(2, len(ids) - NUM_DECODE_STEPS)
    rows, new_blocks = [], seq.block_table
    for start, end in pairwise([0, prompt // 2, *range(prompt, len(ids) + 1)]):
        rows.append(runner.logits(Batch([ScheduledChunk(seq, start, end, True)], new_blocks)).float().cpu())
        new_blocks = []
    return torch.cat(rows)


def sentence_loss(loaded: LoadedModel) -> float:
    """Returns the mean next-token cross-entropy on SENTENCE, in nats, by transformers' forward pass."""
    return next_token_loss(reference_logits(loaded), torch.tensor(sentence_ids(loaded)))


def largest_error(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Returns the largest relative error of a row of logits (tokens, vocabulary), or NaN if one is not finite."""
    centered, expected = (rows - rows.mean(-1, keepdim=True) for rows in (logits, reference))
    return float(((centered - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def self_check(loaded: LoadedModel, runner: ModelRunner) -> None:
    """Raises StartupError if the model knows no language, or if the runner computes another model's logits."""
    ids, logits, reference = torch.tensor(sentence_ids(loaded)), runner_logits(loaded, runner), reference_logits(loaded)
    loss, reference_loss = next_token_loss(logits, ids), next_token_loss(reference, ids)
    error, tolerance = largest_error(logits, reference), _tolerance(loaded, runner)
    if not knows_language(reference_loss, loaded.vocab_size):
        raise StartupError(_nonsense(reference_loss, loaded.vocab_size))
    if not error <= tolerance:  # also true for NaN
        raise StartupError(
            f"self-check failed: the engine's logits on an ordinary sentence are {error:.2g} off transformers' "
            f"(relative to their norm), and {tolerance:g} is the most that rounding in {loaded.model.dtype} explains: "
            f"the loss is {loss:.2f}, and {reference_loss:.2f} by transformers. The model's files are good; the "
            "engine's attention, cache or kernels are wrong on this device. Report it with this log. "
            "LLAVA_SELF_CHECK=false serves it all the same."
        )
    if not knows_language(loss, loaded.vocab_size):
        raise StartupError(_nonsense(loss, loaded.vocab_size))
    logger.info(
        "self-check passed: loss %.2f on an ordinary sentence, chance is %.2f; the engine's logits are %.1e off "
        "transformers', %g is accepted", loss, chance_loss(loaded.vocab_size), error, tolerance,
    )  # fmt: skip


def _tolerance(loaded: LoadedModel, runner: ModelRunner) -> float:
    rounds_inputs = any(isinstance(module, PackedLinear) and module.rounds_inputs for module in loaded.model.modules())
    rounds_cache = runner.stages[0].cache.dtype == torch.int8
    return INTEGER_TOLERANCE if rounds_inputs or rounds_cache else TOLERANCE[loaded.model.dtype]


def _nonsense(loss: float, vocab_size: int) -> str:
    return (
        f"self-check failed: the loss on an ordinary sentence is {loss:.2f}, and guessing among the {vocab_size} "
        f"tokens would give {chance_loss(vocab_size):.2f}: this model would answer nonsense. Check that the delta "
        "was merged (a merged folder must not be the delta itself), that base/ is the original LLaMA of the delta's "
        "size (not Vicuna, whose difference the delta already holds, and not Llama 2), and that no file is damaged "
        "(compare their hashes with the source's). LLAVA_SELF_CHECK=false serves it all the same."
    )
