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
from sft_kit.settings.pairs import CountBy, PairDataSettings, WritingSettings
from sft_kit.settings.ppo import PpoSettings, PromptDataSettings, PtxSettings, ScoreSettings
from sft_kit.settings.preference import PreferenceDataSettings, RewardSettings
from sft_kit.settings.pretraining import (
    CausalSettings,
    DenoiseSettings,
    MaskedObjective,
    MaskedSettings,
    PrefixSettings,
    PretrainModelSettings,
    SpanSettings,
    TextDataSettings,
    TextUnit,
)

__all__ = [
    "CausalSettings",
    "ClassifySettings",
    "Column",
    "CountBy",
    "DataSettings",
    "DenoiseSettings",
    "Dtype",
    "LabelledDataSettings",
    "MaskedObjective",
    "MaskedSettings",
    "ModelSettings",
    "PairDataSettings",
    "PpoSettings",
    "PreferenceDataSettings",
    "PrefixSettings",
    "PretrainModelSettings",
    "PromptDataSettings",
    "PtxSettings",
    "Quantization",
    "RewardSettings",
    "SampleSettings",
    "ScoreSettings",
    "ScratchModelSettings",
    "SpanSettings",
    "StoredDtype",
    "TemplateName",
    "TextDataSettings",
    "TextUnit",
    "WritingSettings",
]
