"""A run goes up with the real client and comes back, and nothing else goes with it."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sft_kit.artifacts.publishing import push_finished, push_run
from sft_kit.artifacts.pulling import pull_run
from sft_kit.errors import CheckpointError, HubError
from sft_kit.hub.deadline import Patience
from sft_kit.hub.push import Target
from sft_kit.run_record import read_record

from ...hub_stand_in.here import safetensors, small_run
from ...hub_stand_in.hub_server import TOKEN, Fault, HubServer

GOES_UP = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
    "loss.png", "metrics.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
TARGET = Target("me/run")


def text_of(hub: HubServer, name: str) -> str:
    content = hub.files("me/run")[name].content
    assert content is not None
    return content.decode()


def everything_sent(hub: HubServer) -> bytes:
    """Every byte that reached the Hub, with what base64 hides."""
    sent = list(hub.received)
    for body in hub.received:
        for line in body.splitlines():
            if b'"encoding": "base64"' in line:
                sent.append(base64.b64decode(json.loads(line)["value"]["content"]))
            elif b'"sample"' in line:
                files = json.loads(line)["files"]
                sent += [base64.b64decode(file["sample"]) for file in files]
    return b"\n".join(sent)


def test_the_files_of_the_list_go_up_and_no_other(hub: HubServer, run: Path, patience: Patience):
    pushed = push_run(run, TARGET, patience=patience)
    held = hub.files("me/run")
    assert set(held) == GOES_UP == set(pushed.uploaded)
    assert hub.repositories["me/run"].private
    assert hub.repositories["me/run"].messages == ["initial commit", TARGET.message]
    for name in ("adapter_model.safetensors", "loss.png", "tokenizer.json", "metrics.json"):
        assert held[name].content == (run / name).read_bytes()


def test_nothing_of_this_machine_is_in_any_byte_sent(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path
):
    push_run(run, TARGET, patience=patience)
    sent = everything_sent(hub)
    assert b"PeftModel" in sent
    assert b"learning_rate" in sent
    for secret in (TOKEN, str(tmp_path), "/srv/logs", socket.gethostname(), "What is secret?"):
        assert secret.encode() not in sent
    assert hub.authorizations <= {f"Bearer {TOKEN}", ""}


def test_the_recipe_keeps_the_settings_and_names_no_place(
    hub: HubServer, run: Path, patience: Patience
):
    push_run(run, TARGET, patience=patience)
    recipe = yaml.safe_load(text_of(hub, "recipe.yaml"))
    assert recipe["settings"]["train"]["learning_rate"] == 2e-4
    assert recipe["settings"]["data"] == {
        "path": "rows.jsonl",
        "template": "auto",
        "max_length": 512,
    }
    assert recipe["settings"]["model"]["checkpoint"] == recipe["base"]["name"] == "tiny-base"
    assert recipe["settings"]["train"]["output_dir"] == "my-run"
    assert recipe["settings"]["sample"] == {"max_new_tokens": 4}
    assert not {"origins", "notes"} & set(recipe)
    assert "hub_model_id" not in recipe["settings"]["train"]
    assert "folder" not in recipe["base"]


def test_the_card_and_the_configs_name_the_repository_instead_of_a_folder(
    hub: HubServer, run: Path, patience: Patience
):
    push_run(run, TARGET, patience=patience)
    card = text_of(hub, "README.md")
    assert 'folder = "me/run"' in card
    assert "sft-kit pull me/run" in card
    assert "`sft-kit chat run`" in card
    assert "FOLDER" not in card
    assert "Before and after" not in card
    assert "None are known." in card
    config = json.loads(text_of(hub, "adapter_config.json"))
    assert config == {"base_model_name_or_path": "tiny-base", "r": 8, "peft_type": "LORA"}
    assert json.loads(text_of(hub, "tokenizer_config.json")) == {"model_max_length": 128}


def test_samples_go_up_where_they_are_asked_for(hub: HubServer, run: Path, patience: Patience):
    push_run(run, TARGET, samples=True, patience=patience)
    assert set(hub.files("me/run")) == GOES_UP | {"samples.md"}
    assert "Before and after" in text_of(hub, "README.md")
    assert "prompts" in yaml.safe_load(text_of(hub, "recipe.yaml"))["settings"]["sample"]


def test_a_second_push_sends_nothing_and_makes_no_commit(
    hub: HubServer, run: Path, patience: Patience
):
    first = push_run(run, TARGET, patience=patience)
    hub.requests.clear()
    second = push_run(run, TARGET, patience=patience)
    assert second.commit == first.commit
    assert not second.uploaded
    assert set(second.unchanged) == GOES_UP
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_only_what_is_missing_is_sent_and_weights_of_an_earlier_push_go(
    hub: HubServer, run: Path, patience: Patience
):
    push_run(run, TARGET, patience=patience)
    hub.repositories["me/run"].put("model.safetensors", safetensors(seed=4))
    hub.repositories["me/run"].put("notes.md", b"somebody's")
    (run / "metrics.json").write_text('{"eval_loss": 7}')
    hub.requests.clear()
    pushed = push_run(run, TARGET, patience=patience)
    assert pushed.uploaded == ("metrics.json",)
    assert pushed.removed == ("model.safetensors",)
    assert set(hub.files("me/run")) == GOES_UP | {"notes.md"}
    assert "PUT put" not in hub.requests


def test_a_commit_whose_answer_was_lost_is_not_made_again(
    hub: HubServer, run: Path, patience: Patience
):
    hub.faults = {"commit": [Fault("lost")]}
    push_run(run, TARGET, patience=patience)
    assert len(hub.repositories["me/run"].messages) == 2


def test_large_files_go_by_xet_and_arrive_as_they_are(
    xet_hub: HubServer, run: Path, patience: Patience
):
    push_run(run, TARGET, patience=patience)
    held = xet_hub.files("me/run")
    assert set(held) == GOES_UP
    weights = (run / "adapter_model.safetensors").read_bytes()
    assert held["adapter_model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert "GET xet" in xet_hub.requests
    assert "POST batch" not in xet_hub.requests
    stored = [path.read_bytes() for path in xet_hub.xet_store.rglob("*") if path.is_file()]
    assert any(weights[-64:] in content for content in stored)


def test_what_was_pushed_comes_back_as_a_finished_run(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path
):
    push_run(run, TARGET, patience=patience)
    hub.repositories["me/run"].put("evil.bin", b"\x80\x04pickle")
    hub.repositories["me/run"].put("tokenizer.json/../../x", b"out")
    folder = tmp_path / "back"
    pulled = pull_run("me/run", folder, patience=patience)
    assert {path.name for path in folder.iterdir()} == GOES_UP | {"run.yaml", "manifest.json"}
    assert {"evil.bin", "tokenizer.json/../../x"} < set(pulled.left)
    record = read_record(folder)
    assert record["status"] == "finished"
    assert record["hub"] == {"repo": "me/run", "commit": pulled.commit}
    for name in ("adapter_model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_a_pulled_run_can_be_pushed_again(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path
):
    push_run(run, TARGET, patience=patience)
    pull_run("me/run", tmp_path / "back", patience=patience)
    push_run(tmp_path / "back", Target("me/copy"), patience=patience)
    copy = yaml.safe_load(hub.files("me/copy")["recipe.yaml"].content)
    assert copy == yaml.safe_load(text_of(hub, "recipe.yaml"))


OUTSIDE = b"status: finished\nweights: {a: b}\nsettings: {model: {checkpoint: %s}}\n"
TAMPERED = (
    *(
        ("recipe.yaml", OUTSIDE % place, "no name on the Hub")
        for place in (b"../../etc", b"..", b"../base", b"me/..")
    ),
    ("adapter_model.safetensors", safetensors(seed=5), "not the ones the run saved"),
    ("adapter_model.safetensors", b"PK\x03\x04 a zip", "not what its name says"),
    ("loss.png", b"\x80\x04pickle", "not what its name says"),
    ("recipe.yaml", b"status: running\nsettings: {}\n", "not the record of a finished run"),
    ("recipe.yaml", b"a: &a [x]\nb: &b [*a, *a]\n" * 9, "recipe.yaml"),
    ("recipe.yaml", b"x: !!python/object:os.system ls\n", "tag"),
)


def test_a_repository_that_was_tampered_with_leaves_no_folder(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path
):
    push_run(run, TARGET, patience=patience)
    held = hub.repositories["me/run"]
    for name, content, message in TAMPERED:
        whole = held.commits[held.branches["main"]][name].content
        assert whole is not None
        held.put(name, content)
        with pytest.raises((CheckpointError, HubError), match=message):
            pull_run("me/run", tmp_path / "back", patience=patience)
        assert not [path for path in tmp_path.iterdir() if "back" in path.name]
        held.put(name, whole)
    pull_run("me/run", tmp_path / "back", patience=patience)


def test_a_download_that_is_cut_off_is_fetched_again(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path
):
    push_run(run, TARGET, patience=patience)
    hub.faults = {"get": [None, Fault("cut"), Fault("drop")], "tree": [Fault("nonsense")]}
    pull_run("me/run", tmp_path / "back", patience=patience)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (run / weights).read_bytes()


def test_a_folder_in_use_is_not_touched(hub: HubServer, run: Path, patience: Patience):
    with pytest.raises(CheckpointError, match="is in use"):
        pull_run("me/run", run, patience=patience)
    assert hub.requests == []


def test_a_run_that_is_not_finished_is_not_pushed(hub: HubServer, run: Path, patience: Patience):
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("finished", "running"))
    with pytest.raises(CheckpointError, match="did not finish"):
        push_run(run, TARGET, patience=patience)
    assert hub.requests == []


def test_a_public_repository_is_pushed_to_only_where_that_is_asked_for(
    hub: HubServer, run: Path, patience: Patience
):
    public = Target("me/run", private=False)
    push_run(run, public, patience=patience)
    assert not hub.repositories["me/run"].private
    with pytest.raises(HubError, match=r"everybody sees this repository \(add --public"):
        push_run(run, TARGET, patience=patience)
    push_run(run, public, patience=patience)


@pytest.mark.parametrize("words", [{"message": "done with"}, {"revision": "of"}])
@pytest.mark.parametrize("secret", ["hf_" + "Q" * 34, "/shared/alice/x"])
def test_the_message_and_the_branch_are_searched_too(
    hub: HubServer, run: Path, patience: Patience, words: dict[str, str], secret: str
):
    ((name, text),) = words.items()
    target = Target("me/run", **{name: f"{text} {secret}"})
    with pytest.raises(HubError, match="nothing was sent") as caught:
        push_run(run, target, patience=patience)
    assert f"--{name}" in [problem.where for problem in caught.value.problems]
    assert secret not in str(caught.value)
    assert not hub.repositories


def test_a_branch_is_made_and_named_in_the_card(hub: HubServer, run: Path, patience: Patience):
    push_run(run, Target("me/run", revision="v2"), patience=patience)
    assert not hub.files("me/run")
    held = hub.files("me/run", "v2")
    assert set(held) == GOES_UP
    assert b'PeftModel.from_pretrained(base, folder, revision="v2")' in held["README.md"].content


def test_a_push_that_fails_after_the_run_says_how_to_repeat_it(hub: HubServer, run: Path):
    (run / "metrics.json").write_text(json.dumps({"x": TOKEN}))
    train = {"push_to_hub": True, "hub_model_id": "me/run", "hub_private_repo": False}
    with pytest.raises(HubError) as caught:
        push_finished(run, train, print)
    assert f"push it again: `sft-kit push {run} --repo me/run --public`" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "me/run" not in hub.repositories


def test_a_run_without_the_setting_is_not_pushed(hub: HubServer, run: Path):
    push_finished(run, {"push_to_hub": False, "hub_model_id": "me/run"}, print)
    assert hub.requests == []


def test_a_model_that_was_pulled_answers_as_the_one_that_was_pushed(
    hub: HubServer, make_run, gpt2_checkpoint: Path, patience: Patience, tmp_path: Path
):
    import torch

    from sft_kit.artifacts import load_run

    run = make_run(gpt2_checkpoint)
    (run / "README.md").write_text("# a model\n")  # PEFT's own names the folder of the base
    push_run(run, TARGET, patience=patience)
    pull_run("me/run", tmp_path / "back", patience=patience)
    before = load_run(str(run))
    after = load_run(str(tmp_path / "back"), base=str(gpt2_checkpoint))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(before.model(ids).logits, after.model(ids).logits)
    assert before.template.sha256 == after.template.sha256
    with pytest.raises(CheckpointError, match="give --base"):
        load_run(str(tmp_path / "back"))


@pytest.mark.slow
def test_the_commands_work_with_nothing_but_the_environment(tmp_path: Path):
    """A child knows the Hub by HF_ENDPOINT alone, and repeats nothing of the token."""
    server = HubServer()
    run = small_run(tmp_path / "my-run")
    environment = {
        "HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }  # fmt: skip
    entry = "import sys; from sft_kit.cli import main; sys.argv[0] = 'sft-kit'; main()"
    for words in (
        ["push", str(run), "--repo", "me/run"],
        ["pull", "me/run", "--output", str(tmp_path / "back")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", entry, *words],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
    server.close()
    assert (tmp_path / "back" / "run.yaml").is_file()
