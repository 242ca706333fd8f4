"""An independent implementation of LLaVA v0: a naive merge and stock transformers, without the service's code."""

import json
from pathlib import Path

import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SYSTEM = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab.You are able to understand "
    "the visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail."
)
HELLO = "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Returns every tensor of a folder of `.bin` files."""
    state_dict: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.bin")):
        state_dict |= torch.load(file, weights_only=True)
    return state_dict


def naive_merge(parts_dir: Path) -> dict[str, torch.Tensor]:
    """Applies the three rules of apply_delta to whole state dicts in float16."""
    base, merged = tensors(parts_dir / "base"), {}
    for name, value in tensors(parts_dir / "delta").items():
        if "inv_freq" in name:
            continue
        value = value.half()
        if name in base and base[name].shape == value.shape:
            value = value + base[name].half()
        elif name in base:
            value = value.clone()
            value[: base[name].shape[0]] += base[name].half()
        merged[name] = value
    return merged


def stock_names(parts_dir: Path) -> dict[str, torch.Tensor]:
    """Returns the merged state dict under the names that transformers used before 4.52. It still loads them."""
    state = {}
    for name, value in naive_merge(parts_dir).items():
        if "mm_projector" in name:
            state[name.replace("model.mm_projector", "multi_modal_projector.linear_1")] = value
        else:
            state[f"language_model.{name}"] = value
    hidden = state["multi_modal_projector.linear_1.weight"].shape[0]
    state["multi_modal_projector.linear_2.weight"] = torch.eye(hidden).half()
    state["multi_modal_projector.linear_2.bias"] = torch.zeros(hidden).half()
    vision = {name: value for name, value in tensors(parts_dir / "vision").items() if "position_ids" not in name}
    return state | {f"vision_tower.{name}": value for name, value in vision.items()}


def write_merged(parts_dir: Path, directory: Path) -> Path:
    """Writes one merged checkpoint in Hugging Face LLaVA layout, with the tokenizer's files."""
    directory.mkdir(parents=True)
    torch.save(stock_names(parts_dir), directory / "pytorch_model.bin")
    stock_config(parts_dir).save_pretrained(directory)
    for name in ("tokenizer.model", "added_tokens.json"):
        (directory / name).write_bytes((parts_dir / "delta" / name).read_bytes())
    return directory


def stock_config(parts_dir: Path) -> LlavaConfig:
    delta = json.loads((parts_dir / "delta" / "config.json").read_text())
    vision = json.loads((parts_dir / "vision" / "config.json").read_text())
    vision = vision.get("vision_config", vision)
    llama_keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
    )  # fmt: skip
    clip_keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    )
    text = LlamaConfig(
        **{key: delta[key] for key in llama_keys}, max_position_embeddings=delta["max_sequence_length"],
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**{key: vision[key] for key in clip_keys}, projection_dim=vision["hidden_size"]),
        image_token_index=json.loads((parts_dir / "delta" / "added_tokens.json").read_text())["<im_patch>"],
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        projector_hidden_act="linear",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


class Reference:
    """Stock transformers with the merged weights, in float32 on the CPU."""

    def __init__(self, merged: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32).eval()
        self.sentencepiece = SentencePieceProcessor(model_file=str(merged / "tokenizer.model"))
        self.added_tokens = json.loads((merged / "added_tokens.json").read_text())
        size = self.model.config.vision_config.image_size
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    def question_ids(self, question: str) -> list[int]:
        """Returns the v0 prompt of one question about one picture."""
        before = self.sentencepiece.encode(f"{SYSTEM}{HELLO}###Human: {question}")
        return [1, *before, *self.image_ids(), *self.sentencepiece.encode("###Assistant:")]

    def image_ids(self) -> list[int]:
        patches = [self.added_tokens["<im_patch>"]] * self.model.config.image_seq_length
        return [self.added_tokens["<im_start>"], *patches, self.added_tokens["<im_end>"]]

    def pixels(self, *pictures: Image.Image) -> torch.Tensor:
        return self.processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def greedy(self, ids: list[int], pixels: torch.Tensor | None, count: int) -> list[int]:
        """Returns `count` tokens, or those up to EOS, by stock `generate`, which suppresses added tokens."""
        first_added = self.sentencepiece.vocab_size()
        inputs = {} if pixels is None else {"pixel_values": pixels}
        out = self.model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **inputs, max_new_tokens=count,
            do_sample=False, eos_token_id=2, pad_token_id=0,
            suppress_tokens=list(range(first_added, self.model.config.text_config.vocab_size)),
        )  # fmt: skip
        return [int(token) for token in out[0, len(ids) :]]

    def answer(self, question: str, picture: Image.Image, count: int = 32) -> str:
        """Returns what the authors' worker would have: the text, cut at the separator and stripped."""
        tokens = self.greedy(self.question_ids(question), self.pixels(picture), count)
        return str(self.sentencepiece.decode(tokens)).split("###")[0].strip()
