"""Settings of a config.json that change the numbers: each is computed as stock transformers does, or refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, save_as_meta
from reference import stock_config, tensors
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_serving.engine.prompt import EnginePrompt, PromptImage, SamplingParams
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.errors import StartupError
from llava_serving.service.engine_builder import build_engine
from llava_serving.settings import Settings
from llava_serving.tools import cli
from llava_serving.weights.diagnosis import diagnose
from llava_serving.weights.layerwise_loss import layerwise_loss
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder

LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
# Settings of a language model, and what the message says.
REFUSED_LANGUAGE: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "gelu"}, r"hidden_act 'gelu'.*computes SiLU"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling .*'dynamic'.*computes RoPE of type default"),
    ({"rope_parameters": LONG}, r"rope_parameters .*'longrope'"),
    ({"rope_scaling": "linear"}, r"rope_scaling 'linear'"),
    ({"rope_scaling": {"type": "linear", "factor": "two"}}, r"rope_scaling .*'two'"),
    ({"rope_parameters": None, "rope_theta": "1e6"}, r"rope_theta '1e6'"),
    ({"rope_parameters": None, "rope_scaling": {"factor": 2.0}}, r"rope_scaling .*factor would have no effect"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
        r"rope_scaling .* and another rope_parameters",
    ),
    (
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        r"rope_theta 1000000\.0 and also 10000\.0",
    ),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5.*whole heads"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"partial_rotary_factor 0\.5"),
    ({"sliding_window": 128}, r"sliding_window 128.*all earlier tokens"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types .*all earlier tokens"),
]
REFUSED_DELTA: list[tuple[dict[str, Any], str]] = [
    *REFUSED_LANGUAGE,
    ({"model_type": "mistral"}, r"model_type 'mistral'.*LLaMA's layers"),
    ({"mm_projector_type": "mlp2x_gelu"}, r"mm_projector_type 'mlp2x_gelu'.*one linear layer"),
    ({"mm_vision_select_feature": "cls_patch"}, r"mm_vision_select_feature 'cls_patch'.*patches"),
    ({"mm_patch_merge_type": "spatial"}, r"mm_patch_merge_type 'spatial'"),
    ({"image_aspect_ratio": "pad"}, r"image_aspect_ratio 'pad'.*cut"),
    ({"mm_vision_select_layer": "last"}, r"mm_vision_select_layer 'last'"),
]
REFUSED_MERGED: list[tuple[dict[str, Any], str]] = [
    *(({"text_config": settings}, message) for settings, message in REFUSED_LANGUAGE),
    ({"rope_theta": 1e6}, r"rope_theta outside text_config"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling outside text_config"),
    ({"text_config": {"model_type": "mistral"}}, r"language model .*'mistral'.*LLaMA's layers"),
    ({"vision_config": {"model_type": "siglip_vision_model"}}, r"vision_config .*'siglip_vision_model'.*CLIP"),
    ({"vision_config": {"num_channels": 4}}, r"num_channels 4.*3 channels"),
]


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    """Changes config.json. A change of text_config or vision_config is merged into it."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        is_part = key in ("text_config", "vision_config")
        config[key] = config.get(key, {}) | value if is_part else value
    file.write_text(json.dumps(config))


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Runs `llava-serving check`, which refuses the folder, and returns its output."""

    def run(folder: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["llava-serving", "check", str(folder), "--no-hashes"])
        assert cli.main() == 1
        return capsys.readouterr().out

    return run


def assert_matches(message: str, pattern: str) -> None:
    with pytest.raises(StartupError, match=pattern):
        raise StartupError(message)


@pytest.mark.parametrize(("settings", "message"), REFUSED_MERGED)
def test_a_merged_folder_with_a_setting_that_is_not_computed_is_refused_by_name(
    merged: Path, tmp_path: Path, check: Callable[[Path], str], settings: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(merged, tmp_path / "llava")
    change_config(copy, settings)
    with pytest.raises(StartupError, match=message):
        load_model(MergedFolder(copy), "cpu", "float32")
    assert_matches(check(copy), message)


@pytest.mark.parametrize(("settings", "message"), REFUSED_DELTA)
def test_a_delta_with_a_setting_that_is_not_computed_is_refused_by_name(
    parts_dir: Path, tmp_path: Path, check: Callable[[Path], str], settings: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_config(copy / "delta", settings)
    with pytest.raises(StartupError, match=message):
        load_model(PartsFolder(copy), "cpu", "float32")
    assert_matches(check(copy), message)
    assert_matches(check(copy / "delta"), message)


@pytest.mark.parametrize(("settings", "message"), REFUSED_LANGUAGE)
def test_a_base_with_a_setting_that_is_not_computed_is_refused_by_name(
    parts_dir: Path, tmp_path: Path, check: Callable[[Path], str], settings: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_config(copy / "base", settings)
    with pytest.raises(StartupError, match=f"base.*{message}"):
        load_model(PartsFolder(copy), "cpu", "float32")
    assert_matches(check(copy / "base"), message)


def test_a_base_with_another_rope_than_the_delta_is_refused(parts_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_config(copy / "base", {"rope_theta": 1e6})
    with pytest.raises(StartupError, match=r"rope_theta.* 1000000\.0.*10000"):
        load_model(PartsFolder(copy), "cpu", "float32")


def test_scaled_rope_of_meta_s_params_is_refused_by_name(parts_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    stored = tensors(copy / "base")
    shutil.rmtree(copy / "base")
    (copy / "base").mkdir()
    save_as_meta(stored, copy / "base", Shape(), 1)
    params = json.loads((copy / "base" / "params.json").read_text())
    (copy / "base" / "params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    with pytest.raises(StartupError, match=r"params\.json has rope_scaling .*use_scaled_rope"):
        load_model(PartsFolder(copy), "cpu", "float32")


def test_a_vision_tower_with_a_setting_that_is_not_computed_is_refused_by_name(
    parts_dir: Path, tmp_path: Path, check: Callable[[Path], str]
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_config(copy / "vision", {"vision_config": {"num_channels": 4}})
    with pytest.raises(StartupError, match=r"vision.*num_channels 4.*3 channels"):
        load_model(PartsFolder(copy), "cpu", "float32")
    assert "num_channels 4" in check(copy / "vision")


def test_merge_refuses_a_setting_that_is_not_computed(
    parts_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    change_config(copy / "delta", {"hidden_act": "gelu"})
    folders = [argument for part in ("base", "delta", "vision") for argument in (f"--{part}", str(copy / part))]
    monkeypatch.setattr(sys, "argv", ["llava-serving", "merge", *folders, "--output", str(tmp_path / "llava")])
    assert cli.main() == 1
    assert "hidden_act 'gelu'" in capsys.readouterr().err
    assert not (tmp_path / "llava").exists()


def test_a_tensor_that_the_model_does_not_use_is_refused(merged: Path, tmp_path: Path) -> None:
    """A bias without attention_bias in config.json is an example."""
    copy = shutil.copytree(merged, tmp_path / "llava")
    state = torch.load(copy / "pytorch_model.bin", weights_only=True)
    state["language_model.model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"layers\.0\.self_attn\.q_proj\.bias"):
        load_model(MergedFolder(copy), "cpu", "float32")


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# Changes of config.json that the engine computes, and whether the unchanged model takes the same weights and inputs and
# gives other numbers.
COMPUTED: dict[str, tuple[dict[str, Any], bool]] = {
    "rope_theta": ({"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}}, True),
    "rope_scaling linear": ({"text_config": {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}}, True),
    "rope_scaling llama3": ({"text_config": {"rope_parameters": LLAMA3}}, True),
    "rope_scaling yarn": ({"text_config": {"rope_parameters": YARN}}, True),
    "rms_norm_eps": ({"text_config": {"rms_norm_eps": 0.3}}, True),
    "hidden_act swish": ({"text_config": {"hidden_act": "swish"}}, False),  # SiLU by another name: no other numbers
    "attention_bias": ({"text_config": {"attention_bias": True}}, False),
    "mlp_bias": ({"text_config": {"mlp_bias": True}}, False),
    "head_dim": ({"text_config": {"head_dim": 32}}, False),
    "num_key_value_heads": ({"text_config": {"num_key_value_heads": 1}}, False),
    "projector_hidden_act": ({"projector_hidden_act": "gelu"}, True),
    "multimodal_projector_bias": ({"multimodal_projector_bias": False}, False),
    "vision hidden_act": ({"vision_config": {"hidden_act": "gelu"}}, True),
    "vision layer_norm_eps": ({"vision_config": {"layer_norm_eps": 0.3}}, True),
    "vision_feature_layer": ({"vision_feature_layer": -1}, True),
    "vision_feature_layers": ({"vision_feature_layer": [1, -1]}, False),
    "vision_feature_select_strategy": ({"vision_feature_select_strategy": "full", "image_seq_length": 5}, False),
}


def stock_model(config: dict[str, Any]) -> LlavaForConditionalGeneration:
    """Returns a random model by stock transformers. Models whose tensors have equal shapes have equal weights."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(**config))
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


