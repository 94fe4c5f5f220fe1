"""The named chat templates as Jinja texts, for tokenizers that have none of their own."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from sft_kit.data.segments import leading_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HUMAN_ASSISTANT = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'Human: ' + message['content'] + '\\n' }}
{%- else -%}{{ 'Assistant: ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"""

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}"""

_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{ STOP }}{%- else -%}{{ '<|im_end|>' }}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

_PLAIN = """\
{%- for message in messages -%}
{{- message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}"""


def write_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    """Write a named template's Jinja text, as it is right for this tokenizer.

    Args:
        tokenizer: Decides with which special tokens the text begins, and which one stops an answer.
        name: A name of `TemplateName` but "auto".
    """
    return _NAMED[name](tokenizer)


def _with_prefix(source: str) -> Callable[["PreTrainedTokenizerBase"], str]:
    def build(tokenizer: "PreTrainedTokenizerBase") -> str:
        prefix = leading_special_tokens(tokenizer)
        if not prefix:
            return source
        # A run saves the hash of its template, so the usual case keeps its spelling.
        written = "bos_token" if prefix == tokenizer.bos_token else json.dumps(prefix)
        return "{{- " + written + " -}}\n" + source

    return build


def _chatml(tokenizer: "PreTrainedTokenizerBase") -> str:
    # A tokenizer without ChatML's tokens spells them in ordinary pieces; only its end-of-text
    # stops.
    knows_chatml = "<|im_end|>" in tokenizer.get_added_vocab()
    stop = "'<|im_end|>'" if knows_chatml else "eos_token"
    return _with_prefix(_CHATML.replace("STOP", stop))(tokenizer)


_NAMED: dict[str, Callable[["PreTrainedTokenizerBase"], str]] = {
    "human-assistant": _with_prefix(_HUMAN_ASSISTANT),
    "alpaca": _with_prefix(_ALPACA),
    "chatml": _chatml,
    "plain": _with_prefix(_PLAIN),
}
