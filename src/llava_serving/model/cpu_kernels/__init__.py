"""Kernels in C for x86-64 processors with AVX2 or AVX-512, compiled at start by the machine's own compiler."""
