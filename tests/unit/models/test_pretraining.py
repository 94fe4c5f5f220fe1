import re
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BertForMaskedLM,
    BertForPreTraining,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.pretraining import (
    auto_class_name,
    checkpoint_of,
    describe_start,
    load_of_kind,
    load_pretraining_model,
    load_pretraining_tokenizer,
    model_source,
)
from sft_kit.settings import ModelSettings, PretrainModelSettings, ScratchModelSettings

from ...recipes.text_runs import SIZES, make_tokenizer
from .conftest import ARCHITECTURES

KINDS = ("causal", "masked", "pairs", "seq2seq")
FITTING = {
    "bert": {"masked", "pairs"},
    "roberta": {"masked"},
    "distilbert": {"masked"},
    "gpt2": {"causal"},
    "llama": {"causal"},
    "t5": {"seq2seq"},
    "bart": {"seq2seq"},
}
SMALL = {name: ARCHITECTURES.get(name, {}) | SIZES.get(name, {}) for name in FITTING}


@pytest.fixture(scope="module")
def tokenizers():
    return {family: make_tokenizer(family) for family in SIZES}


def new(architecture: str, **fields: object) -> PretrainModelSettings:
    config = {k: v for k, v in SMALL[architecture].items() if not k.endswith("_token_id")}
    config.pop("vocab_size", None)
    return PretrainModelSettings(
        tokenizer="unused", architecture=architecture, config=config | fields
    )


def old(folder, **fields: object) -> PretrainModelSettings:
    return PretrainModelSettings(checkpoint=str(folder), **fields)


# --- new models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FITTING)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_is_of_the_kind_or_is_refused_by_name(tokenizers, architecture, kind):
    tokenizer = tokenizers[architecture if architecture in tokenizers else "bert"]
    if kind not in FITTING[architecture]:
        with pytest.raises(ConfigError) as caught:
            load_pretraining_model(new(architecture), tokenizer, kind)
        (problem,) = caught.value.problems
        assert architecture in str(problem)
        return
    model = load_pretraining_model(new(architecture), tokenizer, kind)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.model_type == architecture
    output = model(input_ids=torch.tensor([[5, 6, 7]]), **(
        {"decoder_input_ids": torch.tensor([[5, 6]])} if kind == "seq2seq" else {}
    ))  # fmt: skip
    assert ("seq_relationship_logits" in output) == (kind == "pairs")


def test_an_encoder_may_write_from_left_to_right_if_its_config_says_so(tokenizers):
    model = load_pretraining_model(new("bert", is_decoder=True), tokenizers["bert"], "causal")
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[:, :3], model(changed).logits[:, :3])


def test_a_new_model_follows_the_random_state_and_no_other(tokenizers):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = load_pretraining_model(new("bert"), tokenizers["bert"], "masked")
        return model.get_input_embeddings().weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("architecture", "start"), [("t5", "pad_token"), ("bart", "eos_token")])
def test_a_new_decoder_begins_as_its_family_does(tokenizers, tmp_path, architecture, start):
    tokenizer = tokenizers[architecture]
    model = load_pretraining_model(new(architecture), tokenizer, "seq2seq")
    expected = getattr(tokenizer, f"{start}_id")
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    labels = torch.tensor([[7, 8, -100]])
    shifted = again._shift_right(labels) if architecture == "t5" else None
    if shifted is None:
        from transformers.models.bart.modeling_bart import shift_tokens_right

        config = again.config
        shifted = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    assert shifted.tolist() == [[expected, 7, 8]]
    assert getattr(again.config, "forced_eos_token_id", None) is None
    assert again.generation_config.decoder_start_token_id == expected


def test_a_tokenizer_without_the_token_a_decoder_begins_with_is_refused():
    bare = SimpleNamespace(
        pad_token_id=0, eos_token_id=None, bos_token_id=None, __len__=lambda self: 9
    )
    tokenizer = type("Bare", (), {**vars(bare), "__len__": lambda self: 9})()
    with pytest.raises(CheckpointError, match="no end-of-text token for a decoder to begin with"):
        load_pretraining_model(new("bart"), tokenizer, "seq2seq")


def test_an_adapter_on_a_new_model_is_refused(tokenizers):
    with pytest.raises(ConfigError, match="random weights would stay as they are"):
        load_pretraining_model(new("bert"), tokenizers["bert"], "masked", has_adapter=True)


