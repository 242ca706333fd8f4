"""What the engine counts. Written by its thread alone; other threads may read, a step late."""

from dataclasses import dataclass


@dataclass
class Stats:
    """Gauges first, then counters since start."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0 to 1: the part of the blocks that sequences hold
    prompt_tokens: int = 0  # of every sequence that was admitted, cached ones included
    cached_prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # tokens looked up at admission, again after a preemption
    prefix_cache_hits: int = 0
    mm_cache_queries: int = 0  # images whose features a step needed
    mm_cache_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    scheduled_tokens: int = 0  # prefill and decode
    scheduled_seqs: int = 0
