"""Each refusal is one message with a way on; nothing waits beyond its deadline or is lost."""

import time
from pathlib import Path

import pytest

from sft_kit.artifacts.publishing import push_run, target_of
from sft_kit.artifacts.pulling import pull_run
from sft_kit.errors import HubError
from sft_kit.hub.access import check_access, why_not
from sft_kit.hub.deadline import Patience
from sft_kit.hub.push import Target

from ...hub_stand_in.here import SHRUNK
from ...hub_stand_in.hub_server import TOKEN, Fault, HubServer

ONCE = Patience(total_seconds=10.0, **(SHRUNK | {"attempts": 1}))
TARGET = Target("me/run")


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("status", "endpoint", "way_on"),
    [
        (401, "info", "log in with `hf auth login` or set HF_TOKEN"),
        (403, "create", "use one with write permission"),
        (404, "preupload", "check the name and the revision"),
        (409, "commit", "somebody else is changing the repository"),
        (413, "commit", "push an adapter instead of a whole model"),
        (429, "preupload", "too many requests: wait and repeat"),
        (500, "tree", "what has arrived is not sent again"),
        (503, "commit", "what has arrived is not sent again"),
    ],
)
def test_each_status_says_what_was_tried_what_was_answered_and_what_to_do(
    hub: HubServer, run: Path, status: int, endpoint: str, way_on: str
):
    before = files_in(run)
    body = {"error": f"because \x1b[31m{TOKEN}"}
    hub.faults = {endpoint: [Fault("status", status, body=body)] * 2}
    with pytest.raises(HubError) as caught:
        push_run(run, TARGET, patience=ONCE)
    told = str(caught.value)
    assert told.startswith("can't push to me/run; nothing on this machine was lost\n")
    assert f"{hub.url}/me/run" in told
    assert str(status) in told
    assert way_on in told
    assert TOKEN not in told
    assert "\x1b" not in told
    assert files_in(run) == before


def test_a_wait_that_the_hub_asks_for_is_kept(hub: HubServer, run: Path, patience: Patience):
    hub.faults = {"preupload": [Fault("status", 429, {"Retry-After": "1"})]}
    said: list[str] = []
    push_run(run, TARGET, patience=patience, say=said.append)
    assert any(line.endswith("429; trying again in 1 s") for line in said)


def test_a_wait_beyond_the_deadline_is_not_begun(hub: HubServer, run: Path, patience: Patience):
    hub.faults = {"preupload": [Fault("status", 429, {"Retry-After": "3600"})]}
    start = time.monotonic()
    with pytest.raises(HubError, match="asks to wait 3,600 s"):
        push_run(run, TARGET, patience=patience)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("kind", "endpoint"), [("stall", "info"), ("drip", "tree")])
def test_a_hub_that_never_answers_is_left_at_the_deadline(
    hub: HubServer, run: Path, kind: str, endpoint: str
):
    hub.faults = {endpoint: [Fault(kind)] * 99}
    patience = Patience(**(SHRUNK | {"total_seconds": 1.5, "attempts": 99}))
    start = time.monotonic()
    with pytest.raises(HubError, match=r"was not done after 1.5 s \(wait and repeat"):
        push_run(run, TARGET, patience=patience)
    assert time.monotonic() - start < 4


def test_without_network_without_token_and_offline_there_is_one_message(
    hub: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from huggingface_hub import constants

    hub.close()
    with pytest.raises(HubError, match="no connection"):
        push_run(run, TARGET, patience=ONCE)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"there is no token \(log in with"):
        push_run(run, TARGET, patience=ONCE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pull_run("me/run", tmp_path / "back", patience=ONCE)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "repo", ["alone", "a/b/c", "me/../x", "me/run.git", "me/", "/run", "me/a b"]
)
def test_what_is_no_repository_is_refused_before_anything_is_asked(
    hub: HubServer, run: Path, tmp_path: Path, repo: str
):
    for use in (
        lambda: push_run(run, Target(repo), patience=ONCE),
        lambda: pull_run(repo, tmp_path / "back", patience=ONCE),
        lambda: check_access(repo, ONCE),
    ):
        with pytest.raises(HubError, match="NAME is your user name"):
            use()
    assert hub.requests == []


def test_a_token_is_tried_before_the_training(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    assert check_access("me/run", ONCE) == "me"
    assert check_access("our-lab/run", ONCE) == "me"
    with pytest.raises(HubError, match="'you' is neither the user of this token"):
        check_access("you/run", ONCE)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="log in with") as caught:
        check_access("me/run", ONCE)
    assert "hf_wrong" not in str(caught.value)


def who(role: str, *scopes: dict[str, object]) -> dict[str, object]:
    token = {"role": role, "fineGrained": {"scoped": list(scopes)}}
    return {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": token}}


def scope(name: str, *permissions: str) -> dict[str, object]:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


def test_what_a_token_may_do_is_read_from_who_it_belongs_to():
    assert why_not(who("write"), "me/x") is None
    assert why_not(who("write"), "Lab/x") is None
    assert why_not({"name": "me"}, "me/x") is None
    assert "can only read" in why_not(who("read"), "me/x")[0]
    assert why_not(who("fineGrained", scope("me", "repo.write")), "me/x") is None
    assert why_not(who("fineGrained", scope("me/x", "repo.write")), "me/x") is None
    for one in (scope("me", "repo.content.read"), scope("lab", "repo.write")):
        assert "no write permission" in why_not(who("fineGrained", one), "me/x")[0]


def test_settings_name_the_target_and_are_private_unless_they_say_otherwise():
    assert target_of({"push_to_hub": False, "hub_model_id": "me/x"}) is None
    plain = target_of({"push_to_hub": True, "hub_model_id": "me/x", "hub_private_repo": True})
    assert (plain.repo, plain.private, plain.revision) == ("me/x", True, "main")
    shown = target_of({"push_to_hub": True, "hub_model_id": "me/x", "hub_private_repo": False})
    assert not shown.private


def test_trainer_never_hears_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import TrainingArguments

    from sft_kit.config import loading

    resolved = loading.Resolved(
        tmp_path / "x.py",
        {"train": {"output_dir": str(tmp_path), "push_to_hub": True, "hub_model_id": "me/x"}},
        {
            "train": "x.yaml:1", "train.output_dir": "x.yaml:2",
            "train.push_to_hub": "x.yaml:3", "train.hub_model_id": "x.yaml:4",
        },
    )  # fmt: skip

    class Settings:
        train: TrainingArguments

        def __init__(self, train: TrainingArguments) -> None:
            self.train = train

    Settings.__annotations__ = {"train": TrainingArguments}
    built = loading._build(Settings, resolved, {}, "x.yaml")
    assert built.train.push_to_hub is False
    assert built.train.hub_model_id is None
