"""Triton kernels, each with the function that launches it. Only a device that uses Triton imports them.

Every kernel computes in float32. It rounds what it stores, and what separate kernels would have stored in between.
Sizes of the model are compile-time constants, sizes of the batch are not. A server therefore compiles each kernel once
per number of splits, and never while it serves.
"""
