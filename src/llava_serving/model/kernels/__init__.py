"""Triton kernels, each with the function that launches it. Only a device that uses Triton imports them.

Every kernel computes in float32. It rounds stored values, and intermediate values that separate kernels would store.
Sizes of the model are compile-time constants, sizes of the batch are not. A server therefore compiles each kernel once
per number of splits. It compiles them before it serves if it captures CUDA graphs. Without graphs (LLAVA_ENFORCE_EAGER,
or a model on several GPUs) it compiles a kernel when a batch first needs it.
"""
