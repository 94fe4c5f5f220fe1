import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.adapters import attach_lora, count_parameters, load_adapter
from sft_kit.models.base import load_causal_lm
from sft_kit.models.heads import head_modules, load_classifier
from sft_kit.objectives.classification import classification_loss
from sft_kit.settings import ModelSettings

Make = Callable[..., Path]
NAMES = ("negative", "neutral", "positive")
ARCHITECTURES = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert",
                 "gpt2", "llama"]  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 98, 98], [11, 98, 98, 98]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]),
}
LABELS = torch.tensor([2, 0, 1])


def lora(targets: object = "all-linear", **options: object) -> LoraConfig:
    fields = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "init_lora_weights": True}
    return LoraConfig(target_modules=targets, **(fields | options))


def load(folder: Path, names: tuple[str, ...] = NAMES, quantization: str = "none", **options):
    settings = ModelSettings(str(folder), quantization=quantization)
    return load_classifier(settings, names, device="cpu", **options)


@torch.no_grad()
def logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model.eval()(**(inputs or {"input_ids": IDS})).logits


def train_steps(model: nn.Module, steps: int = 2) -> None:
    """Two steps: the first moves B alone, whose zeros keep A's gradient at zero."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        classification_loss(model(**BATCH).logits, LABELS).backward()
        optimizer.step()
    model.eval()


def head_tensors(model: nn.Module) -> set[str]:
    return {
        f"{name}.{key}"
        for name in head_modules(model)
        for key, _ in model.get_submodule(name).named_parameters()
    }


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): value for name, value in state.items()}


def save(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@pytest.fixture
def trained(make_checkpoint: Make, tmp_path: Path) -> Callable[..., tuple[Path, Path, PeftModel]]:
    """Builds a base, a trained classifier on it and the folder of its adapter."""

    def build(architecture: str, **options: object) -> tuple[Path, Path, PeftModel]:
        base = make_checkpoint(architecture)
        model = attach_lora(load(base), lora(**options))
        train_steps(model)
        return base, save(model, tmp_path / "run"), model

    return build


# --- attach --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_fresh_adapter_changes_no_logit(
    make_checkpoint: Make, architecture: str, quantization: str
):
    model = load(make_checkpoint(architecture), quantization=quantization)
    before = logits(model)
    wrapped = attach_lora(model, lora())
    assert any(isinstance(module, LoraLayer) for module in wrapped.modules())
    assert torch.equal(logits(wrapped), before)


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_linear_covers_the_backbone_and_leaves_the_head_whole(
    make_checkpoint: Make, architecture: str, task: str | None
):
    model = load(make_checkpoint(architecture))
    head = head_modules(model)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and not f"{name}.".startswith(tuple(f"{part}." for part in head))
    }
    wrapped = attach_lora(model, lora(task_type=task)).get_base_model()
    adapted = {name for name, layer in wrapped.named_modules() if isinstance(layer, LoraLayer)}
    whole = {
        name for name, layer in wrapped.named_modules() if isinstance(layer, ModulesToSaveWrapper)
    }
    assert adapted == linear
    assert whole == set(head)


def test_layers_named_like_the_heads_are_adapted_in_the_backbone_only(make_checkpoint: Make):
    model = attach_lora(load(make_checkpoint("bert")), lora(["dense"])).get_base_model()
    adapted = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert len(adapted) == 3 * 2  # attention.output, intermediate and output of two layers
    assert all(name.startswith("bert.encoder.") for name in adapted)


@pytest.mark.parametrize("excluded", [["query"], r".*\.query"])
def test_a_users_own_exclusions_and_whole_modules_stay_in_force(
    make_checkpoint: Make, excluded: object
):
    config = lora(exclude_modules=excluded, modules_to_save=["word_embeddings"])
    model = attach_lora(load(make_checkpoint("bert")), config).get_base_model()
    adapted = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert adapted
    assert not any(name.endswith("query") for name in adapted)
    assert any(name.endswith("key") for name in adapted)
    whole = {n for n, layer in model.named_modules() if isinstance(layer, ModulesToSaveWrapper)}
    assert whole == {"bert.embeddings.word_embeddings", "bert.pooler", "classifier"}


def test_the_head_is_no_target(make_checkpoint: Make):
    with pytest.raises(ConfigError, match=r"found 'classifier', which matches no layer"):
        attach_lora(load(make_checkpoint("bert")), lora(["classifier"]))


def test_adapter_and_head_are_float32_over_half_precision(make_checkpoint: Make):
    settings = ModelSettings(str(make_checkpoint("bert")), dtype="bfloat16")
    model = attach_lora(load_classifier(settings, NAMES, device="cpu"), lora())
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert any("classifier" in name for name in trainable)
    train_steps(model)
    assert all(torch.isfinite(parameter).all() for parameter in trainable.values())


def test_gpt2_layers_are_flagged_as_transposed_beside_a_head_that_is_not(make_checkpoint: Make):
    model = attach_lora(load(make_checkpoint("gpt2")), lora())
    assert model.peft_config["default"].fan_in_fan_out is True


def test_the_head_counts_once(make_checkpoint: Make):
    model = load(make_checkpoint("bert"))
    total = sum(parameter.numel() for parameter in model.parameters())
    head = sum(p.numel() for n in head_modules(model) for p in model.get_submodule(n).parameters())
    wrapped = attach_lora(model, lora(["query"]))
    adapter = 2 * (32 * 4 + 4 * 32)
    assert count_parameters(wrapped).trainable == head + adapter
    assert count_parameters(wrapped).total == total + adapter


@pytest.mark.parametrize("task", ["CAUSAL_LM", "TOKEN_CLS"])
def test_a_task_that_is_no_classification_is_refused(make_checkpoint: Make, task: str):
    with pytest.raises(ConfigError) as caught:
        attach_lora(load(make_checkpoint("bert")), lora(task_type=task))
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("adapter", "task_type")
    assert problem.message == (
        f"found {task}, and the model is a classifier; accepts SEQ_CLS or null"
    )


def test_classification_is_no_task_of_a_language_model(gpt2_model: GPT2LMHeadModel):
    with pytest.raises(ConfigError, match="found SEQ_CLS, and the model is a language model"):
        attach_lora(gpt2_model, lora())


# --- train ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_steps_move_head_and_adapter_and_nothing_of_the_base(
    make_checkpoint: Make, architecture: str, quantization: str
):
    folder = make_checkpoint(architecture)
    model = attach_lora(load(folder, quantization=quantization), lora())
    before = copy.deepcopy(dict(model.named_parameters()))
    train_steps(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    expected = {n for n in before if "lora_" in n or ".modules_to_save." in n}
    assert moved == expected
    assert sum(".modules_to_save." in name for name in moved) == len(
        head_tensors(load_again(model))
    )


def load_again(model: PeftModel) -> nn.Module:
    return load(Path(model.get_base_model().name_or_path))


def test_the_head_of_a_quantized_model_trains_without_adapter(make_checkpoint: Make):
    model = load(make_checkpoint("bert"), quantization="nf4")
    before = copy.deepcopy(dict(model.named_parameters()))
    train_steps(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == head_tensors(model)


# --- save and reload -----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_the_head_is_saved_and_comes_back(trained, architecture: str):
    base, folder, model = trained(architecture)
    expected = logits_of(model)
    fresh = load(base)
    state = model.state_dict()
    saved = saved_tensors(folder)
    for part in head_modules(fresh):
        for key, _ in fresh.get_submodule(part).named_parameters():
            trained_key = f"base_model.model.{part}.modules_to_save.default.{key}"
            assert torch.equal(saved[f"{part}.{key}"], state[trained_key])
    torch.manual_seed(99)  # the head that is drawn on the way is another one
    reloaded = load_adapter(load(base), folder, NAMES)
    assert not reloaded.training
    assert not any(parameter.requires_grad for parameter in reloaded.parameters())
    found = logits_of(reloaded)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def logits_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {"alone": logits(model), "batch": logits(model, **BATCH)}


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_plain_peft_on_plain_transformers_gives_the_same_bits(
    trained, architecture: str, task: str | None
):
    base, folder, model = trained(architecture, task_type=task)
    torch.manual_seed(99)
    plain = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=model.config.pad_token_id
    )
    found = logits_of(PeftModel.from_pretrained(plain, str(folder)))
    expected = logits_of(model)
    assert expected["batch"].std() > 0.1
    assert all(torch.equal(found[key], expected[key]) for key in expected)


PLAIN = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
found = []
for base, folder, pad in json.loads(sys.argv[1]):
    options = {} if folder is None else {"num_labels": 3, "pad_token_id": pad}
    model = AutoModelForSequenceClassification.from_pretrained(base, **options)
    for parameter in model.parameters():  # see `aligned`
        parameter.data = parameter.data.clone()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    batch = {key: torch.tensor(value) for key, value in json.loads(sys.argv[2]).items()}
    with torch.no_grad():
        alone = model(input_ids=torch.tensor(json.loads(sys.argv[3]))).logits
        found.append({"alone": alone.tolist(), "batch": model(**batch).logits.tolist()})
assert "sft_kit" not in sys.modules
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_fresh_process_without_this_package_gives_the_same_bits(
    make_checkpoint: Make, tmp_path: Path
):
    jobs, expected = [], []
    for architecture in ("bert", "gpt2"):
        base = make_checkpoint(architecture)
        for kind in ("lora", "full"):
            model = load(base)
            if kind == "lora":
                model = attach_lora(model, lora())
            train_steps(model)
            folder = tmp_path / f"{architecture}-{kind}"
            model.save_pretrained(str(folder))
            pad = model.config.pad_token_id
            place = [str(base), str(folder), pad] if kind == "lora" else [str(folder), None, pad]
            jobs.append(place)
            expected.append({key: value.tolist() for key, value in logits_of(model).items()})
    batch = {key: value.tolist() for key, value in BATCH.items()}
    arguments = [json.dumps(value) for value in (jobs, batch, IDS.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments], capture_output=True, text=True, check=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == expected  # float32 in full as text


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_whole_model_comes_back_through_plain_transformers_and_through_us(
    make_checkpoint: Make, tmp_path: Path, architecture: str
):
    model = load(make_checkpoint(architecture))
    train_steps(model)
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "run")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert plain.config.id2label == dict(enumerate(NAMES))
    for again in (aligned(plain), load(tmp_path / "run", require_head=True)):
        found = logits_of(again)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def aligned(model: nn.Module) -> nn.Module:
    """Move weights out of the file's memory map, where CPU kernels round differently (2e-7)."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def test_a_quantized_base_gets_its_head_back(make_checkpoint: Make, tmp_path: Path):
    base = make_checkpoint("bert")
    model = attach_lora(load(base, quantization="nf4"), lora())
    train_steps(model)
    expected = logits(model)
    reloaded = load_adapter(load(base, quantization="nf4"), save(model, tmp_path / "run"))
    assert torch.equal(logits(reloaded), expected)


