"""The config of ChatGLM2 and ChatGLM3: the original spelling on disk, GLM's names in memory."""

import os
from typing import Any, ClassVar, Self

from transformers import AutoConfig, GlmConfig

from sft_kit.models.chatglm.family import DEFAULT_FAMILY, Family
from sft_kit.models.chatglm.foreign_code import TOKENIZER_CLASS, refuse_tokenizer_code
from sft_kit.models.chatglm.original_config import (
    ORIGINAL_FIELDS,
    ORIGINAL_NAMES,
    OVERRIDABLE,
    RopeMode,
    to_native,
    to_original,
)


class ChatGLMConfig(GlmConfig):
    """Settings of a ChatGLM2 or ChatGLM3 model, given in the original spelling or in GLM's.

    Every original name works as an attribute too. Saved is the original spelling, without the
    `auto_map` that points to the checkpoint's own code.

    Attributes:
        family: Decides the prompt format, and what `rope_ratio` means.
        rope_ratio: Stretch of the context against the first models; 1 is none.
        rope_mode: What `rope_ratio` does: "theta" multiplies the base of the rotary angles
            (chatglm3-6b-32k), "linear" divides the positions (chatglm2-6b-32k), "auto" follows the
            family.

    Raises:
        CheckpointError: Fields are missing or have no equivalent in the GLM architecture, all of
            them at once; or the checkpoint's own code would be run for its tokenizer.
    """

    model_type: ClassVar[str] = "chatglm"
    attribute_map: ClassVar[dict[str, str]] = dict(ORIGINAL_FIELDS)

    family: Family = DEFAULT_FAMILY
    rope_ratio: float = 1.0
    rope_mode: RopeMode = "auto"

    def __init__(self, **fields: object) -> None:
        native = to_native(fields)
        if fields.get("name_or_path"):
            commit = fields.get("_commit_hash")
            refuse_tokenizer_code(
                str(fields["name_or_path"]), None if commit is None else str(commit)
            )
        super().__init__(**native)
        # The Auto classes take it where there is no tokenizer_config.json.
        self.tokenizer_class = TOKENIZER_CLASS
        self.eos_token_id = native["eos_token_id"]  # GlmConfig puts GLM-4's ids in place of None

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: object
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json and add its place, which only the Auto classes do by themselves."""
        fields, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return {**fields, "name_or_path": str(pretrained_model_name_or_path)}, rest

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: object) -> Self:
        """Build from the content of a config.json; keywords override fields, in either spelling."""
        fields = dict(config_dict)
        for key in sorted(OVERRIDABLE & kwargs.keys()):
            spellings = (ORIGINAL_NAMES.get(key, key), ORIGINAL_FIELDS.get(key, key))
            name = next((spelling for spelling in spellings if spelling in fields), key)
            fields[name] = kwargs.pop(key)
        return super().from_dict(fields, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds: the original spelling, and the fields of this package."""
        return to_original(super().to_diff_dict())


AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
