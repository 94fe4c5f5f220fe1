"""Pushing files: only what is missing, in one commit, and looked at again afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from sft_kit.hub.access import check_name
from sft_kit.hub.allowed_files import WEIGHTS, refuse_other_files
from sft_kit.hub.client import Hub, PassingError, Say, with_hub
from sft_kit.hub.content import Content, Digest, digest_of, size_of
from sft_kit.hub.deadline import Patience
from sft_kit.hub.secrets import Secrets, refuse_secrets
from sft_kit.hub.words import not_allowed

WHAT = "push to"
MAIN = constants.DEFAULT_REVISION


@dataclass(frozen=True, slots=True)
class Target:
    """Where to push.

    Attributes:
        repo: `name/repository`.
        private: Make a repository that only its owners see. A public one that exists is pushed to
            only where this is False.
        revision: Branch; made where there is none.
        message: Of the commit.
    """

    repo: str
    private: bool = True
    revision: str = MAIN
    message: str = "Push a run of sft_kit"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push has done.

    Attributes:
        url: Of the repository.
        commit: Id of the commit that holds the files.
        uploaded: Names of the files that were missing there.
        unchanged: Names of those that were there already.
        removed: Names of weight files of an earlier push that are no part of this one.
    """

    url: str
    commit: str
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]

    def lines(self) -> list[str]:
        """Tell the user what is where."""
        counts = f"{len(self.uploaded)} files pushed, {len(self.unchanged)} were there already"
        removed = [f"removed weights of an earlier push: {', '.join(self.removed)}"]
        place = f"on the Hub: {self.url} (commit {self.commit[:12]})"
        return [counts, *(removed if self.removed else []), place]


def push_files(
    files: Mapping[str, Content],
    target: Target,
    secrets: Secrets,
    *,
    patience: Patience | None = None,
    say: Say = lambda _: None,
) -> Pushed:
    """Push files whose names are allowed and in which nothing secret was found.

    An interrupted push is repeated by the same call: what has arrived is not sent again, and where
    all of it has, there is no second commit.

    Args:
        files: Name in the repository -> content.
        target: Where to.
        secrets: What must not leave this machine.
        patience: How long to wait.
        say: Tells the user what is going on.

    Raises:
        HubError: A file may not be pushed, or the Hub can't be reached or refuses.
    """
    check_name(target.repo, WHAT)
    refuse_other_files(files, target.repo)
    words = {"--message": target.message.encode(), "--revision": target.revision.encode()}
    refuse_secrets({**files, **words}, secrets, target.repo)
    digests = {name: digest_of(content) for name, content in files.items()}
    num_bytes = sum(size_of(content) for content in files.values())

    def work(hub: Hub) -> Pushed:
        _make_repository(hub, target)
        first = hub.repeat(WHAT, target.repo, lambda: _compare(hub, target, digests))
        if first.missing:
            say(f"pushing {len(first.missing)} files to {target.repo}")
        last = hub.repeat(WHAT, target.repo, lambda: _commit(hub, target, files, digests))
        missing = set(first.missing)
        return Pushed(
            f"{constants.ENDPOINT}/{target.repo}",
            last.commit,
            tuple(first.missing),
            tuple(name for name in files if name not in missing),
            tuple(first.stale),
        )

    return with_hub(
        WHAT,
        target.repo,
        work,
        patience=patience or Patience(),
        num_bytes=num_bytes,
        say=say,
    )


@dataclass(frozen=True, slots=True)
class _Comparison:
    commit: str
    missing: list[str]
    stale: list[str]


def _make_repository(hub: Hub, target: Target) -> None:
    """Make the repository and its branch, and refuse one that more people see than was asked."""
    repo = target.repo

    def find_or_make() -> None:
        try:
            is_private = hub.api.model_info(repo).private
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            hub.api.create_repo(repo, private=target.private, exist_ok=True)
            is_private = hub.api.model_info(repo).private
        if target.private and not is_private:
            todo = "add --public (train.hub_private_repo=false), or take another repository"
            raise not_allowed(WHAT, repo, "everybody sees this repository", todo)

    hub.repeat(WHAT, repo, find_or_make)
    if target.revision != MAIN:
        hub.repeat(
            WHAT, repo, lambda: hub.api.create_branch(repo, branch=target.revision, exist_ok=True)
        )


def _compare(hub: Hub, target: Target, digests: Mapping[str, Digest]) -> _Comparison:
    """Look at what is on the Hub: sizes and digests, file by file."""
    repo, commit = target.repo, hub.api.model_info(target.repo, revision=target.revision).sha
    if commit is None:
        raise PassingError("the Hub names no commit of the repository")
    listed = hub.api.list_repo_tree(repo, recursive=True, revision=commit)
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    missing = [name for name, digest in digests.items() if not _is_same(there.get(name), digest)]
    stale = [name for name in there if WEIGHTS.fullmatch(name) and name not in digests]
    return _Comparison(commit, missing, stale)


def _is_same(there: RepoFile | None, digest: Digest) -> bool:
    if there is None or there.size != digest.num_bytes:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == digest.sha256
    return there.blob_id == digest.git_id


def _commit(
    hub: Hub, target: Target, files: Mapping[str, Content], digests: Mapping[str, Digest]
) -> _Comparison:
    """Commit what is missing, on top of what was looked at, and look again.

    When the answer to the commit is lost, the next attempt sees that nothing is missing.
    """
    before = _compare(hub, target, digests)
    if not before.missing and not before.stale:
        return before
    additions = [CommitOperationAdd(name, _given(files[name])) for name in before.missing]
    hub.api.create_commit(
        target.repo,
        [*additions, *(CommitOperationDelete(name) for name in before.stale)],
        commit_message=target.message,
        revision=target.revision,
        parent_commit=before.commit,
    )
    after = _compare(hub, target, digests)
    if after.missing:
        raise PassingError(f"the Hub does not hold what was sent ({', '.join(after.missing)})")
    return after


def _given(content: Content) -> bytes | str:
    return content if isinstance(content, bytes) else str(content)
