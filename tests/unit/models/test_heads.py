import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.heads import (
    head_modules,
    head_of,
    is_classifier,
    label_names_of,
    load_classifier,
)
from sft_kit.objectives.classification import classification_loss
from sft_kit.settings import ModelSettings

Make = Callable[..., Path]
NAMES = ("negative", "neutral", "positive")
ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert")
DECODERS = ("gpt2", "llama")
HEADS = {
    "bert": ("bert.pooler", "classifier"),
    "roberta": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier",),
    "albert": ("albert.pooler", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),
    "gpt2": ("score",),
    "llama": ("score",),
}
END = 98


def load(folder: Path, names: tuple[str, ...] = NAMES, **options: object):
    known = ("dtype", "quantization", "config")
    settings = {key: options.pop(key) for key in known if key in options}
    return load_classifier(ModelSettings(str(folder), **settings), names, device="cpu", **options)


def save_classifier(folder: Path, target: Path, names: tuple[str, ...], **fields: object) -> Path:
    """Save a classifier as plain transformers makes it from a pretrained checkpoint."""
    torch.manual_seed(21)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        **fields,
    )  # fmt: skip
    model.save_pretrained(target)
    return target


def texts() -> list[torch.Tensor]:
    """Unequal lengths; the second ends in the end-of-text token and the third in two of them."""
    rows = [torch.randint(3, 97, (length,)) for length in (5, 9, 7, 1)]
    rows[1][-1] = END
    rows[2][-2:] = END
    return rows


def pad(rows: list[torch.Tensor], side: str, pad_id: int = END) -> dict[str, torch.Tensor]:
    width = max(len(row) for row in rows) + 1
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, place], mask[number, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs).logits


def alone(model: nn.Module, rows: list[torch.Tensor]) -> torch.Tensor:
    """Each text by itself, without padding and without a mask."""
    return torch.cat([logits(model, input_ids=row[None]) for row in rows])


# --- what the head is ----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", HEADS)
def test_the_head_is_everything_but_the_backbone_and_the_pooler(
    make_checkpoint: Make, architecture: str
):
    model = load(make_checkpoint(architecture))
    assert is_classifier(model)
    assert head_modules(model) == HEADS[architecture]
    assert label_names_of(model.config) == NAMES
    assert model.config.label2id == {name: number for number, name in enumerate(NAMES)}
    assert logits(model, input_ids=torch.tensor([[5, 6, 7]])).shape == (1, 3)
    assert model.config.problem_type == "single_label_classification"


def test_a_language_model_has_no_classification_head(gpt2_model: GPT2LMHeadModel):
    assert not is_classifier(gpt2_model)
    assert head_modules(gpt2_model) == ()
    assert head_of(gpt2_model).note == "head: none"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_the_backbone_is_the_checkpoints(make_checkpoint: Make, architecture: str):
    folder = make_checkpoint(architecture)
    saved = load_file(folder / "model.safetensors")
    model = load(folder)
    prefix = f"{model.base_model_prefix}."
    backbone = {
        name: value for name, value in model.state_dict().items() if name.startswith(prefix)
    }
    assert len(backbone) >= 20
    for name, value in backbone.items():
        found = saved.get(name, saved.get(name.removeprefix(prefix)))
        assert found is not None, name
        assert torch.equal(value, found)


def test_several_labels_a_text_are_named_in_the_config(make_checkpoint: Make):
    model = load(make_checkpoint("bert"), multi_label=True)
    assert model.config.problem_type == "multi_label_classification"


def test_fields_of_the_config_can_be_replaced(make_checkpoint: Make):
    model = load(make_checkpoint("bert"), config={"classifier_dropout": 0.25})
    assert model.dropout.p == 0.25


def test_of_a_foreign_model_all_but_the_pooler_counts_as_drawn(make_checkpoint: Make):
    plain = AutoModelForSequenceClassification.from_pretrained(make_checkpoint("bert"))
    assert head_of(plain).drawn == {"classifier.weight", "classifier.bias"}
    assert head_of(plain).note == "head: of unknown origin (classifier)"


def test_the_head_draws_from_the_global_random_state(make_checkpoint: Make):
    folder = make_checkpoint("roberta")
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(load(folder).classifier.out_proj.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# --- a checkpoint that brings a head -------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_a_head_for_the_same_labels_is_kept(
    make_checkpoint: Make, tmp_path: Path, architecture: str
):
    folder = save_classifier(make_checkpoint(architecture), tmp_path / "done", NAMES)
    saved = load_file(folder / "model.safetensors")
    model = load(folder)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    origin = head_of(model)
    assert origin.drawn == frozenset()
    assert origin.note == ("head: the checkpoint's own, for 3 labels (negative, neutral, positive)")