def save_merged(model: LlavaForConditionalGeneration, tokenizer: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


def changed(config: LlavaConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns a config as a dict. A change of text_config or vision_config is merged into it."""
    content = config.to_dict()
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    return content


@torch.inference_mode()
def logprobs_of(model: LlavaForConditionalGeneration, ids: list[int], pixels: torch.Tensor) -> torch.Tensor:
    """Returns the log-probabilities (tokens, vocabulary) of stock transformers."""
    return model(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits[0].log_softmax(-1)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_setting_is_computed_as_stock_transformers_computes_it(
    merged: Path, parts_dir: Path, tmp_path: Path, name: str
) -> None:
    changes, is_comparable = COMPUTED[name]
    config = stock_config(parts_dir)
    stock = stock_model(changed(config, changes))
    loaded = load_model(MergedFolder(save_merged(stock, merged, tmp_path / "llava")), "cpu", "float32")
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    count = loaded.tokenizer.image.count
    ids = [1, *range(10, 50), *[config.image_token_index] * count, 7, 8]
    prompt = EnginePrompt(
        tuple(ids), (PromptImage(41, count, b"picture", pixels),),
        SamplingParams(max_new_tokens=6, ignore_eos=True, logprobs=0),
    )  # fmt: skip
    engine, handle = build_engine(loaded, Settings()), RequestHandle()
    engine.start()
    try:
        engine.submit([prompt], handle)
        (completion,) = handle.result()
    finally:
        engine.stop()
    expected = logprobs_of(stock, [*ids, *completion.token_ids], pixels)
    for step, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        assert logprob.logprob == pytest.approx(float(expected[len(ids) - 1 + step, token]), abs=1e-4)
    if is_comparable:
        other = logprobs_of(stock_model(config.to_dict()), ids, pixels)
        assert float((expected[len(ids) - 1] - other[-1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", [name for name, (changes, _) in COMPUTED.items() if "text_config" in changes])
def test_check_computes_the_loss_of_stock_transformers(
    merged: Path, parts_dir: Path, tmp_path: Path, name: str
) -> None:
    stock = stock_model(changed(stock_config(parts_dir), COMPUTED[name][0]))
    language_model = diagnose(save_merged(stock, merged, tmp_path / "llava")).language_model
    assert language_model is not None
    ids = [1, *range(10, 60)]
    with torch.inference_mode():
        expected = float(stock(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert layerwise_loss(language_model.tensors, language_model.config, ids) == pytest.approx(expected, rel=1e-4)


def test_a_delta_is_loaded_with_its_own_rope_norm_and_vision_settings(parts_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parts_dir, tmp_path / "parts")
    rope = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    for part in ("base", "delta"):
        change_config(copy / part, rope)
    change_config(copy / "delta", {"rms_norm_eps": 1e-3})
    change_config(copy / "vision", {"vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}})
    config = load_model(PartsFolder(copy), "cpu", "float32").model.config
    assert config.text_config.rope_parameters == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    assert config.text_config.rms_norm_eps == 1e-3
    assert (config.vision_config.hidden_act, config.vision_config.layer_norm_eps) == ("gelu", 1e-3)
