"""Generation: token ids and pixels in, completions out. Knows no prompts, image files or HTTP."""

from .generate import GenerateEngine
from .sequence import Completion, Generation, SamplingParams, Submission

__all__ = ["Completion", "GenerateEngine", "Generation", "SamplingParams", "Submission"]