@pytest.mark.parametrize("names", [("a", "b"), ("positive", "neutral", "negative")])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "llama"])
def test_a_head_for_other_labels_is_drawn_anew_and_the_pooler_stays(
    make_checkpoint: Make, tmp_path: Path, architecture: str, names: tuple[str, ...]
):
    folder = save_classifier(make_checkpoint(architecture), tmp_path / "done", NAMES)
    saved = load_file(folder / "model.safetensors")
    model = load(folder, names)
    prefix = f"{model.base_model_prefix}."
    drawn = {name for name in saved if not name.startswith(prefix)}
    assert head_of(model).drawn == drawn
    for name, value in model.state_dict().items():
        if name in drawn and name.endswith("weight") and value.dim() == 2:
            assert value.shape != saved[name].shape or not torch.equal(value, saved[name])
            assert value.std() > 0.01
        elif name not in drawn:
            assert torch.equal(value, saved[name])
    note = head_of(model).note
    assert f"for {len(names)} labels ({', '.join(names)})" in note
    assert note.endswith("the checkpoint's own is for 3 labels (negative, neutral, positive)")


def test_a_head_for_any_number_of_labels_is_no_head_for_one(make_checkpoint: Make, tmp_path: Path):
    folder = save_classifier(
        make_checkpoint("bert"), tmp_path / "d", NAMES, problem_type="multi_label_classification"
    )
    assert head_of(load(folder)).drawn == {"classifier.weight", "classifier.bias"}
    assert head_of(load(folder, multi_label=True)).drawn == frozenset()


def test_a_pooler_that_the_checkpoint_lacks_is_part_of_the_new_head(make_checkpoint: Make):
    origin = head_of(load(make_checkpoint("bert", "masked")))
    assert {name.rpartition(".")[0] for name in origin.drawn} == {"bert.pooler.dense", "classifier"}
    assert origin.note.startswith("head: new (bert.pooler, classifier), for 3 labels")
    assert head_of(load(make_checkpoint("bert"))).note.startswith("head: new (classifier), ")


def test_what_a_masked_language_model_has_learnt_for_its_head_is_kept(make_checkpoint: Make):
    folder = make_checkpoint("modernbert", "masked")
    saved = load_file(folder / "model.safetensors")
    model = load(folder)
    assert torch.equal(model.head.dense.weight, saved["head.dense.weight"])
    assert head_of(model).drawn == {"classifier.weight", "classifier.bias"}


def test_a_head_that_has_to_be_there_is_required(make_checkpoint: Make, tmp_path: Path):
    plain = make_checkpoint("bert", id2label=dict(enumerate(NAMES)))
    with pytest.raises(CheckpointError, match=r"no weights for classifier \("):
        load(plain, require_head=True)
    folder = save_classifier(plain, tmp_path / "done", NAMES)
    load(folder, require_head=True)
    with pytest.raises(CheckpointError) as caught:
        load(folder, ("no", "yes"), require_head=True)
    assert (
        "it is for 3 labels (negative, neutral, positive), and the labels asked for are "
        "2 labels (no, yes)"
    ) in str(caught.value)


# --- noise and refusals --------------------------------------------------------------------------


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


@pytest.mark.parametrize(("architecture", "stage"), [
    ("bert", "pretrained"), ("bert", "masked"), ("roberta", "masked"), ("distilbert", "masked"),
    ("gpt2", "pretrained"), ("llama", "pretrained"),
])  # fmt: skip
def test_a_new_head_in_the_place_of_the_old_one_is_not_reported(
    make_checkpoint: Make, logged: pytest.LogCaptureFixture, architecture: str, stage: str
):
    load(make_checkpoint(architecture, stage))
    assert not logged.records


def test_layers_that_find_no_place_are_reported(
    make_checkpoint: Make, logged: pytest.LogCaptureFixture
):
    load(make_checkpoint("bert"), config={"num_hidden_layers": 1})
    assert "LOAD REPORT" in logged.text
    assert "encoder.layer.1" in logged.text


def test_weights_that_the_backbone_lacks_are_refused(make_checkpoint: Make):
    folder = make_checkpoint("bert")
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it lacks 1 tensors: bert\.encoder\.layer\.1\."):
        load(folder)


def test_weights_of_other_sizes_are_refused(make_checkpoint: Make):
    with pytest.raises(CheckpointError, match="have other sizes than config"):
        load(make_checkpoint("bert"), config={"intermediate_size": 40})


