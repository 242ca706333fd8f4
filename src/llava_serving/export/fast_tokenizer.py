"""Converts LLaMA's SentencePiece model and a checkpoint's added tokens to Hugging Face's fast tokenizer.

transformers' own conversion gave other ids to all of 5,000 texts that begin with a space; this conversion to none.

It also gave other ids around an image. v0's training dropped the white space beside an image, and encoded the text
after it as a new text (inputs/tokenizer.py). Here an added token takes that white space. One difference remains,
because stock tokenizers cannot avoid it: `</s>` or `<im_patch>` typed in a text becomes the token.
"""

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from ..inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START

WORD_START = "\u2581"


def fast_tokenizer(
    sentencepiece: SentencePieceProcessor, added_tokens: dict[str, int], context_length: int
) -> PreTrainedTokenizerFast:
    """Returns the fast tokenizer. The ids of `added_tokens` must follow SentencePiece's without a gap."""
    unknown, bos, eos = (
        sentencepiece.id_to_piece(i) for i in (sentencepiece.unk_id(), sentencepiece.bos_id(), sentencepiece.eos_id())
    )
    tokenizer = Tokenizer(_bpe_model(sentencepiece, unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_START), normalizers.Replace(" ", WORD_START)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (unknown, bos, eos)])
    ordered_tokens = sorted(added_tokens, key=lambda token: added_tokens[token])
    has_image_markers = IMAGE_START in added_tokens
    for token in ordered_tokens:  # one at a time: the library gives each the next id
        tokenizer.add_special_tokens([_added_token(token, has_image_markers)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, sentencepiece.bos_id())]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unknown, pad_token=unknown,
        additional_special_tokens=ordered_tokens, model_max_length=context_length, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _bpe_model(sentencepiece: SentencePieceProcessor, unknown: str) -> models.BPE:
    """Returns SentencePiece's model as byte pair encoding, whose merges are ordered by the score of their result."""
    ids = range(sentencepiece.vocab_size())
    vocab = {sentencepiece.id_to_piece(i): i for i in ids}
    scores = {piece: sentencepiece.get_score(i) for piece, i in vocab.items()}
    unmerged = [
        piece
        for piece, i in vocab.items()
        if sentencepiece.is_control(i) or sentencepiece.is_unknown(i) or sentencepiece.is_byte(i)
    ]
    merges = generate_merges(vocab, scores, unmerged)
    return models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _added_token(token: str, has_image_markers: bool) -> AddedToken:
    """Returns an added token. The first token of an image takes the white space before it, the last that after it."""
    is_whole_image = token == IMAGE_PATCH and not has_image_markers
    return AddedToken(
        token,
        special=True,
        normalized=False,
        lstrip=is_whole_image or token == IMAGE_START,
        rstrip=is_whole_image or token == IMAGE_END,
    )
