"""The model card of a merged model: no folder of this machine in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import sft_kit
from sft_kit.artifacts.origins import base_of_run

CARD_FILE = "README.md"
_MARK = "Merged by sft_kit"


def write_merged_card(
    path: Path, title: str, info: Mapping[str, object], facts: Sequence[str]
) -> None:
    """Write the card.

    Args:
        path: The file.
        title: Its heading.
        info: As in `LoadedRun.info`: the record of a run, or how a checkpoint was loaded.
        facts: What was measured, one sentence each.
    """
    base, is_on_hub = base_of_run(info)
    origin = f"a run of the recipe `{info['recipe']}` on `{base}`" if "recipe" in info else base
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {base}"] if is_on_hub else []),
        "tags:",
        "- sft_kit",
        "---",
        "",
        f"# {title}",
        "",
        f"{_MARK} {sft_kit.__version__} from {origin}. Plain transformers loads it:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "path/to/this/folder"',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "```",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        "## Limits",
        "",
        "It knows what its base and its training taught it, and states wrong things with the same",
        "confidence as right ones. Merging rounds weights: the figures above say by how much.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def is_merged_card(path: Path) -> bool:
    """Whether a file is a card that `write_merged_card` wrote."""
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")
