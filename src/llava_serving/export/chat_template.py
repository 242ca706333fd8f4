"""The chat template of a merged folder: a conversation in Jinja, for transformers and vLLM."""

import json

from ..inputs.templates import Template
from ..inputs.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START

# The loops over a message's parts stand here and not in a macro: vLLM looks for such a loop in the template to see that
# a message may be a list of parts.
CHAT_TEMPLATE = """
{%- for message in messages -%}
    {%- if loop.first -%}
        {{- bos_token -}}
        {%- if message['role'] != 'system' -%}{{- SYSTEM + GREETING -}}{%- endif -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}{{- USER -}}{%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- ASSISTANT -}}{%- endif -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- set texts = namespace(separator='') -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- texts.separator + part['text'] -}}
                {%- set texts.separator = '\\n' -%}
            {%- endif -%}
        {%- endfor -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] != 'text' -%}{{- '\\n' + IMAGE -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'system' -%}{{- GREETING -}}{%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- END -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- GENERATION_PROMPT -}}{%- endif -%}
"""


def chat_template(template: Template, has_image_markers: bool) -> str:
    """Returns the conversation template in Jinja. `has_image_markers`: an image stands between its two markers."""
    image = f"{IMAGE_START}{IMAGE_PATCH}{IMAGE_END}" if has_image_markers else IMAGE_PATCH
    variables = {
        "SYSTEM": template.system,
        "GREETING": template.greeting,
        "USER": template.user_prefix,
        "ASSISTANT": template.assistant_prefix,
        "END": "".join(token.text for token in template.assistant_suffix),
        "GENERATION_PROMPT": template.generation_prompt,
        "IMAGE": image,
    }
    return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in variables.items()) + CHAT_TEMPLATE
