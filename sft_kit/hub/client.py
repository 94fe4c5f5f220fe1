"""The client of the Hub with a deadline on every request and one way to try again.

huggingface_hub waits without limit, retries some requests and not others, and sleeps as long as a
server says. Its requests go through a client of ours here, which says of every failure whether it
may pass; the waiting happens in `Hub.repeat` and nowhere else.
"""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

from sft_kit.errors import HubError
from sft_kit.hub.deadline import Deadline, OutOfTimeError, Patience
from sft_kit.hub.words import gave_up, in_seconds, no_token, offline, out_of_time, refused

T = TypeVar("T")
Say = Callable[[str], None]

_PASSING = {408, 425, 429}
_CONFLICTS = {409, 412}
_BUSY = "another conflicting operation"
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_MAX_PATH = 60
_ERRORS = (httpx2.HTTPError, OSError, RuntimeError, ValueError, KeyError)


class PassingError(Exception):
    """A request failed for a reason that may pass.

    Args:
        reason: In a few words.
        status: The answer's; None when there was none.
        wait_seconds: How long the Hub asks to wait.
    """

    def __init__(
        self, reason: str, status: int | None = None, wait_seconds: float | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.wait_seconds = wait_seconds


class _BoundedClient(httpx2.Client):
    """Gives every request the same limits, and tells failures that pass from those that stay."""

    def __init__(self, patience: Patience, deadline: Deadline) -> None:
        super().__init__(
            event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True, timeout=None
        )
        self._patience = patience
        self._deadline = deadline

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:  # noqa: ANN401
        self._deadline.check()
        left, patience = self._deadline.seconds_left(), self._patience
        request.extensions["timeout"] = {
            "connect": min(left, patience.connect_seconds),
            "read": min(left, patience.read_seconds),
            "write": min(left, patience.read_seconds),
            "pool": min(left, patience.connect_seconds),
        }
        try:
            response = super().send(request, **options)
            if response.status_code >= 400:
                response.read()
        except httpx2.TransportError as error:
            raise PassingError(f"{_asked(request)}: {_in_words(error)}") from error
        if _may_pass(response):
            response.close()
            raise PassingError(
                f"{_asked(request)}: it answered {response.status_code}",
                response.status_code,
                _asked_wait(response),
            )
        return response


class Hub:
    """The Hub for the length of one push or pull.

    Attributes:
        api: The client of huggingface_hub.

    Args:
        patience: How long to wait.
        deadline: When everything must be done.
        say: Tells the user what is waited for.
    """

    def __init__(self, patience: Patience, deadline: Deadline, say: Say) -> None:
        self.api = HfApi(endpoint=constants.ENDPOINT)
        self.say = say
        self._patience = patience
        self._deadline = deadline

    def repeat(self, what: str, repo: str, step: Callable[[], T]) -> T:
        """Do a step until it succeeds or the Hub's answer is final.

        Args:
            what: Of the step, as in "can't ...".
            repo: Its id.
            step: May be done again after any failure.

        Raises:
            HubError: What was tried, what the Hub said, and what to do.
        """
        wait = self._patience.first_wait_seconds
        for attempt in range(1, self._patience.attempts + 1):
            self._deadline.check()
            try:
                return step()
            except OutOfTimeError:
                raise
            except (PassingError, *_ERRORS) as error:
                passing = _judged(error, what, repo)
            pause = max(wait, passing.wait_seconds or 0.0)
            is_too_long = pause > self._deadline.seconds_left()
            if attempt == self._patience.attempts or (passing.wait_seconds and is_too_long):
                raise gave_up(
                    what, repo, str(passing), passing.status, attempt, passing.wait_seconds
                )
            if is_too_long:
                raise OutOfTimeError
            self.say(f"the Hub: {passing}; trying again in {in_seconds(pause)}")
            self._deadline.pause(pause)
            wait = min(2 * wait, self._patience.longest_wait_seconds)
        raise AssertionError("the last attempt returns or raises")


def with_hub(
    what: str,
    repo: str,
    work: Callable[[Hub], T],
    *,
    patience: Patience,
    num_bytes: int = 0,
    needs_token: bool = True,
    say: Say = lambda _: None,
) -> T:
    """Do something with the Hub within a deadline.

    Args:
        what: Of it all, as in "can't ...".
        repo: Its id.
        work: Does it.
        patience: How long to wait.
        num_bytes: To be transferred, from which the deadline follows.
        needs_token: Refuse at once where nobody is logged in.
        say: Tells the user what is waited for.

    Raises:
        HubError: Whatever went wrong, in one message.
    """
    if constants.HF_HUB_OFFLINE:
        raise offline(what, repo)
    if needs_token and not get_token():
        raise no_token(what, repo)
    deadline = patience.deadline(num_bytes)
    with _bounded_requests(patience, deadline):
        try:
            return deadline.run(lambda: work(Hub(patience, deadline, say)))
        except OutOfTimeError:
            raise out_of_time(what, repo, deadline.total_seconds) from None


@contextmanager
def _bounded_requests(patience: Patience, deadline: Deadline) -> Iterator[None]:
    set_client_factory(lambda: _BoundedClient(patience, deadline))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _judged(error: Exception, what: str, repo: str) -> PassingError:
    """Tell whether an error may pass; raise what stays as one message."""
    for cause in _causes(error):
        if isinstance(cause, PassingError):
            return cause
        if isinstance(cause, OutOfTimeError):
            raise cause
        if isinstance(cause, HubError):
            raise cause from None
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            raise refused(what, repo, cause) from None
        if isinstance(cause, PermissionError) and cause.errno is None:  # of the Xet client
            raise refused(what, repo, cause) from None
        if isinstance(cause, OSError) and cause.errno in _LOCAL:
            raise HubError(f"can't {what} {repo}: {cause.strerror}: {cause.filename}") from cause
    *_, deepest = _causes(error)
    return PassingError(_in_words(deepest))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _may_pass(response: httpx2.Response) -> bool:
    status, path = response.status_code, response.request.url.path
    if status in _PASSING or status >= 500:
        return True
    if status in _CONFLICTS and "/commit/" in path:
        return True  # somebody else's commit came first, or ours did and its answer was lost
    return status == 409 and path.endswith("/repos/create") and _BUSY in response.text


def _asked(request: httpx2.Request) -> str:
    """Name a request, without what is in its query."""
    path = request.url.path
    shown = path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}..."
    return f"{request.method} {request.url.netloc.decode()}{shown}"


def _asked_wait(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # a date is left to the usual waiting
        return None


def _in_words(error: BaseException) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it took too long"
    if isinstance(error, httpx2.ConnectError):
        return "no connection"
    if isinstance(error, json.JSONDecodeError | KeyError):
        return "an answer that is cut off or has another form"
    first = str(error).strip().splitlines()
    return first[0][:200] if first else type(error).__name__
