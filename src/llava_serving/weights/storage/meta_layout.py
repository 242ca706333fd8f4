"""Meta's own release of LLaMA under transformers' names.

Each `consolidated.NN.pth` is one model-parallel rank's part of every matrix; norms are whole in each (meta-llama/llama
llama/model.py, ColumnParallelLinear and RowParallelLinear; transformers convert_llama_weights_to_hf.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import StartupError
from ...model_files import read_json
from .stored_tensor import JoinedTensor, RotaryTensor, StoredTensor, Tensor

PATTERN = "consolidated.*.pth"
# Meta's name, transformers', and the dimension along which the ranks' parts are joined; None: every rank has the whole.
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
CONTEXT = 2048  # the first LLaMA's; its params.json does not say


def shards(directory: Path) -> list[Path]:
    """The ranks' files in order; none where the folder is not Meta's. Raises StartupError for a gap."""
    files = sorted(directory.glob(PATTERN))
    names = [file.name for file in files]
    expected = [f"consolidated.{rank:02}.pth" for rank in range(len(files))]
    if names != expected:
        missing = sorted(set(expected) - set(names))
        raise StartupError(f"{directory} lacks {', '.join(missing)} beside {', '.join(names)}")
    return files


def tensors(directory: Path, ranks: list[dict[str, StoredTensor]]) -> dict[str, Tensor]:
    """Every tensor of the model, joined from the ranks' parts. Raises StartupError for what is no LLaMA."""
    params = _params(directory)
    head_dim = params["dim"] // params["n_heads"]
    names = list(TOP)
    for layer in range(params["n_layers"]):
        names += [(f"layers.{layer}.{theirs}", f"model.layers.{layer}.{ours}", dim) for theirs, ours, dim in LAYER]
    found: dict[str, Tensor] = {}
    for theirs, ours, dim in names:
        lacking = [str(rank) for rank, held in enumerate(ranks) if theirs not in held]
        if lacking:
            raise StartupError(f"consolidated.0{lacking[0]}.pth in {directory} lacks {theirs}")
        parts = [rank[theirs] for rank in ranks]
        joined: Tensor = parts[0] if dim is None or len(parts) == 1 else JoinedTensor(parts, dim)
        found[ours] = RotaryTensor(joined, head_dim) if theirs.endswith(ROTARY) else joined
    if found["model.embed_tokens.weight"].shape[1] != params["dim"]:
        raise StartupError(
            f"the {len(ranks)} files {PATTERN} in {directory} make an embedding of width "
            f"{found['model.embed_tokens.weight'].shape[1]}, and params.json says {params['dim']}: is one missing?"
        )
    return found


def config(directory: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What transformers' config.json would say of the folder."""
    params = _params(directory)
    return {
        "model_type": "llama",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "hidden_size": params["dim"],
        "intermediate_size": tensors["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "rms_norm_eps": params.get("norm_eps", 1e-6),
        "max_position_embeddings": CONTEXT,
    }


def _params(directory: Path) -> dict[str, Any]:
    path = directory / "params.json"
    if not path.is_file():
        raise StartupError(f"{directory} has {PATTERN} and no params.json, which Meta's release has beside them")
    params = read_json(path)
    missing = [key for key in ("dim", "n_heads", "n_layers") if not isinstance(params.get(key), int)]
    if missing:
        raise StartupError(f"{path} lacks {', '.join(missing)}")
    return params
