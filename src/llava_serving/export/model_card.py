"""The README.md of a merged folder: what it holds, how it differs from the delta's files, and how to load it."""

import torch
from transformers import LlavaConfig

from ..inputs.templates import Template

CARD = """\
# LLaVA v0, merged

Written by `llava-serving merge`. It holds the original LLaMA plus a LLaVA v0 delta, the sums rounded to float16 (as the
authors' `apply_delta` does){converted}; the projector and the added tokens' rows as the delta stores them; and CLIP's
vision tower. The layout is LLaVA's in Hugging Face transformers. `llava_merge.json` names the files that were merged.
LLaMA's license applies.

## Differences from the delta's own files
- `rotary_emb.inv_freq` is left out. In a delta it is the difference of two equal tensors. The config determines it.
- bos, eos and pad are {bos}, {eos} and {pad}, as in LLaMA. The delta's configs say 0, 1 and 0, and with those no answer
  ends.
- The added tokens are {added}. If the delta lists a `[PAD]` that has no row in the embedding, it is left out.
- v0 has a projector of one linear layer, and this layout one of two. The second layer is the identity, with
  `projector_hidden_act: "linear"` between them, so every feature stays the same to the bit.
- `tokenizer.json` gives SentencePiece's ids as v0 was trained: white space beside an image is dropped, and the text
  after an image is encoded afresh.

## How to load it
```python
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(DIR, dtype="auto")
processor = AutoProcessor.from_pretrained(DIR)
```
{end}

vLLM has no activation named `linear`. It accepts the full name of torch's identity:
```sh
vllm serve DIR --hf-overrides '{{"projector_hidden_act": "torch.nn.modules.linear.Identity"}}'
```
"""


END_AT_SEPARATOR = """\
The conversation template is the authors' `{name}`. An answer ends at `{separator}`: pass
`stop_strings=["{separator}"], tokenizer=processor.tokenizer` to `generate`."""
END_AT_EOS = "The conversation template is the authors' `{name}`. An answer ends with the end-of-text token."


def model_card(config: LlavaConfig, added_tokens: dict[str, int], dtype: torch.dtype, template: Template) -> str:
    text = config.text_config
    end = END_AT_SEPARATOR if template.separator else END_AT_EOS
    return CARD.format(
        converted=" and converted to bfloat16" if dtype is torch.bfloat16 else "",
        bos=text.bos_token_id, eos=text.eos_token_id, pad=text.pad_token_id,
        end=end.format(name=template.name, separator=template.separator),
        added=", ".join(f"`{token}` {i}" for token, i in sorted(added_tokens.items(), key=lambda item: item[1])),
    )  # fmt: skip
