"""The engine's counters. Only its thread writes them; other threads may read values that are one step old."""

from dataclasses import dataclass


@dataclass
class Stats:
    """Gauges first, then counters since the start."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0 to 1: the share of the blocks that sequences own
    prompt_tokens: int = 0  # of every admitted sequence, cached tokens included
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # tokens looked up at admission, and again after a preemption
    prefix_cache_hits: int = 0
    mm_cache_queries: int = 0  # images whose features a step needed
    mm_cache_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    scheduled_tokens: int = 0  # prefill and decode
    scheduled_seqs: int = 0
