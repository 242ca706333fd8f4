"""What the model reads: conversation templates, token ids, and pictures as CLIP's pixels.

It knows what LLaVA v0 was trained with. It knows no HTTP, no weights and no engine.
"""