def test_an_architecture_without_classifier_is_named(chatglm_fixtures: Path):
    folder = next(path.parent for path in sorted(chatglm_fixtures.rglob("config.json")))
    with pytest.raises(CheckpointError, match="chatglm has no classification model"):
        load(folder)


def test_a_decoder_with_a_pooling_of_its_own_is_refused(tmp_path: Path):
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    XLNetLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="xlnet pools in a way of its own"):
        load(tmp_path)


def test_what_the_labels_decide_and_one_label_alone_are_refused_together(make_checkpoint: Make):
    with pytest.raises(ConfigError) as caught:
        load(make_checkpoint("bert"), ("only",), config={"num_labels": 4}, lm_weight=0.5)
    assert [problem.key for problem in caught.value.problems] == [
        "config.num_labels", "label", "lm_weight"
    ]  # fmt: skip


def test_one_label_that_a_text_has_or_has_not_is_accepted(make_checkpoint: Make):
    model = load(make_checkpoint("gpt2"), ("spam",), multi_label=True)
    assert logits(model, input_ids=torch.tensor([[5, 6]])).shape == (1, 1)


# --- pooling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_answers_the_same_for_texts_alone_and_padded_on_either_side(
    make_checkpoint: Make, architecture: str, side: str
):
    model = load(make_checkpoint(architecture))
    rows = texts()
    expected = alone(model, rows)
    assert expected.std() > 0.1
    difference = (logits(model, **pad(rows, side)) - expected).abs()
    assert difference.max() < 1e-5
    assert difference.mean() < 2e-6


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_gives_the_state_of_the_last_token_to_the_head(
    make_checkpoint: Make, architecture: str
):
    model = load(make_checkpoint(architecture))
    for row in texts():
        with torch.no_grad():
            state = model.base_model(row[None]).last_hidden_state[0, len(row) - 1]
        expected = state @ model.score.weight.T
        torch.testing.assert_close(logits(model, input_ids=row[None])[0], expected)


def test_transformers_own_pooling_misses_a_text_that_ends_in_the_padding_token(
    make_checkpoint: Make,
):
    """When this fails, upstream pools by the mask and `sft_kit.models.pooling` may go."""
    model = load(make_checkpoint("gpt2"))
    stock = type(model).__mro__[1]
    assert stock.__module__.startswith("transformers.")
    rows = texts()
    batch = pad(rows, "right")
    with torch.no_grad():
        found = stock.forward(model, **batch).logits
    expected = alone(model, rows)
    assert (found[0] - expected[0]).abs().max() < 1e-5
    assert (found[1] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_answers_the_same_for_texts_alone_and_padded(
    make_checkpoint: Make, architecture: str
):
    model = load(make_checkpoint(architecture))
    rows = texts()
    batch = pad(rows, "right", model.config.pad_token_id)
    expected = alone(model, rows)
    assert expected.std() > 0.05
    assert (logits(model, **batch) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_class_keeps_its_name_and_shows_the_trainer_what_it_takes(
    make_checkpoint: Make, tmp_path: Path, architecture: str
):
    model = load(make_checkpoint(architecture))
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    )
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "labels"} <= set(trainer._signature_columns)
    assert "token_type_ids" not in trainer._signature_columns
    assert trainer.label_names == ["labels"]
    assert trainer.model_accepts_loss_kwargs is False
    model.save_pretrained(tmp_path / "saved")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert type(plain).__name__ == type(model).__name__
    assert plain.config.architectures == [type(plain).__name__]


