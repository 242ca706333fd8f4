"""The random checkpoint that all engines serve: one Hugging Face folder, which this service reads too.

Its tokenizer is the demo model's, with made-up words for the other rows of the embedding. So every engine has a text
for every token, and sends each token when it has it. A row without a text would be held back until a later one has
some, and its time would be lost.
"""

import json
import struct
from pathlib import Path

from random_checkpoint import DELTA, billion_config, llava_config, write_weights
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from llava_serving.export.chat_template import chat_template
from llava_serving.export.fast_tokenizer import WORD_START, fast_tokenizer
from llava_serving.export.hf_folder import NEW_TOKENIZER_CLASS, OLD_TOKENIZER_CLASS
from llava_serving.inputs.templates import V0
from llava_serving.inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START

# OpenVINO GenAI looks for this text in a prompt, whatever the checkpoint calls the token.
STOCK_IMAGE_TOKEN = "<image>"
FIRST_LEN_BYTE, PIECE_FIELD, TEXT_FIELD, SCORE_FIELD = 0x80, 0x0A, 0x0A, 0x15
ADDED_TOKENS = (IMAGE_PATCH, IMAGE_START, IMAGE_END)


def write_checkpoint(folder: Path, small: bool) -> None:
    """Writes weights, configs and tokenizers. `small`: a toy of two layers, for tests."""
    folder.mkdir(parents=True)
    vocab_size = 2000 if small else 32000
    config = _small_config(vocab_size) if small else billion_config(vocab_size)
    write_weights(folder, config)
    _rename_vision_tensors(folder / "model.safetensors")
    (folder / "tokenizer.model").write_bytes(_tokenizer_model(vocab_size))
    added_tokens = {token: vocab_size + index for index, token in enumerate(ADDED_TOKENS)}
    (folder / "added_tokens.json").write_text(json.dumps(added_tokens))
    _write_stock_files(folder, config, vocab_size)


def _rename_vision_tensors(file: Path) -> None:
    """Gives the vision tower the names of transformers before 5.6, which vLLM and optimum read, and 5.23 reads too."""
    tensors = load_file(file)
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
    save_file(renamed, file, {"format": "pt"})


def _small_config(vocab_size: int) -> LlavaConfig:
    text = LlamaConfig(
        vocab_size=vocab_size + len(ADDED_TOKENS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=2048, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        projection_dim=32,
    )  # fmt: skip
    return llava_config(text, vision, vocab_size)


def _tokenizer_model(vocab_size: int) -> bytes:
    """Returns the demo's SentencePiece model with words up to `vocab_size` pieces.

    Two serialised protocol buffers, one after the other, are one message with the entries of both.
    """
    model: bytes = (DELTA / "tokenizer.model").read_bytes()
    known: int = SentencePieceProcessor(model_proto=model).vocab_size()
    return model + b"".join(_piece(f"{WORD_START}w{index:05}", -float(index)) for index in range(known, vocab_size))


def _piece(text: str, score: float) -> bytes:
    """Returns an entry of `ModelProto.pieces`: field 1 is the text, field 2 the score (sentencepiece_model.proto)."""
    encoded = text.encode()
    entry = bytes([TEXT_FIELD, len(encoded)]) + encoded + bytes([SCORE_FIELD]) + struct.pack("<f", score)
    assert len(entry) < FIRST_LEN_BYTE  # a longer one has a length of two bytes
    return bytes([PIECE_FIELD, len(entry)]) + entry


def _write_stock_files(folder: Path, config: LlavaConfig, vocab_size: int) -> None:
    """Writes the processor and the generation config, which stock engines read, with STOCK_IMAGE_TOKEN."""
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = [STOCK_IMAGE_TOKEN, *ADDED_TOKENS[1:]]
    added_tokens = {token: vocab_size + index for index, token in enumerate(names)}
    size = config.vision_config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    template = chat_template(V0, has_image_markers=True).replace(IMAGE_PATCH, STOCK_IMAGE_TOKEN)
    LlavaProcessor(
        image_processor=images,
        tokenizer=fast_tokenizer(pieces, added_tokens, config.text_config.max_position_embeddings),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=STOCK_IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    # transformers 5 puts the image settings into processor_config.json, where OpenVINO GenAI does not look.
    images.save_pretrained(folder)
    tokenizer_config = folder / "tokenizer_config.json"
    content = tokenizer_config.read_text("utf-8").replace(NEW_TOKENIZER_CLASS, OLD_TOKENIZER_CLASS)
    tokenizer_config.write_text(content, "utf-8")
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
