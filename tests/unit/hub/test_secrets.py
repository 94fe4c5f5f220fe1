"""Secrets planted in every slot of a run are found, named by kind, and never repeated."""

import json
import zlib
from pathlib import Path

import pytest

from sft_kit.artifacts.publishing import push_run, secrets_of_run
from sft_kit.errors import HubError
from sft_kit.hub.allowed_files import is_allowed, why_not_its_kind
from sft_kit.hub.content import digest_of
from sft_kit.hub.push import Target
from sft_kit.hub.secrets import Secrets, findings, secrets_of_this_machine

from ...hub_stand_in.here import png, safetensors
from ...hub_stand_in.hub_server import HubServer

TOKEN = "hf_" + "AbCdEfGhIj" * 4
OTHER = "hf_" + "zYxWvUtSrQ" * 4
KNOWN = Secrets(
    values={"a secret of the environment": frozenset({"correct-horse-battery"})},
    folders=frozenset({"/srv/people/marlene/runs"}),
    names={
        "the name of this machine": frozenset({"gpu-box-17"}),
        "a user name": frozenset({"marlene"}),
    },
    public=frozenset({"marlene/model"}),
)
FOLDER, NAME, HOST = "a folder of this machine", "a user name", "the name of this machine"
HUB_TOKEN, PATH = "a token of the Hub", "a path of a machine"
ESCAPED = '{"x": "\\u0068f_' + TOKEN[3:] + '"}'


@pytest.mark.parametrize(
    ("name", "content", "kinds"),
    [
        ("README.md", f"use {TOKEN}", {HUB_TOKEN}),
        ("README.md", "it is correct-horse-battery!", {"a secret of the environment"}),
        ("README.md", "see /srv/people/marlene/runs/x", {FOLDER, NAME, PATH}),
        ("README.md", "trained on gpu-box-17.", {HOST}),
        ("README.md", "by Marlene, with love", {NAME}),
        ("README.md", "in /home/someone/else", {PATH}),
        ("README.md", "in C:\\\\Users\\\\someone", {PATH}),
        ("README.md", "-----BEGIN RSA PRIVATE KEY-----", {"a private key"}),
        ("README.md", "AKIAABCDEFGHIJKLMNOP", {"an access key"}),
        ("recipe.yaml", "path: file:///x", {PATH}),
        ("metrics.json", ESCAPED, {HUB_TOKEN}),
        ("metrics.json", json.dumps({OTHER: 1}), {HUB_TOKEN}),
        ("tokenizer.json", json.dumps({"vocab": {TOKEN: 1}}), {HUB_TOKEN}),
        ("tokenizer.json", json.dumps({"vocab": {"/srv/people/marlene/runs": 1}}), {FOLDER}),
        ("merges.txt", f"a b\n{TOKEN} c", {HUB_TOKEN}),
        ("tokenizer.model", b"\xff\xfe" + TOKEN.encode() + b"\x00", {HUB_TOKEN}),
        ("chat_template.jinja", "{# /srv/people/marlene/runs #}", {FOLDER, NAME, PATH}),
        ("adapter_config.json", json.dumps({"base": "/tmp/marlene"}), {NAME, PATH}),
        ("adapter_model.safetensors", safetensors({"by": "marlene"}), {NAME}),
        ("adapter_model.safetensors", safetensors({"at": "/home/x/y"}), {PATH}),
        ("adapter_model.safetensors", safetensors({"t": TOKEN}), {HUB_TOKEN}),
        ("loss.png", png((b"tEXt", b"Author\0marlene")), {NAME}),
        ("loss.png", png((b"zTXt", b"t\0\0" + zlib.compress(TOKEN.encode()))), {HUB_TOKEN}),
        ("loss.png", png((b"iTXt", b"t\0\1\0\0\0" + zlib.compress(b"on gpu-box-17"))), {HOST}),
    ],
)  # fmt: skip
def test_what_is_secret_is_found_wherever_it_hides(name: str, content: "str | bytes", kinds):
    data = content.encode() if isinstance(content, str) else content
    assert why_not_its_kind(name, data) == ""
    assert set(findings(name, data, KNOWN)) == kinds


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "pull marlene/model from https://huggingface.co/home/x, path/to/base"),
        ("README.md", 'messages = [{"role": "user"}]; hf_short; marlenes'),
        ("README.md", "https://example.org/tmp/file and 1/2 and and/or"),
        ("tokenizer.json", json.dumps({"vocab": {"marlene": 1, "/tmp/x": 2, "root": 3}})),
        ("adapter_model.safetensors", safetensors({"format": "pt"})),
        ("loss.png", png((b"tEXt", b"Software\0Matplotlib version3.9, https://matplotlib.org/"))),
        ("chat_template.jinja", "{{ 'Q:\\n' + x }}"),
    ],
)
def test_what_is_not_secret_is_let_through(name: str, content: "str | bytes"):
    data = content.encode() if isinstance(content, str) else content
    assert not set(findings(name, data, KNOWN))


