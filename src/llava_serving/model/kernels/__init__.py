"""Triton kernels of a decode step, each beside the function that launches it. Imported only where Triton is.

Every kernel computes in float32 and rounds once, when it stores. Sizes of the model are compile-time constants, sizes
of the batch are not: a server compiles each kernel once for each number of splits, and never in the middle of traffic.
"""
