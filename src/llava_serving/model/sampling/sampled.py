"""The tokens and log-probabilities that a step sampled, on the device and as the host reads them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ...engine.completion import SampledToken


class Sampled(NamedTuple):
    """The result of a step, on the device.

    `tokens` (rows,) is -1 where the logits were not finite. The other fields have one row per row that requests
    log-probabilities, by ascending row: `logprobs` (rows,) of the tokens, and `alternative_ids` and
    `alternative_logprobs` (rows, largest number of alternatives) if any row requests alternatives.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor | None = None
    alternative_ids: torch.Tensor | None = None
    alternative_logprobs: torch.Tensor | None = None


def start_reading(sampled: Sampled, num_alternatives: Mapping[int, int]) -> Callable[[], list[SampledToken]]:
    """Starts the copy to the host. The result is a function that waits for the copy and returns the tokens by row."""
    if sampled.tokens.device.type != "cuda":
        return lambda: sampled_tokens(sampled, num_alternatives)
    # torch copies into pinned memory here, so that the copies do not wait for the device.
    host = Sampled._make(None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in sampled)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(sampled.tokens.device))

    def read() -> list[SampledToken]:
        copied.synchronize()
        return sampled_tokens(host, num_alternatives)

    return read


def sampled_tokens(sampled: Sampled, num_alternatives: Mapping[int, int]) -> list[SampledToken]:
    """Returns the tokens by row, from `sampled` on the host.

    `num_alternatives` is the number of alternatives of each row that requests log-probabilities, by ascending row.
    """
    tokens = [SampledToken(None if token < 0 else token) for token in sampled.tokens.tolist()]
    if sampled.logprobs is None:
        return tokens
    ids, values = ([()] * len(num_alternatives) if x is None else x.tolist() for x in sampled[2:])
    for i, (row, count) in enumerate(num_alternatives.items()):
        if (token := tokens[row].token) is not None:
            alternatives = zip(ids[i][:count], values[i][:count], strict=True)
            tokens[row] = SampledToken(token, float(sampled.logprobs[i]), tuple(alternatives))
    return tokens
