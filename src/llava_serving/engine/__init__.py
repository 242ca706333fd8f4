"""Generation: token ids and pixels in, text out. Knows no prompts, image files or HTTP.

It decides what runs and holds no tensor; the package `model` computes.
"""
