"""A run folder to the Hub: which files, in which form, and nothing of this machine in them."""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from sft_kit.artifacts.load import check_weights, require_finished
from sft_kit.artifacts.merged_card import CARD_FILE, is_merged_card
from sft_kit.artifacts.origins import base_of_run, data_set_of_run
from sft_kit.artifacts.public_record import public_record, record_text
from sft_kit.errors import CheckpointError, HubError, Problem
from sft_kit.hub.access import check_access
from sft_kit.hub.allowed_files import RECIPE_FILE, SAMPLES_FILE, WEIGHTS, is_allowed
from sft_kit.hub.content import Content
from sft_kit.hub.deadline import Patience
from sft_kit.hub.push import MAIN, Pushed, Target, push_files
from sft_kit.hub.secrets import Secrets, secrets_of_this_machine
from sft_kit.run_record import RUN_FILE

_FENCE = "\n```\n"
_THIS_FOLDER = '"path/to/this/folder"'
_LOADED = re.compile(r"from_pretrained\((base, )?folder\)")
_BEFORE_AND_AFTER = re.compile(r"^## Before and after\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
_ONLY_HERE = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "tokenizer_file")
"""Keys in which libraries note where a file was read from."""


def push_run(
    folder: Path,
    target: Target,
    *,
    samples: bool = False,
    patience: Patience | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Push a finished run, or a merged model, to the Hub.

    Args:
        folder: Run folder, or one that `merge_and_save` wrote.
        target: Where to.
        samples: Push `samples.md`, and the prompts in it, as well.
        patience: How long to wait.
        say: Tells the user what is going on.

    Raises:
        CheckpointError: The run is not finished, or its weights are not the ones it saved.
        HubError: A file holds something secret, or the Hub can't be reached or refuses.
    """
    record = _record(folder)
    files = public_files(folder, record, target, samples=samples)
    secrets = secrets_of_run(folder, record, target.repo)
    return push_files(files, target, secrets, patience=patience, say=say)


def check_push(train: Mapping[str, object]) -> None:
    """Make sure, before a run begins, that its end can be pushed where the settings say.

    Args:
        train: The section of the settings.

    Raises:
        HubError: Nobody is logged in who may push there, or the Hub can't be asked.
    """
    if target := target_of(train):
        check_access(target.repo)


def push_finished(folder: Path, train: Mapping[str, object], say: Callable[[str], None]) -> None:
    """Push a run that has finished, if its settings say so.

    Args:
        folder: Run folder.
        train: The section of the settings.
        say: Tells the user what is going on.

    Raises:
        HubError: Why it was not pushed, and how to push it again.
    """
    target = target_of(train)
    if target is None:
        return
    try:
        pushed = push_run(folder, target, say=say)
    except (HubError, CheckpointError) as error:
        again = f"sft-kit push {shlex.quote(str(folder))} --repo {target.repo}"
        again += "" if target.private else " --public"
        again += "" if target.revision == MAIN else f" --revision {target.revision}"
        summary = f"{error.summary}. The run in {folder} is finished; push it again: `{again}`"
        raise HubError(summary, error.problems) from error
    for line in pushed.lines():
        say(line)


def target_of(train: Mapping[str, object]) -> Target | None:
    """Read from the section `train` where a run is pushed; None where it is not."""
    if not train.get("push_to_hub"):
        return None
    return Target(
        str(train["hub_model_id"]),
        private=train.get("hub_private_repo") is not False,
        revision=str(train.get("hub_revision") or MAIN),
    )


def public_files(
    folder: Path, record: Mapping[str, object], target: Target, *, samples: bool = False
) -> dict[str, Content]:
    """Choose the files of a run that others may have, in the form they may have.

    Args:
        folder: Run folder.
        record: As in `run.yaml`; empty of a merged model.
        target: Where they go.
        samples: Take `samples.md`, and the prompts in it, as well.

    Returns:
        Name -> content; weights stay where they are.

    Raises:
        HubError: A file is a link to somewhere else.
    """
    paths = [path for path in sorted(folder.iterdir()) if is_allowed(path.name)]
    links = [path for path in paths if path.is_symlink() or not path.is_file()]
    if links:
        problems = [Problem(str(path), "", "is no file", "put a copy there") for path in links]
        raise HubError(f"{folder} can't be pushed; nothing was sent", problems)
    files: dict[str, Content] = {}
    for path in paths:
        if path.name == RECIPE_FILE or (path.name == SAMPLES_FILE and not samples):
            continue
        content = path if WEIGHTS.fullmatch(path.name) else path.read_bytes()
        files[path.name] = _public(path.name, content, record, target, samples=samples)
    if record:
        files[RECIPE_FILE] = record_text(public_record(record, samples=samples))
    return files


def secrets_of_run(folder: Path, record: Mapping[str, object], repo: str) -> Secrets:
    """Collect what must not be pushed with a run: the folders it used among it."""
    settings = cast("Mapping[str, Mapping[str, object] | None]", record.get("settings") or {})
    base = record.get("base")
    used = [folder]
    if isinstance(base, Mapping) and base.get("folder"):
        used.append(Path(str(base["folder"])))
    name, is_on_hub = base_of_run(record) if record else ("", False)
    data = settings.get("data") or {}
    if (path := data.get("path")) and Path(str(path)).exists():
        used.append(Path(str(path)).resolve().parent)
    public = [repo, name if is_on_hub else "", data_set_of_run(data)]
    return secrets_of_this_machine(used, public)


def _record(folder: Path) -> dict[str, object]:
    if not (folder / RUN_FILE).is_file() and is_merged_card(folder / CARD_FILE):
        return {}
    record = require_finished(folder)
    check_weights(folder, cast("Mapping[str, str]", record.get("weights") or {}))
    others = [name for name in cast("dict[str, str]", record.get("weights") or {})
              if not is_allowed(name)]  # fmt: skip
    if others:
        raise CheckpointError(f"{folder} holds weights that can't be pushed: {', '.join(others)}")
    return record


def _public(
    name: str, content: Content, record: Mapping[str, object], target: Target, *, samples: bool
) -> Content:
    if isinstance(content, Path):
        return content
    if name == CARD_FILE:
        return _public_card(content.decode(errors="surrogateescape"), target, samples=samples)
    if name not in ("adapter_config.json", "config.json", "tokenizer_config.json"):
        return content
    try:
        config = json.loads(content)
    except ValueError:
        return content  # what is wrong with it is said where all files are looked at
    if not isinstance(config, dict):
        return content
    for key in _ONLY_HERE:
        config.pop(key, None)
    if "base_model_name_or_path" in config and record:
        config["base_model_name_or_path"] = base_of_run(record)[0]
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _public_card(card: str, target: Target, *, samples: bool) -> bytes:
    """Make the card say how to load from the Hub what it said how to load from a folder."""
    name = target.repo.partition("/")[2]
    pull = f"sft-kit pull {target.repo}"
    if target.revision != MAIN:
        pull += f" --revision {target.revision}"
        card = _LOADED.sub(rf'from_pretrained(\g<1>folder, revision="{target.revision}")', card)
    if _THIS_FOLDER in card:
        card = card.replace(_THIS_FOLDER, f'"{target.repo}"')
        end = card.find(_FENCE, card.index(f'"{target.repo}"')) + len(_FENCE)
        if end >= len(_FENCE):
            card = f"{card[:end]}\n`{pull}` brings it to the folder `{name}`.\n{card[end:]}"
    card = re.sub(r"\bFOLDER\b", name, card)
    if not samples:
        card = _BEFORE_AND_AFTER.sub("", card)
    return card.encode(errors="surrogateescape")
