"""The model's arithmetic on a device: a batch of tokens in, sampled tokens out.

It knows layers, kernels, the KV cache and the sampler. It knows no request, file or HTTP.
"""
