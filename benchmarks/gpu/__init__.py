"""The phases of `benchmarks/gpu.py`: each module `measure`s one thing, and none needs another's result."""
