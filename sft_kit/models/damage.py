"""What is wrong with a checkpoint's files, in words for whoever copied them."""

from pathlib import Path

_POINTER = b"version https://git-lfs"
_MAX_CHARACTERS = 200


def explain_damage(folder: Path, error: BaseException) -> tuple[str, str]:
    """Say what was found in a folder that does not load, and what to do.

    Args:
        folder: Of the checkpoint.
        error: What its reader raised.
    """
    pointers = [path.name for path in sorted(folder.iterdir()) if is_lfs_pointer(path)]
    if pointers:
        found = f"found {pointers[0]}, which only points to the file (git-lfs)"
        return found, "run `git lfs pull` where it was cloned, or download the file"
    if "ignore_mismatched_sizes" in str(error):
        found = (
            "found weights of other sizes than config.json says (or of another quantization_bit)"
        )
        return found, "take config.json from where the weights come from"
    index = folder / "pytorch_model.bin.index.json"
    if any(folder.glob("pytorch_model-*.bin")) and not index.is_file():
        return f"found parts of the weights without {index.name}", "copy it too"
    todo = "it needs config.json, its weights and the tokenizer's files, whole: copy them again"
    return one_line(error), todo


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git-lfs leaves in the place of a large one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def one_line(error: BaseException) -> str:
    """Name and message of an exception, cut to fit a line."""
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line[:_MAX_CHARACTERS]}" if line else type(error).__name__
