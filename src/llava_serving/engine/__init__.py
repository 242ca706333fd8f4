"""Continuous batching: what runs in the next step, which KV cache blocks it owns, and how tokens become text.

It knows requests as token ids. It holds no tensor, imports no torch, and knows no prompt, picture or HTTP.
"""
