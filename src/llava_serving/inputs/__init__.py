"""What the model reads: conversation templates, token ids, and pictures as CLIP's pixels.

Knows what LLaVA v0 was trained with. Knows no HTTP, no weights and no engine.
"""