def test_the_forward_answers_what_it_is_asked_for(make_checkpoint: Make):
    model = load(make_checkpoint("gpt2"))
    batch = pad(texts(), "right")
    labels = torch.tensor([0, 2, 1, 1])
    output = model(**batch, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))
    assert len(output.hidden_states) == 3
    assert output.lm_nll is None
    loss, answer = model(**batch, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(answer, output.logits)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    assert torch.equal(found, output.logits)


# --- padding token -------------------------------------------------------------------------------


def test_a_decoder_without_padding_token_gets_its_end_of_text_and_keeps_its_embeddings(
    make_checkpoint: Make,
):
    folder = make_checkpoint("llama", eos_token_id=[96, 95])
    model = load(folder)
    assert model.config.pad_token_id == 96
    assert model.get_input_embeddings().weight.shape[0] == 99
    assert model.get_input_embeddings().padding_idx is None  # it would never train that token
    assert load(folder, pad_token_id=3).config.pad_token_id == 3
    assert load(make_checkpoint("llama", pad_token_id=5)).config.pad_token_id == 5


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", HEADS)
def test_the_head_is_float32_over_a_backbone_of_half_precision(
    make_checkpoint: Make, architecture: str, dtype: str
):
    model = load(make_checkpoint(architecture), dtype=dtype)
    head = HEADS[architecture]
    for name, parameter in model.named_parameters():
        is_head = name.startswith(tuple(f"{part}." for part in head))
        assert parameter.dtype == (torch.float32 if is_head else getattr(torch, dtype)), name
    rows = texts()[:2]
    output = model(**pad(rows, "right", model.config.pad_token_id or 0)).logits
    assert output.dtype == torch.float32
    output.sum().backward()
    gradient = model.get_submodule(head[-1])
    assert all(parameter.grad is not None for parameter in gradient.parameters())


def test_the_head_works_under_autocast(make_checkpoint: Make):
    for dtype in ("float32", "bfloat16"):
        model = load(make_checkpoint("bert"), dtype=dtype)
        expected = logits(model, input_ids=torch.tensor([[5, 6, 7]]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        classification_loss(found, torch.tensor([1])).backward()
        assert model.classifier.weight.grad.dtype == torch.float32
        assert (found.float() - expected).abs().max() < 0.1


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize(("quantization", "kind"), [("int8", Linear8bitLt), ("nf4", Linear4bit)])
def test_every_linear_layer_of_the_backbone_is_quantized_and_none_of_the_head(
    make_checkpoint: Make, architecture: str, quantization: str, kind: type
):
    folder = make_checkpoint(architecture)
    dense = {
        name
        for name, module in load(folder).named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    model = load(folder, quantization=quantization)
    head = tuple(f"{part}." for part in HEADS[architecture])
    quantized = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert quantized == {name for name in dense if not f"{name}.".startswith(head)}
    assert len(quantized) >= 8
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith(head)
    }
    if quantization == "nf4":
        assert all(
            module.support_avx512bf16_for_cpu is False
            for module in model.modules()
            if isinstance(module, Linear4bit)
        )


# --- language beside the labels ------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_l3_is_that_of_a_language_model_computed_by_hand(
    gpt2_model: GPT2LMHeadModel, gpt2_checkpoint: Path, side: str
):
    model = load(gpt2_checkpoint, lm_weight=0.5)
    rows, labels = [row + 1 for row in texts()], torch.tensor([0, 2, 1, 1])
    terms, answers = [], []
    for row, label in zip(rows, labels, strict=True):
        output = gpt2_model(row[None], output_hidden_states=True)
        scores = output.logits[0, :-1].double().log_softmax(dim=1)
        picked = scores[torch.arange(len(row) - 1), row[1:]]
        terms.append(-picked.mean() if len(row) > 1 else torch.zeros((), dtype=torch.float64))
        state = output.hidden_states[-1][0, -1]
        answers.append(-(model.score.weight @ state).log_softmax(dim=0)[label])
    expected = torch.stack(answers).mean().double() + 0.5 * torch.stack(terms).mean()
    batch = pad(rows, side)
    for mode in (model.train, model.eval):
        mode()
        output = model(**batch)
        torch.testing.assert_close(output.lm_nll.double(), torch.stack(terms), rtol=1e-5, atol=1e-5)
        found = classification_loss(output.logits, labels) + 0.5 * output.lm_nll.mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_language_loss_trains_embeddings_and_backbone(gpt2_checkpoint: Path):
    model = load(gpt2_checkpoint, lm_weight=0.5)
    model(**pad(texts(), "right")).lm_nll.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0


def test_a_language_loss_needs_tied_embeddings(
    llama_model: LlamaForCausalLM, llama_checkpoint: Path
):
    assert not llama_model.config.tie_word_embeddings
    with pytest.raises(ConfigError) as caught:
        load(llama_checkpoint, lm_weight=0.5)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("classify", "lm_weight")
    assert "llama is not read from its embeddings alone" in problem.message


@pytest.mark.parametrize(("cap", "is_plain"), [(2.0, False), (None, True)])
def test_a_language_loss_is_refused_where_logits_are_changed_on_the_way(
    tmp_path: Path, cap: float | None, is_plain: bool
):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, max_position_embeddings=64,
        final_logit_softcapping=cap, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    if is_plain:
        assert load(tmp_path, lm_weight=0.5)(input_ids=torch.tensor([[5, 6]])).lm_nll is not None
        return
    with pytest.raises(ConfigError, match="gemma2 is not read from its embeddings alone"):
        load(tmp_path, lm_weight=0.5)