def test_a_head_swapped_after_the_adapter_was_attached_is_not_saved(
    make_checkpoint: Make, tmp_path: Path
):
    """Why the head comes first: PEFT looks for it once, while the adapter is attached."""
    base = make_checkpoint("gpt2")
    language_model = load_causal_lm(ModelSettings(str(base)), device="cpu")
    wrapped = get_peft_model(
        language_model, LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    wrapped.base_model.model.score = nn.Linear(32, 3, bias=False)
    assert not any("score" in name for name in saved_tensors(save(wrapped, tmp_path / "late")))
    with pytest.raises(CheckpointError, match="it has no weights for score"):
        load_adapter(load(base), tmp_path / "late")
    right = attach_lora(load(base), lora())
    assert "score.weight" in saved_tensors(save(right, tmp_path / "right"))


# --- refusals ------------------------------------------------------------------------------------


def drop(folder: Path, part: str) -> None:
    path = folder / "adapter_model.safetensors"
    state = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(state, path)


@pytest.mark.parametrize(
    ("architecture", "part"), [("distilbert", "pre_classifier"), ("roberta", "classifier.out_proj")]
)
def test_a_missing_part_of_the_head_is_named(trained, architecture: str, part: str):
    base, folder, _ = trained(architecture)
    drop(folder, part)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(load(base), folder)
    name = part.partition(".")[0]
    assert f"{folder}: it has no weights for {name} (" in str(caught.value)


def test_an_adapter_without_pooler_needs_a_base_that_has_one(make_checkpoint: Make, tmp_path: Path):
    """So does plain PEFT save a BERT: it knows `classifier`, and trusts the base for the rest."""
    for stage, is_whole in (("pretrained", True), ("masked", False)):
        base = make_checkpoint("bert", stage)
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        wrapped = get_peft_model(plain, lora(["query"]))
        folder = save(wrapped, tmp_path / f"run-{stage}")
        assert not any("pooler" in name for name in saved_tensors(folder))
        if is_whole:
            assert torch.equal(logits(load_adapter(load(base), folder)), logits(wrapped))
        else:
            with pytest.raises(CheckpointError, match=r"it has no weights for bert\.pooler"):
                load_adapter(load(base), folder)


def test_a_head_for_another_number_of_labels_is_refused_with_both(trained):
    base, folder, _ = trained("bert")
    model = load(base, ("no", "yes"))
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, folder)
    assert "its head is for 3 labels, the model's for 2 labels (no, yes)" in str(caught.value)
    assert "size mismatch" not in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, folder, NAMES)
    assert (
        "its head is for 3 labels (negative, neutral, positive), the model's for 2 labels (no, yes)"
    ) in str(caught.value)


