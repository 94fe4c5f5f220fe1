"""Pulling files: known names only, each compared with what the Hub says it is."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from sft_kit.errors import HubError, Problem
from sft_kit.hub.access import check_name
from sft_kit.hub.allowed_files import RECIPE_FILE, is_allowed, why_not_its_kind
from sft_kit.hub.client import Hub, PassingError, Say, with_hub
from sft_kit.hub.content import digest_of
from sft_kit.hub.deadline import Patience

WHAT = "pull"
_MAX_FILES = 1000
_MAX_TEXT_BYTES = 200 << 20


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull has brought.

    Attributes:
        commit: Id of the commit it is from.
        names: Of the files.
        left: Names of the files that were left on the Hub.
    """

    commit: str
    names: tuple[str, ...]
    left: tuple[str, ...]


def pull_files(
    repo: str,
    revision: str | None,
    folder: Path,
    *,
    patience: Patience | None = None,
    say: Say = lambda _: None,
) -> Pulled:
    """Write the files of a repository that are allowed into a folder.

    They come through the cache of the Hub: what an interrupted pull has brought is not sent again.

    Args:
        repo: `name/repository`.
        revision: Branch, tag or commit; None is the main branch.
        folder: That exists.
        patience: How long to wait.
        say: Tells the user what is going on.

    Raises:
        HubError: The Hub can't be reached or refuses, it holds no run, or a file is not what the
            Hub says it is.
    """
    check_name(repo, WHAT)
    patience = patience or Patience()
    commit, entries = with_hub(
        WHAT,
        repo,
        lambda hub: hub.repeat(WHAT, repo, lambda: _list(hub, repo, revision)),
        patience=patience,
        needs_token=False,
        say=say,
    )
    wanted = _wanted(repo, entries)
    num_bytes = sum(entry.size for entry in wanted.values())
    say(f"pulling {len(wanted)} files, {num_bytes / 1e6:,.1f} MB")

    def work(hub: Hub) -> None:
        for name, entry in wanted.items():
            hub.repeat(WHAT, repo, partial(_fetch, hub, repo, commit, entry, folder))
            if reason := why_not_its_kind(name, folder / name):
                raise _not_a_run(repo, name, reason)

    with_hub(WHAT, repo, work, patience=patience, num_bytes=num_bytes, needs_token=False, say=say)
    left = tuple(sorted(name for name in entries if name not in wanted))
    return Pulled(commit, tuple(wanted), left)


def _list(hub: Hub, repo: str, revision: str | None) -> tuple[str, dict[str, RepoFile]]:
    commit = hub.api.model_info(repo, revision=revision).sha
    if commit is None:
        raise PassingError("the Hub names no commit of the repository")
    files: dict[str, RepoFile] = {}
    for entry in hub.api.list_repo_tree(repo, recursive=True, revision=commit):
        if isinstance(entry, RepoFile):
            files[entry.path] = entry
        if len(files) > _MAX_FILES:
            raise _not_a_run(repo, "", f"holds more than {_MAX_FILES} files")
    return commit, files


def _wanted(repo: str, entries: Mapping[str, RepoFile]) -> dict[str, RepoFile]:
    """Choose the files of a run; a name that is allowed has no folder in it."""
    if RECIPE_FILE not in entries:
        raise _not_a_run(repo, RECIPE_FILE, "is missing: this was not pushed by `sft-kit push`")
    wanted = {name: entry for name, entry in entries.items() if is_allowed(name)}
    for name, entry in wanted.items():
        if entry.size > _MAX_TEXT_BYTES and not name.endswith(".safetensors"):
            raise _not_a_run(repo, name, f"has {entry.size:,} bytes, which no run writes")
    return wanted


def _fetch(hub: Hub, repo: str, commit: str, entry: RepoFile, folder: Path) -> None:
    """Fetch a file and compare it; one that is not what it should be goes from the cache too."""
    cached = Path(hub.api.hf_hub_download(repo, entry.path, revision=commit))
    digest = digest_of(cached)
    expected = entry.lfs.sha256 if entry.lfs else entry.blob_id
    found = digest.sha256 if entry.lfs else digest.git_id
    if digest.num_bytes != entry.size or found != expected:
        cached.resolve().unlink()
        cached.unlink(missing_ok=True)
        raise PassingError(f"{entry.path} did not arrive as it is on the Hub")
    shutil.copyfile(cached, folder / entry.path)


def _not_a_run(repo: str, name: str, reason: str) -> HubError:
    todo = "give a repository that `sft-kit push` wrote; `sft-kit chat` takes other models by name"
    return HubError(f"{repo} can't be pulled", [Problem(name, "", reason, todo)])
