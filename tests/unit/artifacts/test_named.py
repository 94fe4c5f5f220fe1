"""What `sft-kit chat MODEL` takes: run folders, checkpoints, Hub ids; and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sft_kit.artifacts import LoadOptions, load_named, load_run
from sft_kit.artifacts.named import is_run_folder
from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.probe import probe_logits


def test_a_run_folder_loads_as_before(make_run, gpt2_checkpoint: Path):
    folder = make_run(gpt2_checkpoint)
    named = load_named(str(folder), LoadOptions())
    run = load_run(str(folder))
    assert torch.equal(probe_logits(named.model), probe_logits(run.model))
    assert named.info["recipe"] == "sft_x_lora.py"
    assert named.template == run.template


def test_a_run_whose_base_has_moved_takes_its_new_place(make_run, gpt2_checkpoint: Path, tmp_path):
    folder = make_run(gpt2_checkpoint)
    expected = probe_logits(load_run(str(folder)).model)
    moved = gpt2_checkpoint.rename(tmp_path / "moved")
    found = load_named(str(folder), LoadOptions(base=str(moved))).model
    assert torch.equal(probe_logits(found), expected)


def test_a_checkpoint_loads_with_the_default_template(gpt2_checkpoint: Path, gpt2_model):
    loaded = load_named(str(gpt2_checkpoint), LoadOptions())
    assert loaded.template.name == "human-assistant"
    assert not loaded.model.training
    assert torch.equal(probe_logits(loaded.model), probe_logits(gpt2_model))
    assert loaded.info["settings"]["model"]["checkpoint"] == str(gpt2_checkpoint)


def test_a_checkpoint_keeps_a_chat_template_of_its_own(gpt2_checkpoint: Path):
    text = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}"
    (gpt2_checkpoint / "chat_template.jinja").write_text(text, encoding="utf-8")
    loaded = load_named(str(gpt2_checkpoint), LoadOptions())
    assert (loaded.template.name, loaded.template.source) == ("tokenizer", text)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_checkpoint_is_quantized_when_asked(gpt2_checkpoint: Path, quantization: str):
    model = load_named(str(gpt2_checkpoint), LoadOptions(quantization=quantization)).model
    config = model.config.quantization_config
    assert {"int8": config.load_in_8bit, "nf4": config.load_in_4bit}[quantization]


def test_a_checkpoint_has_the_type_that_was_asked_for(gpt2_checkpoint: Path):
    for dtype, expected in {"bfloat16": torch.bfloat16, "auto": torch.float32}.items():
        model = load_named(str(gpt2_checkpoint), LoadOptions(dtype=dtype)).model
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_checkpoint_takes_an_adapter_that_no_run_has_saved(
    make_run, gpt2_checkpoint: Path, tmp_path
):
    run = make_run(gpt2_checkpoint)
    expected = probe_logits(load_run(str(run)).model)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, adapter)
    loaded = load_named(str(gpt2_checkpoint), LoadOptions(adapter=adapter))
    assert torch.equal(probe_logits(loaded.model), expected)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (LoadOptions(adapter=Path("x")), "--adapter"),
        (LoadOptions(quantization="nf4"), "--quantization"),
        (LoadOptions(dtype="float16"), "--dtype"),
        (LoadOptions(config={"n_ctx": 8}), "--config"),
    ],
)
def test_options_of_a_checkpoint_are_refused_for_a_run(
    make_run, gpt2_checkpoint: Path, options: LoadOptions, name: str
):
    folder = make_run(gpt2_checkpoint)
    with pytest.raises(ConfigError, match=f"command line: {name}: does not fit a run folder"):
        load_named(str(folder), options)


def test_a_whole_model_of_a_run_has_the_type_that_was_asked_for(make_run, gpt2_checkpoint: Path):
    folder = str(make_run(gpt2_checkpoint, adapter=False))
    assert load_run(folder).model.dtype == torch.float32
    model = load_run(folder, dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_meaning_of_a_stretched_context_can_be_said(chatglm_fixtures: Path, tmp_path: Path):
    original, folder = chatglm_fixtures / "chatglm2_tiny_fp16", tmp_path / "model"
    shutil.copytree(original, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["_name_or_path"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_ratio": 4}))
    with pytest.raises(CheckpointError, match="whether this is ChatGLM2 or ChatGLM3"):
        load_named(str(folder), LoadOptions())
    linear, theta = (
        probe_logits(load_named(str(folder), LoadOptions(config={"rope_mode": mode})).model)
        for mode in ("linear", "theta")
    )
    model = load_named(str(original), LoadOptions()).model
    ids, mask = torch.arange(1, 33).unsqueeze(0), torch.ones(1, 32)
    with torch.no_grad():  # linear: a token stands at a quarter of its place
        expected = model(ids, attention_mask=mask, position_ids=torch.arange(32)[None] / 4).logits
    torch.testing.assert_close(linear.view_as(expected), expected, rtol=0, atol=1e-5)
    for other in (theta, probe_logits(model)):
        assert (linear - other).abs().max() > 0.01


def test_a_field_that_the_config_lacks_is_refused(gpt2_checkpoint: Path):
    with pytest.raises(ConfigError, match=r"config\.rope_mode: gpt2 has no such field"):
        load_named(str(gpt2_checkpoint), LoadOptions(config={"rope_mode": "linear"}))


def test_the_base_of_a_run_is_refused_for_a_checkpoint(gpt2_checkpoint: Path):
    with pytest.raises(ConfigError, match="--base: is the base of a run folder"):
        load_named(str(gpt2_checkpoint), LoadOptions(base="x"))


def test_the_fast_kernel_refuses_what_it_can_not_compute(gpt2_checkpoint: Path):
    options = LoadOptions(fast_int4=True, dtype="float32", quantization="nf4")
    with pytest.raises(ConfigError) as caught:
        load_named(str(gpt2_checkpoint), options)
    assert [problem.key for problem in caught.value.problems] == ["--dtype", "--quantization"]


def test_a_place_that_is_neither_run_nor_checkpoint_names_both(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no run\.yaml.*train\.output_dir"):
        is_run_folder(str(tmp_path))
    with pytest.raises(CheckpointError, match="does not exist"):
        is_run_folder(str(tmp_path / "a" / "b"))
    with pytest.raises(CheckpointError, match=r"run folder .*, a checkpoint folder or a Hub id"):
        is_run_folder("somebody/something")


def test_an_adapter_alone_asks_for_its_base(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="give its base checkpoint, and --adapter"):
        is_run_folder(str(tmp_path))


@pytest.mark.parametrize("kind", ["checkpoint", "run"])
def test_the_fast_kernel_computes_packed_int4_in_bfloat16(
    make_run, chatglm_fixtures: Path, kind: str
):
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    name = str(folder if kind == "checkpoint" else make_run(folder))
    fast = load_named(name, LoadOptions(fast_int4=True)).model
    exact = probe_logits(load_named(name, LoadOptions()).model)
    layers = [module for module in fast.modules() if isinstance(module, RowwiseQuantLinear)]
    assert len(layers) == 12
    assert all(layer.no_grad_product is not None for layer in layers)
    assert fast.dtype == torch.bfloat16
    slow = load_run(name, dtype="bfloat16") if kind == "run" else None
    slow = slow or load_named(name, LoadOptions(dtype="bfloat16"))
    error, usual = ((probe_logits(model) - exact).abs() for model in (fast, slow.model))
    assert 0 < error.mean() < 2 * usual.mean()


def test_the_fast_kernel_is_refused_where_no_int4_is_packed(gpt2_checkpoint: Path):
    with pytest.raises(CheckpointError, match="fast int4 kernel can't be used"):
        load_named(str(gpt2_checkpoint), LoadOptions(fast_int4=True))


@pytest.mark.parametrize("given", [True, False], ids=["--base", "in its place"])
def test_an_adapter_is_put_on_no_other_base_unless_that_is_asked_for(
    make_run, gpt2_checkpoint: Path, capsys: pytest.CaptureFixture[str], given: bool
):
    folder = make_run(gpt2_checkpoint)
    other = gpt2_checkpoint
    if given:
        other = gpt2_checkpoint.with_name("other")
        shutil.copytree(gpt2_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    base = str(other) if given else None
    with pytest.raises(CheckpointError) as caught:
        load_named(str(folder), LoadOptions(base=base))
    (problem,) = caught.value.problems
    assert f"found {str(other)!r}, but the adapter was trained on {str(gpt2_checkpoint)!r}" in str(
        problem
    )
    assert "n_layer=1 instead of 2" in problem.message
    assert "--force-base" in problem.todo
    (other / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    loaded = load_named(str(folder), LoadOptions(base=base, force_base=True))
    assert loaded.model.config.activation_function == "relu"
    said = capsys.readouterr().err
    assert said.startswith("warning: the adapter in")
    assert 'activation_function="relu" instead of "gelu_new"' in said


def test_a_base_of_the_hub_is_fetched_before_it_is_compared(
    make_run, gpt2_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    from sft_kit.artifacts import load as module
    from sft_kit.run_record import read_record, write_record

    folder = make_run(gpt2_checkpoint)
    record = read_record(folder)
    record["base"] |= {"name": "me/base", "folder": "/gone"}
    record["settings"]["model"]["checkpoint"] = "me/base"
    write_record(folder, record)
    repository = Path(constants.HF_HUB_CACHE) / "models--me--base"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(gpt2_checkpoint / "config.json", snapshot)  # as after a look at the config alone
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)

    def fetch(name: str, config: object, revision: str | None) -> None:
        assert (name, revision) == ("me/base", None)
        shutil.copytree(gpt2_checkpoint, snapshot, dirs_exist_ok=True)

    monkeypatch.setattr(module, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(module, "fetch_weights", fetch)
    try:
        load_run(str(folder))
        config = json.loads((snapshot / "config.json").read_text())
        (snapshot / "config.json").write_text(json.dumps(config | {"n_head": 4}))
        monkeypatch.setattr(module, "fetch_weights", lambda *_: None)
        with pytest.raises(CheckpointError, match=r"n_head=4 instead of 2"):
            load_run(str(folder))
    finally:
        shutil.rmtree(repository)
