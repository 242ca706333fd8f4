"""The phases of `benchmarks/siege.py`. Each is a module with a function `measure`, and needs no other's result."""
