"""What the Hub's refusals mean: what was tried, what it said, what to do next."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from sft_kit.errors import HubError, Problem

_TOKEN = re.compile(r"hf_[A-Za-z0-9]+")
_MAX_SAID = 200
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_LATER = "wait and repeat the command: what has arrived is not sent again"

_WAYS_ON: Mapping[int, str] = MappingProxyType(
    {
        400: "correct what it names, and repeat the command",
        401: f"the token is missing, wrong or expired: {_LOG_IN}",
        402: "the account can't pay for this: see its billing page, or take another repository",
        403: "the token may not do this: use one with write permission for this repository, made "
        "under Settings, Access Tokens on the Hub",
        404: "check the name and the revision; a private repository looks like this to whoever may "
        "not see it",
        409: "somebody else is changing the repository, or it exists already: look at it, then "
        "repeat the command",
        412: "somebody else is changing the repository: repeat the command",
        413: "it is too large: push an adapter instead of a whole model, or store smaller shards",
        422: "correct what it names, and repeat the command",
        429: f"too many requests: {_LATER}",
    }
)
"""Status code -> what to do about it."""


def refused(what: str, repo: str, error: Exception) -> HubError:
    """Say that the Hub has refused, and why."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 401
    said = _said(error)
    found = f"the Hub answered {status}" + (f": {said}" if said else "")
    return _failure(what, repo, found, _WAYS_ON.get(status, _LATER))


def gave_up(
    what: str,
    repo: str,
    reason: str,
    status: int | None,
    attempts: int,
    wait_seconds: float | None,
) -> HubError:
    """Say that something which may pass has not passed in time."""
    times = "once" if attempts == 1 else f"{attempts} times"
    found = f"tried {times}; last of all {_harmless(reason)}"
    if wait_seconds:
        found += f", and it asks to wait {in_seconds(wait_seconds)}"
    todo = _WAYS_ON.get(status or 0, f"the Hub or the network has trouble: {_LATER}")
    return _failure(what, repo, found, todo)


def out_of_time(what: str, repo: str, seconds: float) -> HubError:
    """Say that the deadline has passed."""
    found = f"it was not done after {in_seconds(seconds)}"
    return _failure(what, repo, found, f"{_LATER}; --timeout SECONDS allows more time")


def offline(what: str, repo: str) -> HubError:
    """Say that the user has forbidden to use the network."""
    found = "HF_HUB_OFFLINE is set, which forbids to ask the Hub"
    return _failure(what, repo, found, "unset it, or do this where there is a network")


def no_token(what: str, repo: str) -> HubError:
    """Say that nobody is logged in."""
    return _failure(what, repo, "there is no token", _LOG_IN)


def not_allowed(what: str, repo: str, found: str, todo: str) -> HubError:
    """Say what a token, a name or a repository does not allow."""
    return _failure(what, repo, found, todo)


def in_seconds(seconds: float) -> str:
    """Write a duration: whole seconds from ten on."""
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.3g} s"


def _failure(what: str, repo: str, found: str, todo: str) -> HubError:
    problem = Problem(f"{constants.ENDPOINT}/{repo}", "", found, todo)
    return HubError(f"can't {what} {repo}; nothing on this machine was lost", [problem])


def _said(error: Exception) -> str:
    message = getattr(error, "server_message", None) or ""
    if not message and not isinstance(error, HfHubHTTPError):
        message = str(error)
    return _harmless(str(message))


def _harmless(text: str) -> str:
    """Shorten what somebody else wrote to one printable line without tokens."""
    line = "".join(char if char.isprintable() else " " for char in _TOKEN.sub("hf_...", text))
    return " ".join(line.split())[:_MAX_SAID]
