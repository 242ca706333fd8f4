"""Generation by transformers' `generate`, one sequence at a time, in the order of submission.

One thread owns the model; `submit` may be called from any thread.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers import LlavaForConditionalGeneration, LogitsProcessorList, StoppingCriteriaList

from .detokenizer import Detokenizer, StopText
from .sampler import Sampler
from .sequence import Completion, FinishReason, Generation, Submission, TokenLogprob


class GenerateEngine:
    """`submit` a prompt, wait for its Generation.

    `token_bytes` gives a token's UTF-8 bytes; ids from `text_vocab_size` on are added tokens and never generated.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        token_bytes: Callable[[int], bytes],
        text_vocab_size: int,
        eos_id: int,
    ) -> None:
        self._model = model
        self._token_bytes = token_bytes
        self._eos_id = eos_id
        vocab_size = model.config.text_config.vocab_size
        self._banned = torch.arange(text_vocab_size, vocab_size, device=model.device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    def submit(self, submission: Submission) -> "Future[Generation]":
        """Queues the prompt; the future's exception is whatever ended it."""
        return self._thread.submit(self._generate, submission, time.monotonic())

    def _generate(self, submission: Submission, submitted: float) -> Generation:
        started = time.monotonic()
        sequences = [self._sequence(submission, index) for index in range(submission.params.n)]
        return Generation(
            completions=tuple(sequence.completion() for sequence in sequences),
            prompt_tokens=len(submission.token_ids),
            queue_seconds=started - submitted,
            ttft_seconds=sequences[0].first_token_at - submitted,
            total_seconds=time.monotonic() - submitted,
        )

    @torch.inference_mode()
    def _sequence(self, submission: Submission, index: int) -> "_RunningSequence":
        device, params = self._model.device, submission.params
        sequence = _RunningSequence(
            submission, Sampler(params, index, self._banned, self._eos_id), self._token_bytes, self._eos_id
        )
        input_ids = torch.tensor([submission.token_ids], device=device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if submission.pixel_values is not None:  # generate does not take None for it
            inputs["pixel_values"] = submission.pixel_values.to(device, self._model.dtype)
        self._model.generate(
            **inputs,
            do_sample=False,  # the sequence's own sampler decides
            max_new_tokens=params.max_new_tokens,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([sequence.choose]),
            stopping_criteria=StoppingCriteriaList([sequence.finished]),
        )
        return sequence


class _RunningSequence:
    """One sequence inside `generate`, which calls `choose` and then `finished` at every step."""

    def __init__(
        self, submission: Submission, sampler: Sampler, token_bytes: Callable[[int], bytes], eos_id: int
    ) -> None:
        self._params = submission.params
        self._sampler = sampler
        self._token_bytes = token_bytes
        self._eos_id = eos_id
        self._detokenizer = Detokenizer()
        self._text = StopText(submission.params.stop)
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason = "length"
        self.first_token_at = 0.0

    def choose(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (1, vocabulary) with all but the sampler's choice ruled out."""
        token = self._sampler(scores[0], input_ids[0], len(self._token_ids))
        if self._params.logprobs is not None:
            self._logprobs.append(self._logprob(scores[0], token, self._params.logprobs))
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0.0)

    def finished(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Takes the token that was just appended; whether the sequence ends with it, (1,) bool."""
        token = int(input_ids[0, -1])
        if not self._token_ids:
            self.first_token_at = time.monotonic()
        self._token_ids.append(token)
        return torch.tensor([self._append(token)], device=input_ids.device)

    def completion(self) -> Completion:
        text = self._text.text if self._text.stopped else self._text.text + self._detokenizer.flush()
        return Completion(text, tuple(self._token_ids), self._finish_reason, tuple(self._logprobs))

    def _append(self, token: int) -> bool:
        if token == self._eos_id:
            self._finish_reason = "stop"
            return True
        piece = self._detokenizer.push(self._token_bytes(token))
        if self._text.push(piece, searching=len(self._token_ids) >= self._params.min_new_tokens):
            self._finish_reason = "stop"
            return True
        return False

    def _logprob(self, scores: torch.Tensor, token: int, alternatives: int) -> TokenLogprob:
        logprobs = scores.float().log_softmax(-1)
        likeliest = self._sampler.without_banned(logprobs).topk(alternatives)
        return TokenLogprob(
            self._token_bytes(token),
            float(logprobs[token]),
            tuple(
                TokenLogprob(self._token_bytes(int(i)), float(value))
                for i, value in zip(likeliest.indices, likeliest.values, strict=True)
            ),
        )
