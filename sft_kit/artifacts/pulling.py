"""A run from the Hub to a run folder that the commands take."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from sft_kit.artifacts.load import check_weights
from sft_kit.artifacts.origins import HUB_NAME
from sft_kit.config.yaml_text import read_yaml
from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.hub.allowed_files import RECIPE_FILE
from sft_kit.hub.deadline import Patience
from sft_kit.hub.pull import Pulled, pull_files
from sft_kit.manifest import write_folder
from sft_kit.run_record import write_record


def pull_run(
    repo: str,
    folder: Path,
    revision: str | None = None,
    *,
    patience: Patience | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Pulled:
    """Bring a run from the Hub to a folder, which is there whole or not at all.

    Args:
        repo: `name/repository`.
        folder: To write; it must not be there, or be empty.
        revision: Branch, tag or commit; None is the main branch.
        patience: How long to wait.
        say: Tells the user what is going on.

    Raises:
        CheckpointError: The folder is in use, or what came is no finished run.
        HubError: The Hub can't be reached or refuses, or holds something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is in use: give another one with --output DIR")
    pulled: list[Pulled] = []

    def fill(stage: Path) -> None:
        pulled.append(pull_files(repo, revision, stage, patience=patience, say=say))
        record = _checked_record(stage / RECIPE_FILE, repo)
        check_weights(stage, cast("Mapping[str, str]", record["weights"]))
        record["hub"] = {"repo": repo, "commit": pulled[0].commit}
        write_record(stage, record)

    try:
        write_folder(folder, fill)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be written: {error.strerror}") from error
    return pulled[0]


def _checked_record(path: Path, repo: str) -> dict[str, object]:
    """Read the record of a stranger's run: plain values, and no place outside its folder."""
    try:
        document = read_yaml(path)
    except ConfigError as error:
        raise _not_a_run(
            repo, str(error.problems[0].message if error.problems else error)
        ) from error
    record = cast("dict[str, object]", document.root.plain())
    if document.problems:
        raise _not_a_run(repo, document.problems[0].message)
    settings, weights = record.get("settings"), record.get("weights")
    if record.get("status") != "finished" or not isinstance(settings, dict):
        raise _not_a_run(repo, "it is not the record of a finished run")
    if not isinstance(weights, dict) or not weights:
        raise _not_a_run(repo, "it names no weights")
    model = settings.get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    if checkpoint is not None and not HUB_NAME.fullmatch(str(checkpoint)):
        raise _not_a_run(repo, f"it names {checkpoint!r} as its base, which is no name on the Hub")
    base = record.get("base")
    if isinstance(base, dict):
        base.pop("folder", None)
    return record


def _not_a_run(repo: str, reason: str) -> CheckpointError:
    problem = Problem(RECIPE_FILE, "", reason, "give a repository that `sft-kit push` wrote")
    return CheckpointError(f"{repo} can't be pulled", [problem])