@pytest.mark.parametrize(("known", "wanted", "fits"), [(2, 2, True), (2, 3, False), (16, 16, True)])
def test_a_model_must_know_all_token_types(tokenizers, tmp_path, known, wanted, fits):
    settings = new("bert", type_vocab_size=known)
    load_pretraining_model(settings, tokenizers["bert"], "masked").save_pretrained(tmp_path)
    for one in (settings, old(tmp_path)):
        if fits:
            load_pretraining_model(one, tokenizers["bert"], "masked", num_token_types=wanted)
            continue
        with pytest.raises(ConfigError, match=re.escape("type_vocab_size=3")):
            load_pretraining_model(one, tokenizers["bert"], "masked", num_token_types=wanted)


def test_a_field_the_architecture_refuses_is_told_in_one_message(tokenizers):
    settings = new("bert", num_attention_heads=5)
    with pytest.raises(CheckpointError, match=r"model\.architecture=bert"):
        load_pretraining_model(settings, tokenizers["bert"], "masked")


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_is(tokenizers, tmp_path):
    made = load_pretraining_model(new("t5"), tokenizers["t5"], "seq2seq")
    made.save_pretrained(tmp_path)
    tokenizers["t5"].save_pretrained(tmp_path)
    loaded = load_pretraining_model(old(tmp_path), tokenizers["t5"], "seq2seq")
    assert isinstance(loaded, T5ForConditionalGeneration)
    assert not loaded.training
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    tokenizer = load_pretraining_tokenizer(old(tmp_path))
    assert tokenizer.get_vocab() == tokenizers["t5"].get_vocab()
    half = load_pretraining_model(old(tmp_path, dtype="bfloat16"), tokenizers["t5"], "seq2seq")
    assert half.dtype == torch.bfloat16


def test_a_checkpoint_without_the_head_for_masks_is_refused(make_checkpoint, tokenizers):
    folder = make_checkpoint("bert")
    with pytest.raises(CheckpointError, match=r"cls\.predictions"):
        load_pretraining_model(old(folder), tokenizers["bert"], "masked")
    with pytest.raises(CheckpointError, match=r"cls\.predictions"):
        load_pretraining_model(old(folder), tokenizers["bert"], "pairs")


def test_only_the_head_for_pairs_may_begin_at_random_and_only_when_all_of_it_trains(
    make_checkpoint, tokenizers
):
    folder = make_checkpoint("bert", "masked")
    model = load_pretraining_model(old(folder), tokenizers["bert"], "pairs")
    assert isinstance(model, BertForPreTraining)
    masked = BertForMaskedLM.from_pretrained(folder).state_dict()
    for name, tensor in masked.items():
        assert torch.equal(model.state_dict()[name], tensor)
    with pytest.raises(CheckpointError, match="seq_relationship"):
        load_pretraining_model(old(folder), tokenizers["bert"], "pairs", has_adapter=True)
    with pytest.raises(CheckpointError, match="seq_relationship"):
        load_of_kind(ModelSettings(str(folder)), "pairs")


@pytest.mark.parametrize(("architecture", "kind"), [("bert", "causal"), ("gpt2", "masked")])
def test_a_checkpoint_of_another_kind_is_refused_before_its_weights_are_read(
    make_checkpoint, tokenizers, architecture, kind
):
    folder = make_checkpoint(architecture)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"found {architecture}, accepts an? .* \(it is an? "):
        load_pretraining_model(old(folder), tokenizers[architecture], kind)


# --- what a run writes down ----------------------------------------------------------------------


def test_the_start_of_a_run_is_its_checkpoint_or_nothing(make_checkpoint):
    folder = make_checkpoint("bert", "masked")
    settings = old(folder, dtype="float16", quantization="nf4", config={"type_vocab_size": 2})
    expected = ModelSettings(str(folder), None, "nf4", True, "float16", {"type_vocab_size": 2})
    assert model_source(settings) == checkpoint_of(settings) == expected
    assert describe_start(old(folder)) == {"base": describe_base(ModelSettings(str(folder)))}
    assert checkpoint_of(new("bert")) is None
    assert describe_start(new("bert")) == {}
    assert model_source(new("gpt2")) == ScratchModelSettings(
        "unused", "gpt2", dict(new("gpt2").config)
    )


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (PretrainModelSettings(), "tokenizer"),
        (PretrainModelSettings(tokenizer="folder"), "architecture"),
    ],
)
def test_settings_without_a_model_say_what_is_missing(settings, missing):
    with pytest.raises(ConfigError, match=rf"model: {missing}: found neither"):
        model_source(settings)


def test_the_named_class_of_transformers_loads_a_model_of_the_kind(make_checkpoint):
    import transformers

    folder = make_checkpoint("gpt2")
    auto = getattr(transformers, auto_class_name("causal"))
    assert isinstance(auto.from_pretrained(folder), GPT2LMHeadModel)
    assert [auto_class_name(kind) for kind in KINDS] == [
        "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForPreTraining",
        "AutoModelForSeq2SeqLM",
    ]  # fmt: skip
