"""The YAML sections that this project owns: plain dataclasses that need no torch.

The sections `adapter` and `train` are `peft.LoraConfig` and `transformers.TrainingArguments`
themselves. The bounds in `Annotated` are enforced by `sft_kit.config` and written into the JSON
schema.
"""

from sft_kit.settings.data import DataSettings, TemplateName
from sft_kit.settings.labelled import ClassifySettings, Column, LabelledDataSettings
from sft_kit.settings.model import (
    Dtype,
    ModelSettings,
    Quantization,
    SampleSettings,
    ScratchModelSettings,
    StoredDtype,
)
from sft_kit.settings.ppo import PpoSettings, PromptDataSettings, PtxSettings, ScoreSettings
from sft_kit.settings.preference import PreferenceDataSettings, RewardSettings

__all__ = [
    "ClassifySettings",
    "Column",
    "DataSettings",
    "Dtype",
    "LabelledDataSettings",
    "ModelSettings",
    "PpoSettings",
    "PreferenceDataSettings",
    "PromptDataSettings",
    "PtxSettings",
    "Quantization",
    "RewardSettings",
    "SampleSettings",
    "ScoreSettings",
    "ScratchModelSettings",
    "StoredDtype",
    "TemplateName",
]
