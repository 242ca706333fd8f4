"""LLaMA's SentencePiece model, and a checkpoint's added tokens, as Hugging Face's fast tokenizer.

transformers' own conversion gives other ids than v0 was trained with: around an image, and on text that begins with a
space. Here an added token takes the white space beside it, and the text after it is encoded afresh, as tokenizer.py has
it. One difference stays, for stock tokenizers have no other way: `</s>` or `<im_patch>` typed in a text is the token.
"""

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from ..inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START

WORD_START = "\u2581"


def fast_tokenizer(text: SentencePieceProcessor, added: dict[str, int], context: int) -> PreTrainedTokenizerFast:
    """`added` are the added tokens by name, whose ids go on from the text's without a gap."""
    pieces = [text.id_to_piece(i) for i in range(text.vocab_size())]
    unknown, bos, eos = (pieces[i] for i in (text.unk_id(), text.bos_id(), text.eos_id()))
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=_merges(text, pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_START), normalizers.Replace(" ", WORD_START)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in (unknown, bos, eos)])
    in_order = sorted(added, key=lambda token: added[token])
    unmarked = IMAGE_START not in added
    for token in in_order:  # one by one, in the order of their ids: the library numbers them as they come
        alone = unmarked and token == IMAGE_PATCH
        before, after = alone or token == IMAGE_START, alone or token == IMAGE_END
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=before, rstrip=after)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, text.bos_id())]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unknown, pad_token=unknown,
        additional_special_tokens=in_order, model_max_length=context, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _merges(text: SentencePieceProcessor, pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the likeliest piece first: SentencePiece joins by the score of the result."""
    plain = {
        piece: i for i, piece in enumerate(pieces) if not (text.is_control(i) or text.is_unknown(i) or text.is_byte(i))
    }
    ways = [
        (-text.get_score(i), plain[left], plain[right])
        for piece, i in plain.items()
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in plain and right in plain
    ]
    return [(pieces[left], pieces[right]) for _, left, right in sorted(ways)]
