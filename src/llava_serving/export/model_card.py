"""The README.md of a merged folder: what it is, what was corrected, and how others load it."""

import torch
from transformers import LlavaConfig

from ..inputs.templates import Template

CARD = """\
# LLaVA v0, merged

Written by `llava-serving merge`: the original LLaMA plus a LLaVA v0 delta, the sum rounded to float16 (as the authors'
`apply_delta` does){converted}, the projector and the added tokens' rows as the delta stores them, and CLIP's vision
tower, in Hugging Face LLaVA layout. `llava_merge.json` names the files it was made from. LLaMA's license applies.

## What differs from the delta's own files
- `rotary_emb.inv_freq` is left out: in a delta it is the difference of two equals; it is computed from the config.
- bos, eos and pad are {bos}, {eos} and {pad}, LLaMA's own. The delta's configs say 0, 1 and 0: answers never end.
- The added tokens are {added}. `[PAD]`, where the delta lists one, is left out if it has no row in the embedding.
- v0's one linear projector is followed by an identity layer, with `projector_hidden_act: "linear"` between them: the
  layout has two layers, and so every feature stays as it is to the bit.
- `tokenizer.json` gives SentencePiece's ids as v0 was trained: white space beside an image is dropped and the text
  after it is encoded afresh.

## To load it
```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(DIR, dtype="auto")
processor = AutoProcessor.from_pretrained(DIR)
```
{end}

vLLM has no activation named `linear`; it takes torch's identity by its full name:
```sh
vllm serve DIR --hf-overrides '{{"projector_hidden_act": "torch.nn.modules.linear.Identity"}}'
```
"""


END = """\
The conversation is the authors' `{name}`; an answer ends at `{separator}`: pass `stop_strings=["{separator}"],
tokenizer=processor.tokenizer` to `generate`."""
END_OF_TEXT = "The conversation is the authors' `{name}`; an answer ends with the end-of-text token."


def card(config: LlavaConfig, added: dict[str, int], dtype: torch.dtype, template: Template) -> str:
    text = config.text_config
    end = END if template.separator else END_OF_TEXT
    return CARD.format(
        converted=" and converted to bfloat16" if dtype is torch.bfloat16 else "",
        bos=text.bos_token_id, eos=text.eos_token_id, pad=text.pad_token_id,
        end=end.format(name=template.name, separator=template.separator),
        added=", ".join(f"`{token}` {i}" for token, i in sorted(added.items(), key=lambda item: item[1])),
    )  # fmt: skip
