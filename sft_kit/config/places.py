"""Whether a place that a user names can be written, tried before anything costs time."""

import tempfile
from pathlib import Path

TRIAL_PREFIX = ".sft-kit-"
"""Beginning of the names of folders made to see whether it can be done."""


def why_not_writable(folder: Path) -> str:
    """Make a hidden folder in a folder, or in the nearest one above it that exists, and remove it.

    Rights alone don't tell: root has all of them, also where nothing can be made.

    Returns:
        The place and the system's reason; nothing where it can be written.
    """
    place = folder
    try:
        place = next(one for one in (folder, *folder.resolve().parents) if one.exists())
        with tempfile.TemporaryDirectory(prefix=TRIAL_PREFIX, dir=place):
            return ""
    except OSError as error:
        return f"{place} does not allow it: {error.strerror or error}"