def test_a_head_for_other_labels_of_the_same_number_is_refused_where_they_are_known(trained):
    base, folder, _ = trained("gpt2")
    model = load(base, ("a", "b", "c"))
    with pytest.raises(CheckpointError) as caught:
        load_adapter(model, folder, NAMES)
    assert (
        "its head is for 3 labels (negative, neutral, positive), the model's for 3 labels (a, b, c)"
    ) in str(caught.value)
    load_adapter(model, folder)


def test_a_head_of_a_base_of_another_size_is_refused(trained, make_checkpoint: Make):
    _, folder, _ = trained("bert")
    other = make_checkpoint("bert", hidden_size=48)
    with pytest.raises(CheckpointError) as caught:
        load_adapter(load(other), folder)
    assert "its head has other sizes than the model's: bert.pooler.dense.bias, " in str(
        caught.value
    )


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_the_adapter_of_a_language_model_is_refused_by_a_classifier(
    make_checkpoint: Make, tmp_path: Path, task: str | None
):
    base = make_checkpoint("gpt2")
    language_model = load_causal_lm(ModelSettings(str(base)), device="cpu")
    folder = save(attach_lora(language_model, lora(task_type=task)), tmp_path / "lm")
    found = "it was trained for CAUSAL_LM" if task else "it has no weights for score"
    with pytest.raises(CheckpointError, match=found):
        load_adapter(load(base), folder)


@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_the_adapter_of_a_classifier_is_refused_by_a_language_model(trained, task: str | None):
    base, folder, _ = trained("gpt2", task_type=task)
    found = "it was trained for SEQ_CLS" if task else "it has weights for score, which the model"
    with pytest.raises(CheckpointError, match=found):
        load_adapter(load_causal_lm(ModelSettings(str(base)), device="cpu"), folder)


def test_a_head_that_is_missing_is_named(trained):
    base, folder, _ = trained("bert")
    state = load_file(folder / "adapter_model.safetensors")
    kept = {name: value for name, value in state.items() if "classifier" not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="it has no weights for classifier"):
        load_adapter(load(base), folder)


def test_a_damaged_adapter_is_a_message(trained):
    base, folder, _ = trained("bert")
    (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="does not fit the model, or is damaged"):
        load_adapter(load(base), folder)
