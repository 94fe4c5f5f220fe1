r"""Chat templates of ChatGLM2 and ChatGLM3, which render what the models were trained on.

ChatGLM2 knows no roles: a chat is one text of numbered rounds. An earlier answer stands in it as it
is; the last one, which is learnt, was encoded on its own in the official fine-tuning and so begins
with a space and ends with `</s>`.

ChatGLM3 opens each message with the token of its role, a line of metadata (the name of a called
tool, empty otherwise) and a space. The token after an answer, `<|user|>` or `<|observation|>`, is
written by the model, so it counts as part of the answer; the last answer ends with `</s>`.

An empty content gets no space: the original encodes it to nothing.

Source:
    THUDM/chatglm2-6b, `build_prompt`; THUDM/ChatGLM2-6B, `ptuning/main.py`;
    THUDM/chatglm3-6b, `build_chat_input`; THUDM/ChatGLM3, `finetune_demo`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sft_kit.models.chatglm.family import Family

_CHATGLM2 = """\
{%- if tools -%}{{ raise_exception('ChatGLM2 was not trained to call tools') }}{%- endif -%}
{{- '[gMASK]<sop>' -}}
{%- set chat = namespace(round=0, next='user') -%}
{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- if message['role'] == 'system' and loop.first -%}
{{- content + '\\n\\n' -}}
{%- elif message['role'] != chat.next -%}
{{- raise_exception('found the role ' + message['role'] + ', here belongs ' + chat.next) -}}
{%- elif message['role'] == 'user' -%}
{%- set chat.round = chat.round + 1 -%}
{%- set chat.next = 'assistant' -%}
{{- '[Round ' + chat.round | string + ']\\n\\n问：' + content + '\\n\\n' -}}
{%- if not loop.last or add_generation_prompt -%}{{- '答：' -}}{%- endif -%}
{%- elif not loop.last -%}
{%- set chat.next = 'user' -%}
{{- content + '\\n\\n' -}}
{%- elif add_generation_prompt -%}
{{- raise_exception('an answer can only follow a question, the last message is an answer') -}}
{%- else -%}
{%- generation -%}{{- (' ' + content if content else '') + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}"""

_CHATGLM3 = """\
{{- '[gMASK]<sop>' -}}
{%- set followers = {'': ['system', 'user'], 'system': ['user'], 'user': ['assistant'],
    'assistant': ['user', 'observation', 'assistant'], 'observation': ['assistant']} -%}
{%- set chat = namespace(last='') -%}
{%- for message in messages -%}
{%- set role, content = message['role'], message['content'] -%}
{%- if role not in followers[chat.last] -%}
{{- raise_exception('found the role ' + role + ', here belongs ' +
    followers[chat.last] | join(' or ')) -}}
{%- endif -%}
{%- if tools and loop.first and role != 'system' -%}
{{- raise_exception('tools need a system message that introduces them') -}}
{%- endif -%}
{%- if chat.last != 'assistant' -%}{{- '<|' + role + '|>' -}}{%- endif -%}
{%- if role == 'system' and (tools or 'tools' in message) -%}
{%- set content = content + '\\n' + (message['tools'] or tools) | tojson(indent=4) -%}
{%- endif -%}
{%- set line = (message['metadata'] or '') + '\\n' + (' ' + content if content else '') -%}
{%- if role == 'assistant' -%}
{%- generation -%}
{{- line -}}
{%- if not loop.last -%}{{- '<|' + loop.nextitem['role'] + '|>' -}}
{%- elif not add_generation_prompt -%}{{- eos_token -}}{%- endif -%}
{%- endgeneration -%}
{%- else -%}
{{- line -}}
{%- endif -%}
{%- set chat.last = role -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""

CHAT_TEMPLATES: Mapping[Family, str] = MappingProxyType(
    {"chatglm2": _CHATGLM2, "chatglm3": _CHATGLM3}
)
"""Jinja source per family, with `generation` marks around what a model learns to write."""
