"""LLaVA-Bench (COCO): its files, its judge's prompt and verdicts, scores, and the comparison of two runs."""
