"""May this token push there? Asked before hours of training, not after."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from sft_kit.errors import HubError, Problem
from sft_kit.hub.client import Hub, with_hub
from sft_kit.hub.deadline import Patience
from sft_kit.hub.words import not_allowed

_WHAT = "push to"
_WRITE = {"repo.write", "repo.content.write"}
_PATIENCE = Patience(read_seconds=20.0, total_seconds=90.0, attempts=4)


def check_name(repo: str, what: str) -> None:
    """Refuse what is no `name/repository`.

    Raises:
        HubError: It is none.
    """
    problem = ""
    if repo.count("/") != 1:
        problem = f"found {repo!r}, accepts NAME/REPOSITORY"
    else:
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            problem = str(error).split(":")[0]
    if problem:
        todo = "NAME is your user name on the Hub or an organisation's"
        raise HubError(f"can't {what} {repo}", [Problem("", "repository", problem, todo)])


def check_access(repo: str, patience: Patience = _PATIENCE) -> str:
    """Make sure that somebody is logged in who may push to a repository.

    Args:
        repo: `name/repository`; it need not exist.
        patience: How long to wait.

    Returns:
        Who is logged in.

    Raises:
        HubError: Nobody is, or not with write permission there, or the Hub can't be asked.
    """
    check_name(repo, _WHAT)
    who = with_hub(_WHAT, repo, lambda hub: _ask(hub, repo), patience=patience)
    if reason := why_not(who, repo):
        raise not_allowed(_WHAT, repo, *reason)
    return str(who.get("name"))


def why_not(who: Mapping[str, Any], repo: str) -> tuple[str, str] | None:
    """Tell from the Hub's answer to "who am I" why a token may not push to a repository.

    Returns:
        What was found and what to do; None where nothing is known against it.
    """
    namespace = repo.partition("/")[0]
    names = {str(org.get("name")) for org in _mappings(who.get("orgs"))} | {str(who.get("name"))}
    if namespace.lower() not in {name.lower() for name in names}:
        found = f"{namespace!r} is neither the user of this token nor one of its organisations"
        return found, f"accepts {', '.join(sorted(names))}"
    token = _mapping(_mapping(who.get("auth")).get("accessToken"))
    role = token.get("role")
    todo = "use a token with write permission, made under Settings, Access Tokens on the Hub"
    if role == "read":
        return "the token can only read", todo
    if role == "fineGrained" and not _may_write(_mapping(token.get("fineGrained")), repo):
        return f"the fine-grained token has no write permission for {repo}", todo
    return None


def _ask(hub: Hub, repo: str) -> Mapping[str, Any]:
    return hub.repeat(_WHAT, repo, hub.api.whoami)


def _may_write(rights: Mapping[str, Any], repo: str) -> bool:
    places = {repo.lower(), repo.partition("/")[0].lower()}
    return any(
        _WRITE & set(map(str, scope.get("permissions") or ()))
        and str(_mapping(scope.get("entity")).get("name", "")).lower() in places
        for scope in _mappings(rights.get("scoped"))
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> Iterable[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
