"""Tensors in checkpoint files: safetensors, torch.save, Meta's release.

It knows file formats. It knows neither LLaVA nor deltas.
"""
