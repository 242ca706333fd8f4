"""From the parts of a LLaVA v0 to a merged folder that transformers and vLLM load."""
