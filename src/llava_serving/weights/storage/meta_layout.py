"""Meta's own release of LLaMA under transformers' names.

Each `consolidated.NN.pth` holds one model-parallel rank's part of every matrix, and every norm whole (meta-llama/llama
llama/model.py, ColumnParallelLinear and RowParallelLinear; transformers convert_llama_weights_to_hf.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import StartupError
from ...model_files import read_json
from .lazy_tensor import LazyTensor
from .model_parallel import JoinedTensor, RotaryTensor
from .stored_tensor import StoredTensor

PATTERN = "consolidated.*.pth"
# Meta's name, transformers' name, and the dimension that the ranks split. None means that every rank has it whole.
TOP = (
    ("tok_embeddings.weight", "model.embed_tokens.weight", 1),
    ("norm.weight", "model.norm.weight", None),
    ("output.weight", "lm_head.weight", 0),
)
LAYER = (
    ("attention.wq.weight", "self_attn.q_proj.weight", 0),
    ("attention.wk.weight", "self_attn.k_proj.weight", 0),
    ("attention.wv.weight", "self_attn.v_proj.weight", 0),
    ("attention.wo.weight", "self_attn.o_proj.weight", 1),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight", 0),
    ("feed_forward.w2.weight", "mlp.down_proj.weight", 1),
    ("feed_forward.w3.weight", "mlp.up_proj.weight", 0),
    ("attention_norm.weight", "input_layernorm.weight", None),
    ("ffn_norm.weight", "post_attention_layernorm.weight", None),
)
ROTARY = ("attention.wq.weight", "attention.wk.weight")
CONTEXT = 2048  # the first LLaMA's context length, which its params.json does not state


def shards(directory: Path) -> list[Path]:
    """Returns the ranks' files in order, or none in another layout. Raises StartupError if a rank is missing."""
    files = sorted(directory.glob(PATTERN))
    names = [file.name for file in files]
    expected = [f"consolidated.{rank:02}.pth" for rank in range(len(files))]
    if names != expected:
        missing = sorted(set(expected) - set(names))
        raise StartupError(f"{directory} lacks {', '.join(missing)} beside {', '.join(names)}")
    return files


def join_ranks(directory: Path, ranks: list[dict[str, StoredTensor]]) -> dict[str, LazyTensor]:
    """Returns every tensor of the model, joined from the ranks' parts. Raises StartupError if they are no LLaMA."""
    params = _read_params(directory)
    head_dim = params["dim"] // params["n_heads"]
    names = list(TOP)
    for layer in range(params["n_layers"]):
        names += [(f"layers.{layer}.{meta}", f"model.layers.{layer}.{name}", dim) for meta, name, dim in LAYER]
    tensors: dict[str, LazyTensor] = {}
    for meta_name, name, dim in names:
        if missing := [rank for rank, tensors_of_rank in enumerate(ranks) if meta_name not in tensors_of_rank]:
            raise StartupError(f"consolidated.{missing[0]:02}.pth in {directory} lacks {meta_name}")
        parts = [rank[meta_name] for rank in ranks]
        joined: LazyTensor = parts[0] if dim is None or len(parts) == 1 else JoinedTensor(parts, dim)
        tensors[name] = RotaryTensor(joined, head_dim) if meta_name.endswith(ROTARY) else joined
    width = tensors["model.embed_tokens.weight"].shape[1]
    if width != params["dim"]:
        raise StartupError(
            f"the {len(ranks)} files {PATTERN} in {directory} make an embedding of width {width}, and params.json says "
            f"{params['dim']}: is one missing?"
        )
    return tensors


def config(directory: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns what transformers' config.json would say of the folder."""
    params = _read_params(directory)
    return {
        "model_type": "llama",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "hidden_size": params["dim"],
        "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "rms_norm_eps": params.get("norm_eps", 1e-6),
        "rope_theta": params.get("rope_theta"),
        "rope_scaling": _rope_scaling(params),
        "max_position_embeddings": CONTEXT,
    }


def _rope_scaling(params: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the keys of later releases that scale RoPE (Llama 3.1's `use_scaled_rope`), as a type of their own."""
    scaling = {key: value for key, value in params.items() if "rope" in key and key != "rope_theta" and value}
    return {"rope_type": "params.json", **scaling} if scaling else None


def _read_params(directory: Path) -> dict[str, Any]:
    path = directory / "params.json"
    if not path.is_file():
        raise StartupError(f"{directory} has {PATTERN} but no params.json, which Meta's release contains")
    params = read_json(path)
    missing = [key for key in ("dim", "n_heads", "n_layers") if not isinstance(params.get(key), int)]
    if missing:
        raise StartupError(f"{path} lacks {', '.join(missing)}")
    return params