def test_a_large_file_is_searched_to_its_last_byte(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    content = bytearray(safetensors(size=3_000_000))
    content[-len(TOKEN) :] = TOKEN.encode()
    path.write_bytes(content)
    assert set(findings("model.safetensors", path, KNOWN)) == {HUB_TOKEN}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics.json", b"{", "not what its name says"),
        ("README.md", b"\xff", "not what its name says"),
        ("loss.png", b"\x80\x04pickle", "it is no PNG"),
        ("loss.png", png() + b"PK\x03\x04", "something stands behind the picture"),
        ("loss.png", png()[:-6], "it is cut off"),
        ("model.safetensors", safetensors() + b"PK\x03\x04", "its size is not that"),
        ("model.safetensors", b"\x80\x04pickle....", "no safetensors header"),
        ("model.safetensors", b"\xff" * 16, "no safetensors header"),
    ],
)
def test_a_file_that_is_something_else_is_refused(name: str, content: bytes, reason: str):
    assert reason in why_not_its_kind(name, content)


@pytest.mark.parametrize(
    "name",
    ["training_args.bin", "optimizer.pt", "run.yaml", "log.jsonl", ".env", "../README.md",
     "a/b.json", "pytorch_model.bin", "evaluation.md", "README.md\n", "model.py", "/config.json"],
)  # fmt: skip
def test_names_outside_the_list_are_not_allowed(name: str):
    assert not is_allowed(name)


def test_this_machine_knows_its_own_secrets(monkeypatch, tmp_path: Path):
    from huggingface_hub import constants

    stored = tmp_path / "stored_tokens"
    stored.write_text(f"[mine]\nhf_token = {OTHER}\n")
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(stored))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-but-long")
    monkeypatch.setenv("USER", "marlene")
    monkeypatch.setenv("LOGNAME", "marlene")
    found = secrets_of_this_machine([tmp_path], ["me/model"])
    values = set().union(*found.values.values())
    assert {TOKEN, OTHER, "correct-horse-battery"} <= values
    assert "false-but-long" not in values
    assert str(tmp_path) in found.folders
    assert "marlene" in found.names["a user name"]
    shown = secrets_of_this_machine([], ["marlene/model"])
    assert "marlene" not in shown.names["a user name"]


@pytest.mark.parametrize(
    ("slot", "content"),
    [
        ("README.md", f"my card\n{TOKEN}\n"),
        ("metrics.json", ESCAPED),
        ("tokenizer.json", json.dumps({"vocab": {TOKEN: 0}})),
        ("chat_template.jinja", f"{{# {TOKEN} #}}"),
        ("adapter_config.json", json.dumps({"note": TOKEN})),
        ("tokenizer_config.json", json.dumps({"auth": TOKEN})),
        ("run.yaml", None),
    ],
)
def test_a_planted_token_stops_the_push_and_is_not_repeated(
    hub: HubServer, run: Path, patience, slot: str, content: str | None
):
    if content is None:
        text = (run / slot).read_text().replace("sft_x_lora.py", TOKEN)
        (run / slot).write_text(text)
    else:
        (run / slot).write_text(content)
    with pytest.raises(HubError) as caught:
        push_run(run, Target("me/run"), patience=patience)
    told = str(caught.value)
    assert "recipe.yaml" in told if slot == "run.yaml" else slot in told
    assert "a token of the Hub" in told
    assert TOKEN not in told
    assert hub.requests == []


def test_a_link_to_another_file_is_not_followed(
    hub: HubServer, run: Path, patience, tmp_path: Path
):
    (tmp_path / "secret.json").write_text("{}")
    (run / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(HubError, match="is no file"):
        push_run(run, Target("me/run"), patience=patience)
    assert hub.requests == []


def test_the_folders_that_a_run_used_are_secret(run: Path, tmp_path: Path):
    from sft_kit.run_record import read_record

    (tmp_path / "rows.jsonl").write_text("{}")
    known = secrets_of_run(run, read_record(run), "me/run")
    assert {str(run), str(tmp_path), str(tmp_path / "bases" / "tiny-base")} <= known.folders


def test_digests_are_those_of_git_and_of_sha256(tmp_path: Path):
    """`printf 'hello\\n' | git hash-object --stdin` and `sha256sum`."""
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    for content in (path, b"hello\n"):
        digest = digest_of(content)
        assert digest.num_bytes == 6
        assert digest.git_id == "ce013625030ba8dba906f756967f9e9ca394464a"
        assert digest.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
