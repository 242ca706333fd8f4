"""The hashes that the authors published of the merged LLaVA-13b-v0 (LLaVA issue #48, 2023-04-25)."""

# MD5 by file, of the folder that apply_delta wrote with transformers 4.28.0.dev0.
MD5 = {
    "added_tokens.json": "95e1b235bf9921a5f1e1f387d87aa46e",
    "config.json": "481795ef4fcd5994bc1d4aa200b90abe",
    "generation_config.json": "f64a72a6ddd8f35635606b2863fd6931",
    "pytorch_model-00001-of-00003.bin": "9585dc8282cf1ea48c2ae2e07471db0c",
    "pytorch_model-00002-of-00003.bin": "96e55e68ada8315601ee226633074398",
    "pytorch_model-00003-of-00003.bin": "aa21a374a965a0f6118355f901f47b94",
    "pytorch_model.bin.index.json": "395bf409a41a30abdbf0f8f611eec042",
    "special_tokens_map.json": "dc67bae5a78e59bafe37782e40763e7f",
    "tokenizer.model": "eeec4125e9c7560836b4873b6f8e3025",
    "tokenizer_config.json": "a05ef2e4e89a6cc411f6f46b5621ad1a",
}
