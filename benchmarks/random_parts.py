"""Writes a LLaVA v0 in parts with random weights, of 13B's widths: python benchmarks/random_parts.py DIR --layers 6

Names and shapes are LLaVA-13b-delta-v0's (405 tensors at 40 layers), so a merge does the same work on each byte.
40 layers are the true size, 54 GB. The base's norms are near one, and the delta's near zero.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

DEMO = Path(__file__).resolve().parents[1] / "demo"
HIDDEN, INTERMEDIATE, HEADS, VOCAB, VISION_WIDTH = 5120, 13824, 40, 32000, 1024
ADDED_TOKENS = {"<im_patch>": VOCAB, "<im_start>": VOCAB + 1, "<im_end>": VOCAB + 2, "[PAD]": VOCAB + 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokenizer", type=Path, required=True, help="LLaMA's tokenizer.model")
    parser.add_argument("--form", choices=("bin", "safetensors"), default="bin")
    arguments = parser.parse_args()
    numbers = torch.randn(2**26, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for part, num_added, num_shards in (("base", 0, 3), ("delta", 3, 4)):
        folder = arguments.directory / part
        folder.mkdir(parents=True)
        shapes = dict(llama_shapes(arguments.layers, VOCAB + num_added))
        if part == "delta":
            shapes |= {"model.mm_projector.weight": (HIDDEN, VISION_WIDTH), "model.mm_projector.bias": (HIDDEN,)}
        norm = 1.0 if part == "base" else 0.0
        write_shards(shapes, numbers, norm, folder, num_shards, arguments.form)
        shutil.copy(arguments.tokenizer, folder / "tokenizer.model")
        (folder / "config.json").write_text(json.dumps(llama_config(arguments.layers, VOCAB + num_added)))
    (arguments.directory / "delta" / "added_tokens.json").write_text(json.dumps(ADDED_TOKENS))
    write_vision_tower(arguments.directory / "vision")


def llama_shapes(layers: int, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (rows, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{prefix}.self_attn.{name}.weight", (HIDDEN, HIDDEN)
        yield f"{prefix}.self_attn.rotary_emb.inv_freq", (HIDDEN // HEADS // 2,)
        yield f"{prefix}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield f"{prefix}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
        yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
        yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (rows, HIDDEN)


def write_shards(
    shapes: dict[str, tuple[int, ...]],
    numbers: torch.Tensor,
    norm: float,
    folder: Path,
    num_shards: int,
    file_format: str,
) -> None:
    """Writes files with an index, in Hugging Face's naming. `norm` is added to the norms' weights."""
    save: Callable[..., None] = torch.save if file_format == "bin" else save_file
    stem = "pytorch_model" if file_format == "bin" else "model"
    names, weight_map = list(shapes), {}
    for shard in range(num_shards):
        shard_names = names[shard * len(names) // num_shards : (shard + 1) * len(names) // num_shards]
        tensors = {name: random_tensor(name, shapes[name], numbers, norm) for name in shard_names}
        file = f"{stem}-{shard + 1:05}-of-{num_shards:05}.{file_format}"
        save(tensors, folder / file)
        weight_map |= dict.fromkeys(shard_names, file)
    (folder / f"{stem}.{file_format}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def random_tensor(name: str, shape: tuple[int, ...], numbers: torch.Tensor, norm: float) -> torch.Tensor:
    """Returns `numbers`, repeated, from an offset that depends on the name."""
    count = torch.Size(shape).numel()
    start = (sum(name.encode()) * 7919 + 101 * int(norm)) % 1000
    repeated = numbers[start:].repeat(count // (len(numbers) - start) + 1)[:count].view(shape)
    return repeated + norm if name.endswith("norm.weight") else repeated.clone()


def llama_config(layers: int, rows: int) -> dict[str, object]:
    return {
        "model_type": "llama", "vocab_size": rows, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_sequence_length": 2048, "mm_hidden_size": VISION_WIDTH, "mm_vision_select_layer": -2,
    }  # fmt: skip


def write_vision_tower(folder: Path) -> None:
    """Writes CLIP ViT-L/14's vision tower with random weights, in float32 as on the hub."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
