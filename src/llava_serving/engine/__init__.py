"""Generation: token ids and pixels in, text out. Knows no prompts, image files or HTTP.

`sequence`, `block_manager` and `scheduler` decide and hold no tensor; `kv_cache`, `attention`, `vision`, `sampler` and
`model_runner` compute; `engine` turns the one into the other's work, step by step.
"""
