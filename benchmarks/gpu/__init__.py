"""The phases of `benchmarks/gpu.py`. Each phase is a module with a function `measure`, and needs no other's result."""
