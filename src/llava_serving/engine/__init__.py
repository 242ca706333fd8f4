"""Continuous batching: what runs in the next step, which KV cache blocks it owns, and how tokens become text.

It knows prompts as token ids, and images as pixels with a digest. It imports no torch, and knows no text and no HTTP.
"""
