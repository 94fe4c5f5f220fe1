"""Labelled rows that a finished run is judged by: which it was trained on, which repeat others."""

from collections.abc import Sequence
from pathlib import Path

from sft_kit.data.inspection import counted
from sft_kit.data.labelled.repeats import KeyedText, without_repeats
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.labelled.splits import load_labelled, text_key
from sft_kit.errors import SftKitError
from sft_kit.settings import LabelledDataSettings


def find_trained(
    of_run: LabelledDataSettings, fingerprints: Sequence[str], rows: Sequence[LabelledText]
) -> tuple[list[bool] | None, str]:
    """Find the rows whose text a run was trained on.

    Args:
        of_run: How the run read its data.
        fingerprints: Of its `path` and `eval_path` when it did; empty where there was none.
        rows: The rows that are asked about.

    Returns:
        A truth value for each row, or None where the training data is no longer the same or no
        longer there; and a sentence that says so.
    """
    unknown = "whether rows were trained on could not be checked"
    for path, fingerprint in zip((of_run.path, of_run.eval_path), fingerprints, strict=True):
        is_hub = "@" in fingerprint
        if path and not is_hub and not Path(path).expanduser().exists():
            return None, f"{unknown}: {path} is not there"
    try:
        splits = load_labelled(of_run)
    except SftKitError as error:
        return None, f"{unknown}: {error.summary}"
    if [splits.report.fingerprint, splits.report.eval_fingerprint] != list(fingerprints):
        return None, f"{unknown}: {of_run.path} has changed since the run"
    trained = {text_key(row.texts) for row in splits.train}
    have = "has" if len(rows) == 1 else "have"
    found = [text_key(row.texts) in trained for row in rows]
    return (
        found,
        f"{sum(found):,} of {counted(len(rows), 'row')} {have} a text that the run was trained on",
    )


def deduplicated(rows: Sequence[LabelledText]) -> tuple[list[LabelledText], str]:
    """Keep one of equal texts, and none of those whose labels contradict each other.

    Returns:
        The rows to keep, and a sentence about the others; empty where there are none.
    """
    kept, num_repeats, num_conflicts = without_repeats(
        [KeyedText(row, text_key(row.texts)) for row in rows]
    )
    note = ""
    if num_repeats or num_conflicts:
        note = (
            f"data.deduplicate left out {counted(num_repeats, 'row')} with the text of an earlier "
            f"one and {num_conflicts:,} with contradicting labels"
        )
    return [keyed.row for keyed in kept], note
