"""What a run leaves behind, and how it is taken up again."""

from sft_kit.artifacts.classifier import LoadedClassifier, load_classifier_run
from sft_kit.artifacts.folder import RunFolder, open_run
from sft_kit.artifacts.labels import Labels, labels_of
from sft_kit.artifacts.load import LoadedRun, load_run
from sft_kit.artifacts.merge import Merged, merge_and_save
from sft_kit.artifacts.named import LoadOptions, load_checkpoint, load_named, load_named_plain
from sft_kit.artifacts.reward import LoadedReward, load_reward_run
from sft_kit.artifacts.samples import Sample, pair_samples, show_samples
from sft_kit.artifacts.save import save_run

__all__ = [
    "Labels",
    "LoadOptions",
    "LoadedClassifier",
    "LoadedReward",
    "LoadedRun",
    "Merged",
    "RunFolder",
    "Sample",
    "labels_of",
    "load_checkpoint",
    "load_classifier_run",
    "load_named",
    "load_named_plain",
    "load_reward_run",
    "load_run",
    "merge_and_save",
    "open_run",
    "pair_samples",
    "save_run",
    "show_samples",
]
