"""What must not leave this machine: tokens, keys, its folders, its name and its users' names."""

import getpass
import json
import mmap
import os
import platform
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants, get_token

from sft_kit.errors import HubError, Problem
from sft_kit.hub.allowed_files import RECIPE_FILE, TOKENIZER, WEIGHTS, png_texts, safetensors_header
from sft_kit.hub.content import Content, opened

_MIN_SECRET_LETTERS = 8
_MIN_NAME_LETTERS = 3
_SECRET_NAMES = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)(_|$)", re.IGNORECASE
)
_LOOKS_SECRET = {
    "a token of the Hub": re.compile(rb"hf_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an access key": re.compile(
        rb"(?<![A-Za-z0-9])(AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,}|"
        rb"xox[abprs]-[A-Za-z0-9-]{10,}|sk-(proj-|ant-)?[A-Za-z0-9_-]{32,})"
    ),
}
_LOOKS_LOCAL = re.compile(
    rb"(?<![\w.:/~-])(file://|~/|"
    rb"/(home|Users|root|tmp|mnt|media|data|work|workspace|scratch|shared|storage|projects|runs|"
    rb"nfs|gpfs|lustre|opt|srv|var|usr|etc)/)[\w.@+/-]+|"
    rb"[A-Za-z]:\\+Users\\+\w+"
)
_FROM_RECORD = "it is made from the run folder's run.yaml: take it out there, and push again"
_WHAT_TO_DO = {RECIPE_FILE: _FROM_RECORD, "README.md": _FROM_RECORD}
_EVERYONES_NAMES = frozenset(
    {
        *("root", "user", "users", "admin", "administrator", "ubuntu", "debian", "centos"),
        *("fedora", "ec2-user", "jovyan", "runner", "node", "app", "data", "home", "test", "model"),
        *("main", "work", "worker", "default", "guest", "localhost", "localhost.localdomain"),
        *("hub", "colab", "docker", "kaggle", "python", "nobody"),
    }
)
"""Names that tell nothing about anybody, and may be words of any text."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must not leave this machine.

    Attributes:
        values: Kind -> tokens and keys as they are.
        folders: Folders of this machine.
        names: Kind -> names that must not stand in a text as words.
        public: What everybody may read though it holds such a name, such as ids on the Hub.
    """

    values: Mapping[str, frozenset[str]] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    public: frozenset[str] = frozenset()


def secrets_of_this_machine(folders: Iterable[str | Path], public: Iterable[str]) -> Secrets:
    """Collect what must not leave this machine.

    Args:
        folders: That the run has used, such as its own and its base's.
        public: Ids on the Hub that the files name on purpose.
    """
    used = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *map(Path, folders)]
    paths = {str(form) for path in used for form in (path.absolute(), path.resolve())}
    public_words = {word.lower() for one in public for word in one.split("/")}
    names = {
        "the name of this machine": frozenset({socket.gethostname(), platform.node()}),
        "a user name": frozenset(_user_names()),
    }
    return Secrets(
        {
            "the token of the Hub": frozenset(_tokens()),
            "a secret of the environment": frozenset(_secrets_of_environment()),
        },
        frozenset(path for path in paths if path.count("/") >= 2 or len(path) > len("/root")),
        {
            kind: frozenset(
                name
                for name in known
                if len(name) >= _MIN_NAME_LETTERS
                and name.lower() not in _EVERYONES_NAMES | public_words
            )
            for kind, known in names.items()
        },
        frozenset(one for one in public if one),
    )


def refuse_secrets(files: Mapping[str, Content], secrets: Secrets, repo: str) -> None:
    """Refuse files in which something secret stands, without repeating it.

    Raises:
        HubError: Each file and what kind of thing stands in it.
    """
    problems = [
        Problem(name, "", f"holds {kind}", _WHAT_TO_DO.get(name, "take it out, and push again"))
        for name, content in files.items()
        for kind in sorted(set(findings(name, content, secrets)))
    ]
    if problems:
        raise HubError(f"these files can't be pushed to {repo}; nothing was sent", problems)


def findings(name: str, content: Content, secrets: Secrets) -> Iterator[str]:
    """Name the kinds of secret things in a file.

    Files with weights or a vocabulary hold any bytes and any words: there only tokens, keys and
    whole folders count.
    """
    is_prose = not (WEIGHTS.fullmatch(name) or TOKENIZER.fullmatch(name) or name.endswith(".png"))
    with opened(content) as view:
        yield from _known_in(view, secrets)
        if is_prose:
            yield from _told_in(view[:], secrets)
        written = [] if name.endswith(".safetensors") else [view[:]]
    for text in _unwrapped(name, content, written):
        yield from _known_in(text, secrets)
        if is_prose or name.endswith((".safetensors", ".png")):
            yield from _told_in(text, secrets)


def _known_in(view: bytes | mmap.mmap, secrets: Secrets) -> Iterator[str]:
    """Find what is secret wherever it stands."""
    for kind, pattern in _LOOKS_SECRET.items():
        if pattern.search(view):
            yield kind
    for kind, values in secrets.values.items():
        if any(view.find(value.encode()) >= 0 for value in values):
            yield kind
    for folder in secrets.folders:
        path = re.compile(re.escape(folder.encode()) + rb"(?![\w.-])")
        if path.search(view):
            yield "a folder of this machine"


def _told_in(text: bytes, secrets: Secrets) -> Iterator[str]:
    """Find what is secret in a text that somebody has written."""
    for known in secrets.public:
        text = text.replace(known.encode(), b" ")
    if _LOOKS_LOCAL.search(text):
        yield "a path of a machine"
    for kind, names in secrets.names.items():
        for name in names:
            word = rb"(?<![A-Za-z0-9])" + re.escape(name.encode()) + rb"(?![A-Za-z0-9])"
            if re.search(word, text, re.IGNORECASE):
                yield kind


def _unwrapped(name: str, content: Content, written: list[bytes]) -> Iterator[bytes]:
    """Give what a file says, where its format can hide it: escapes, compression, headers."""
    if name.endswith(".safetensors"):
        yield "\n".join(_strings(safetensors_header(content).get("__metadata__"))).encode()
    elif name.endswith(".json"):
        yield "\n".join(_strings(json.loads(written[0].decode()))).encode(errors="replace")
    elif name.endswith(".png"):
        yield from png_texts(written[0])


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _tokens() -> Iterator[str]:
    """Every token of the Hub that is known here: the one in use, and those put by."""
    if token := get_token():
        yield token
    for place in (constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH):
        try:
            text = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield from re.findall(r"hf_\w+", text)


def _secrets_of_environment() -> Iterator[str]:
    for key, value in os.environ.items():
        is_long = len(value) >= _MIN_SECRET_LETTERS
        if _SECRET_NAMES.search(key) and is_long and not os.path.exists(value):
            yield value


def _user_names() -> Iterator[str]:
    yield Path.home().name
    try:
        yield getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in many containers
        return
