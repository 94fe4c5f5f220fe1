"""ChatGLM2 and ChatGLM3 on today's libraries, without any code of the checkpoints.

Importing this package makes the Auto classes of transformers know both: models, tokenizers and the
rowwise int4/int8 storage, in the original files.

    import sft_kit.models.chatglm
    model = AutoModelForCausalLM.from_pretrained("THUDM/chatglm2-6b-int4")
"""

from sft_kit.models.chatglm.adapters import convert_adapter
from sft_kit.models.chatglm.configuration import ChatGLMConfig
from sft_kit.models.chatglm.fast_int4 import use_fast_int4
from sft_kit.models.chatglm.modeling import ChatGLMForCausalLM, to_glm
from sft_kit.models.chatglm.quantizer import quantize
from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForCausalLM",
    "ChatGLMTokenizer",
    "convert_adapter",
    "quantize",
    "to_glm",
    "use_fast_int4",
]
