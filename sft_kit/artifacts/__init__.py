"""What a run leaves behind, and how it is taken up again."""

from sft_kit.artifacts.folder import RunFolder, open_run
from sft_kit.artifacts.load import LoadedRun, load_run
from sft_kit.artifacts.samples import Sample, pair_samples, show_samples
from sft_kit.artifacts.save import save_run

__all__ = [
    "LoadedRun",
    "RunFolder",
    "Sample",
    "load_run",
    "open_run",
    "pair_samples",
    "save_run",
    "show_samples",
]
