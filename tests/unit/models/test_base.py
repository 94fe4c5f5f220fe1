import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.base import (
    context_length,
    load_causal_lm,
    load_config_of,
    load_tokenizer,
    new_config,
)
from sft_kit.models.network import hub_is_reachable
from sft_kit.models.pretraining import load_pretraining_model
from sft_kit.settings import ModelSettings, PretrainModelSettings, ScratchModelSettings

IDS = torch.arange(1, 33).unsqueeze(0)


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    """Forget what the probe of the network found, before and after."""
    hub_is_reachable.cache_clear()
    yield
    hub_is_reachable.cache_clear()


@pytest.fixture
def closed_port(fresh_probe: None, monkeypatch: pytest.MonkeyPatch) -> int:
    """A Hub on this machine that nobody answers for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    point_hub_at(f"http://127.0.0.1:{port}", monkeypatch)
    return port


def point_hub_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what loads ----------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_bit_for_bit_in_evaluation_mode(
    gpt2_checkpoint: Path, gpt2_model: GPT2LMHeadModel
):
    model = load_causal_lm(ModelSettings(str(gpt2_checkpoint)))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, gpt2_model(IDS).logits)


def test_a_llama_is_loaded_bit_for_bit(llama_checkpoint: Path, llama_model: LlamaForCausalLM):
    model = load_causal_lm(ModelSettings(str(llama_checkpoint)))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, llama_model(IDS).logits)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_weights_have_the_type_that_was_asked_for(
    gpt2_checkpoint: Path, dtype: str, expected: torch.dtype
):
    model = load_causal_lm(ModelSettings(str(gpt2_checkpoint), dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_quantized_base_is_frozen_whole(gpt2_checkpoint: Path):
    for quantization in ("int8", "nf4"):
        model = load_causal_lm(ModelSettings(str(gpt2_checkpoint), quantization=quantization))
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("double", [True, False])
def test_double_quantization_follows_its_setting(gpt2_checkpoint: Path, double: bool):
    settings = ModelSettings(str(gpt2_checkpoint), quantization="nf4", double_quantization=double)
    layer = load_causal_lm(settings).transformer.h[0].mlp.c_fc
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested is double


def test_weights_in_several_files_are_one_model(tmp_path: Path, gpt2_model: GPT2LMHeadModel):
    gpt2_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        found = load_causal_lm(ModelSettings(str(tmp_path)))(IDS).logits
        assert torch.equal(found, gpt2_model(IDS).logits)


# --- tokenizers ----------------------------------------------------------------------------------


def test_a_tokenizer_without_padding_token_pads_with_its_end_token(gpt2_checkpoint: Path):
    tokenizer = load_tokenizer(ModelSettings(str(gpt2_checkpoint)))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    assert len(tokenizer) == load_config_of(ModelSettings(str(gpt2_checkpoint))).vocab_size


def test_a_padding_token_of_its_own_is_kept(llama_checkpoint: Path):
    assert load_tokenizer(ModelSettings(str(llama_checkpoint))).pad_token == "<pad>"


def test_the_tokenizer_knows_the_context_length_of_the_model(gpt2_checkpoint: Path):
    assert context_length(load_config_of(ModelSettings(str(gpt2_checkpoint)))) == 256
    assert load_tokenizer(ModelSettings(str(gpt2_checkpoint))).model_max_length == 256


@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize(
    "architecture",
    ["camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm",
     "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
     "bert", "gpt2", "electra", "opt", "bart"],
)  # fmt: skip
def test_a_text_as_long_as_the_context_is_read_and_one_token_more_is_not(architecture, padding):
    fields = {
        "vocab_size": 20, "max_position_embeddings": 12, "pad_token_id": padding, "d_model": 8,
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "bos_token_id": 0, "eos_token_id": 2, "word_embed_proj_dim": 8, "decoder_layers": 1,
        "decoder_attention_heads": 2,
    }  # fmt: skip
    more = {
        "longformer": {"attention_window": 4},
        "luke": {"entity_vocab_size": 5, "entity_emb_size": 8, "cls_entity_prediction": False},
        "lilt": {"channel_shrink_ratio": 1},
        "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
        "esm": {"position_embedding_type": "absolute"},
    }.get(architecture, {})
    known = AutoConfig.for_model(architecture)
    names = {*known.to_dict(), *known.attribute_map}
    kept = {name: value for name, value in fields.items() if name in names}
    config = AutoConfig.for_model(architecture, **(kept | more))
    model = AutoModel.from_config(config).eval()
    length = context_length(config)
    with torch.no_grad():
        model(torch.full((1, length), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, length + 1), 7))


def test_positions_that_rotate_do_not_begin_after_padding():
    fields = {"vocab_size": 20, "pad_token_id": 1, "max_position_embeddings": 12}
    config = AutoConfig.for_model("esm", **fields, position_embedding_type="rotary")
    assert context_length(config) == 12


def test_a_padding_token_that_leaves_no_positions_is_refused():
    fields = {"vocab_size": 20, "max_position_embeddings": 12}
    with pytest.raises(ConfigError, match=r"found 12, and roberta skips 12.*\(raise it\)"):
        context_length(AutoConfig.for_model("roberta", **fields, pad_token_id=11))
    assert context_length(AutoConfig.for_model("roberta", **fields, pad_token_id=10)) == 1


def test_a_folder_with_a_tokenizer_and_no_model_gives_its_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """As in the run folder of an adapter."""
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSettings(str(tmp_path)))
    assert loaded("Water boils")["input_ids"] == tokenizer("Water boils")["input_ids"]


def test_fields_of_the_config_are_replaced_on_loading(gpt2_checkpoint: Path):
    settings = ModelSettings(str(gpt2_checkpoint), config={"attn_pdrop": 0.25, "n_positions": 256})
    model = load_causal_lm(settings)
    assert model.config.attn_pdrop == 0.25
    assert model.transformer.h[0].attn.attn_dropout.p == 0.25


def test_a_field_that_the_config_does_not_have_is_refused_with_the_nearest_name(
    gpt2_checkpoint: Path,
):
    settings = ModelSettings(str(gpt2_checkpoint), config={"atn_pdrop": 0.25, "zzz": 1})
    with pytest.raises(ConfigError) as caught:
        load_causal_lm(settings)
    first, second = caught.value.problems
    assert "did you mean 'attn_pdrop'?" in str(first)
    assert "config.zzz" in str(second)


def test_a_context_set_by_the_config_bounds_the_tokenizer(gpt2_checkpoint: Path):
    settings = ModelSettings(str(gpt2_checkpoint), config={"n_positions": 64})
    assert load_tokenizer(settings).model_max_length == 64


@pytest.fixture
def nameless_chatglm(tmp_path: Path, chatglm_fixtures: Path) -> Path:
    """A ChatGLM3 checkpoint with a stretched context that nothing tells the family of."""
    folder = tmp_path / "model"
    shutil.copytree(chatglm_fixtures / "chatglm3_tiny_fp16", folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("_name_or_path", "auto_map"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config | {"rope_ratio": 4}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer["name_or_path"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_fields_of_the_config_reach_the_tokenizer_too(
    nameless_chatglm: Path, chatglm_fixtures: Path
):
    with pytest.raises(CheckpointError, match="whether this is ChatGLM2 or ChatGLM3"):
        load_tokenizer(ModelSettings(str(nameless_chatglm)))
    settings = ModelSettings(str(nameless_chatglm), config={"family": "chatglm3"})
    tokenizer = load_tokenizer(settings)
    text = (chatglm_fixtures / "chatglm3_tiny_fp16" / "expected_tokenizer.json").read_text()
    expected = json.loads(text)
    history = expected["chat_histories"]["1"]
    question = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template([*history, *question], add_generation_prompt=True)
    assert ids["input_ids"][: len(expected["chat_ids"]["1"]) - 8] == expected["chat_ids"]["1"][:-8]
    # ChatGLM3 multiplies the base of the rotary angles.
    assert load_causal_lm(settings).config.rope_parameters["rope_theta"] == 40000.0


@pytest.mark.parametrize(("mode", "theta", "kind"), [("theta", 40000, "default"),
                                                     ("linear", 10000, "linear")])  # fmt: skip
def test_the_meaning_of_a_stretched_context_can_be_said(
    nameless_chatglm: Path, mode: str, theta: int, kind: str
):
    settings = ModelSettings(str(nameless_chatglm), config={"rope_mode": mode})
    load_tokenizer(settings)
    parameters = load_causal_lm(settings).config.rope_parameters
    assert (parameters["rope_theta"], parameters["rope_type"]) == (theta, kind)


def test_a_checkpoint_that_is_stored_quantized_is_not_quantized_again(chatglm_fixtures: Path):
    packed = str(chatglm_fixtures / "chatglm2_tiny_int4")
    with pytest.raises(ConfigError, match=r"stored quantized already.*set it to none"):
        load_causal_lm(ModelSettings(packed, quantization="nf4"))


def test_a_packed_base_is_frozen_whole(chatglm_fixtures: Path):
    model = load_causal_lm(ModelSettings(str(chatglm_fixtures / "chatglm2_tiny_int4")))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.model.layers[0].mlp.down_proj.weight.dtype == torch.int8


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_chatglm_in_fp16_is_quantized_like_any_other(chatglm_fixtures: Path, quantization: str):
    folder = str(chatglm_fixtures / "chatglm3_tiny_fp16")
    model = load_causal_lm(ModelSettings(folder, quantization=quantization))
    dense = load_causal_lm(ModelSettings(folder))
    with torch.no_grad():
        difference = (model(IDS).logits - dense(IDS).logits).abs().mean()
    assert 0 < difference < 0.5 * dense(IDS).logits.std()


def new_model(
    architecture: str, config: dict[str, object], tokenizer: PreTrainedTokenizerFast
) -> GPT2LMHeadModel:
    settings = PretrainModelSettings(tokenizer="unused", architecture=architecture, config=config)
    return load_pretraining_model(settings, tokenizer, "causal")


def test_a_new_model_fits_its_tokenizer(gpt2_checkpoint: Path):
    config = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
    tokenizer = load_tokenizer(ScratchModelSettings(str(gpt2_checkpoint), config=config))
    model = new_model("gpt2", config, tokenizer)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len(model.transformer.h) == 1


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gpt3", {}),
        ("gpt2", {"n_head": 5}),
        ("gpt2", {"n_head": "two"}),
        ("gpt2", {"activation_function": "nope"}),
        ("gpt2", {"n_embd": -4}),
    ],
)
def test_a_new_model_that_cannot_be_built_is_refused(
    tokenizer: PreTrainedTokenizerFast, architecture: str, config: dict[str, object]
):
    with pytest.raises(CheckpointError, match=f"model.architecture={architecture}"):
        new_model(architecture, config, tokenizer)


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("bert", {"hidden_sise": 12},
         ["hidden_sise: bert has no such field (did you mean 'hidden_size'?)"]),
        ("t5", {"d_mdel": 64}, ["d_mdel: t5 has no such field (did you mean 'd_model'?)"]),
        ("gpt2", {"zzz": None, "n_embd": 16, "n_layr": 1},
         ["zzz: gpt2 has no such field (remove it)",
          "n_layr: gpt2 has no such field (did you mean 'n_layer'?)"]),
    ],
)  # fmt: skip
def test_a_field_that_a_new_model_does_not_have_is_refused_with_the_nearest_name(
    tokenizer: PreTrainedTokenizerFast, architecture: str, fields: dict, expected: list[str]
):
    with pytest.raises(ConfigError) as caught:
        new_config(ScratchModelSettings("unused", architecture, fields), tokenizer)
    assert [str(problem) for problem in caught.value.problems] == [
        f"model.config.{line}" for line in expected
    ]


def test_other_and_older_names_of_a_field_of_a_new_model_are_taken(
    tokenizer: PreTrainedTokenizerFast,
):
    config = new_config(ScratchModelSettings("", "gpt2", {"hidden_size": 16}), tokenizer)
    assert config.n_embd == 16
    config = new_config(ScratchModelSettings("", "llama", {"rope_theta": 123.0}), tokenizer)
    assert config.rope_parameters["rope_theta"] == 123.0


def test_a_vocabulary_other_than_the_tokenizers_is_refused(tokenizer: PreTrainedTokenizerFast):
    num_tokens = len(tokenizer)
    fields = {
        "vocab_size": 50, "pad_token_id": num_tokens, "eos_token_id": -1,
        "bos_token_id": num_tokens - 1, "sep_token_id": None,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        new_config(ScratchModelSettings("unused", "bert", fields), tokenizer)
    has = f"the tokenizer has {num_tokens} tokens (remove it)"
    assert str(caught.value).splitlines()[1:4] == [
        f"  model.config.vocab_size: found 50, {has}",
        f"  model.config.pad_token_id: found {num_tokens}, {has}",
        f"  model.config.eos_token_id: found -1, {has}",
    ]
    same = {"vocab_size": num_tokens, "bos_token_id": num_tokens - 1}
    config = new_config(ScratchModelSettings("unused", "bert", same), tokenizer)
    assert (config.vocab_size, config.bos_token_id) == (num_tokens, num_tokens - 1)


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        ("brt", {}, "model.architecture=brt: transformers has no such architecture "
                    "(did you mean 'bart', 'bert'"),
        ("qqqqqqqqqq", {}, "has no such architecture (name one, such as bert or t5)"),
        ("gpt2", {"n_embd": 16, "n_head": 0}, "model.config.n_head: found 0, accepts no 0 ("),
        ("gpt2", {"n_embd": -4}, "model.config.n_embd: found -4, accepts no number below 0 ("),
        ("gpt2", {"n_head": "two"}, "model.config.n_head: expected int, got str (value: 'two') ("),
        ("bert", {"pad_token_id": "x"}, "model.config.pad_token_id: with value 'x' doesn't match"),
        ("gpt2", {"n_layer": 1, "n_embd": 24, "activation_function": "nope"},
         "model.config.activation_function: found 'nope', which is unknown ("),
        ("llama", {"hidden_size": 30, "num_attention_heads": 4},
         "model.config: The hidden size (30) is not a multiple of"),
    ],
)  # fmt: skip
def test_what_a_new_config_refuses_is_told_in_one_short_sentence(
    tokenizer: PreTrainedTokenizerFast, architecture: str, fields: dict, expected: str
):
    with pytest.raises(CheckpointError) as caught:
        new_model(architecture, fields, tokenizer)
    _, line = str(caught.value).splitlines()
    assert expected in line
    assert line.startswith(f"  model.architecture={architecture}: ")
    assert len(line) < 220


# --- what does not load --------------------------------------------------------------------------


def damage_nothing_but(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


MODEL_DAMAGE: dict[str, Callable[[Path], None]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config cut": cut("config.json", 0.5),
    "config not utf-8": damage_nothing_but("config.json", b"\xff\xfe{}"),
    "config a list": damage_nothing_but("config.json", b"[]"),
    "model type unknown": lambda folder: edit_config(folder, model_type="gpt-900"),
    "model type a number": lambda folder: edit_config(folder, model_type=5),
    "model type without decoder": lambda folder: edit_config(folder, model_type="t5"),
    "other architecture": lambda folder: edit_config(folder, model_type="openai-gpt"),
    "hidden size wrong": lambda folder: edit_config(folder, n_embd=48),
    "vocabulary wrong": lambda folder: edit_config(folder, vocab_size=999),
    "vocabulary negative": lambda folder: edit_config(folder, vocab_size=-3),
    "a layer too many": lambda folder: edit_config(folder, n_layer=3),
    "heads do not divide": lambda folder: edit_config(folder, n_head=5),
    "heads as text": lambda folder: edit_config(folder, n_head="two"),
    "activation unknown": lambda folder: edit_config(folder, activation_function="nope"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "pickled weights": pickle_weights,
    "weights empty": damage_nothing_but("model.safetensors", b""),
    "weights garbage": damage_nothing_but("model.safetensors", b"\xff" * 64),
    "weights cut in the header": cut("model.safetensors", 0.001),
    "weights cut in the data": cut("model.safetensors", 0.9),
    "a tensor missing": drop_tensor,
}
TOKENIZER_DAMAGE: dict[str, Callable[[Path], None]] = {
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")] and None,
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer.json cut": cut("tokenizer.json", 0.5),
    "tokenizer.json without content": damage_nothing_but("tokenizer.json", b"{}"),
    "tokenizer.json not utf-8": damage_nothing_but("tokenizer.json", b"\xff\xfe"),
    "tokenizer_config.json cut": cut("tokenizer_config.json", 0.5),
    "tokenizer_config.json a list": damage_nothing_but("tokenizer_config.json", b"[]"),
    "config cut": cut("config.json", 0.5),
}


@pytest.mark.parametrize("damage", MODEL_DAMAGE.values(), ids=list(MODEL_DAMAGE))
def test_a_damaged_model_is_refused_by_name(gpt2_checkpoint: Path, damage: Callable[[Path], None]):
    damage(gpt2_checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_causal_lm(ModelSettings(str(gpt2_checkpoint)))
    assert str(gpt2_checkpoint) in caught.value.summary
    assert [problem.key for problem in caught.value.problems] == ["model.checkpoint"]
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("damage", TOKENIZER_DAMAGE.values(), ids=list(TOKENIZER_DAMAGE))
def test_a_damaged_tokenizer_is_refused_by_name(
    gpt2_checkpoint: Path, damage: Callable[[Path], None]
):
    damage(gpt2_checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(ModelSettings(str(gpt2_checkpoint)))
    assert str(gpt2_checkpoint) in caught.value.summary
    assert len(str(caught.value).splitlines()) == 2


def test_missing_tensors_are_counted_and_named_instead_of_drawn_at_random(gpt2_checkpoint: Path):
    drop_tensor(gpt2_checkpoint)
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors: transformer\.h\.1\.attn\.c_attn\.weight"
    ):
        load_causal_lm(ModelSettings(str(gpt2_checkpoint), quantization="nf4"))


@pytest.mark.parametrize("model_type", ["made-up-architecture", "gpt2"])
def test_code_of_a_checkpoint_is_never_run(gpt2_checkpoint: Path, model_type: str):
    canary = gpt2_checkpoint / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    (gpt2_checkpoint / "own_code.py").write_text(code)
    auto_map = {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"}
    edit_config(gpt2_checkpoint, model_type=model_type, auto_map=auto_map)
    if model_type == "gpt2":  # transformers has a class of its own for it
        load_causal_lm(ModelSettings(str(gpt2_checkpoint)))
    else:
        with pytest.raises(CheckpointError, match="Python code of its own, which is never run"):
            load_causal_lm(ModelSettings(str(gpt2_checkpoint)))
    assert not canary.exists()


def test_the_canary_above_would_run_if_code_were_trusted(gpt2_checkpoint: Path):
    from transformers import AutoConfig

    canary = gpt2_checkpoint / "canary"
    code = (
        f"open({str(canary)!r}, 'w').close()\nfrom transformers import PreTrainedConfig\n"
        "class Config(PreTrainedConfig):\n    model_type = 'made-up-architecture'\n"
    )
    (gpt2_checkpoint / "own_code.py").write_text(code)
    edit_config(
        gpt2_checkpoint,
        model_type="made-up-architecture",
        auto_map={"AutoConfig": "own_code.Config"},
    )
    AutoConfig.from_pretrained(gpt2_checkpoint, trust_remote_code=True, local_files_only=True)
    assert canary.exists()


def test_a_file_instead_of_a_folder_is_named_as_one(gpt2_checkpoint: Path):
    name = str(gpt2_checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="a file") as caught:
        load_causal_lm(ModelSettings(name))
    assert caught.value.problems[0].todo == "name its folder"


# --- the Hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai-community/gpt2", "no/such/folder", "a b!", "gpt2"])
def test_without_network_a_hub_id_ends_in_one_message_that_names_the_way_on(
    name: str, closed_port: int
):
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        load_causal_lm(ModelSettings(name))
    assert time.perf_counter() - started < 1.0
    message = str(caught.value)
    assert f"found {name!r}: the Hub can't be reached from here" in message
    assert "model.checkpoint=data/checkpoints/tiny-gpt2" in message


@pytest.mark.parametrize(
    ("name", "embedded"),
    [("google-bert/bert-base-chinese", "bert-chinese"), ("FacebookAI/roberta-base", "bert-chinese"),
     ("google-t5/t5-small", "t5"), ("facebook/bart-base", "t5"),
     ("THUDM/chatglm2-6b", "chatglm2-int4"), ("distilbert/distilgpt2", "gpt2"),
     ("meta/llama", "gpt2")],
)  # fmt: skip
def test_without_network_the_checkpoint_of_the_same_kind_is_proposed(
    offline: None, name: str, embedded: str
):
    with pytest.raises(CheckpointError) as caught:
        load_config_of(ModelSettings(name))
    folder = f"data/checkpoints/tiny-{embedded}"
    assert f"model.checkpoint={folder} to the command" in str(caught.value)
    assert Path(folder, "config.json").is_file()


@pytest.mark.parametrize("name", ["runs/nope", "owner/bert"])
def test_a_missing_tokenizer_of_a_new_model_is_to_be_trained(offline: None, name: str):
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(ScratchModelSettings(name, "bert"))
    (problem,) = caught.value.problems
    assert problem.key == "model.tokenizer"
    assert "sft-kit tokenizer train TEXTS --family FAMILY --output FOLDER" in problem.todo
    assert "checkpoint" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "todo"),
    [
        ("other.txt", "", "train one with `sft-kit tokenizer train"),
        ("tokenizer.json", "{", "it needs tokenizer.json and tokenizer_config.json, whole"),
        ("config.json", '{"model_type": "gpt2"}', "copy tokenizer.json"),
    ],
)
def test_a_folder_without_tokenizer_is_named_by_the_setting_of_the_tokenizer(
    tmp_path: Path, file: str, content: str, todo: str
):
    (tmp_path / file).write_text(content)
    for place in (tmp_path, tmp_path / file):
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(ScratchModelSettings(str(place), "bert"))
        (problem,) = caught.value.problems
        assert problem.key == "model.tokenizer"
        assert (todo if place == tmp_path else "name its folder") in problem.todo


def test_a_closed_port_is_told_within_a_second(closed_port: int):
    started = time.perf_counter()
    assert not hub_is_reachable()
    assert time.perf_counter() - started < 1.0


def test_a_listening_hub_is_reachable(fresh_probe: None, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_hub_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        assert hub_is_reachable()


def test_offline_mode_asks_nobody(fresh_probe: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it asked"))
    assert not hub_is_reachable()


def test_behind_a_proxy_the_client_is_left_to_find_out(
    fresh_probe: None, monkeypatch: pytest.MonkeyPatch
):
    point_hub_at("https://hub.example", monkeypatch)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it asked"))
    assert hub_is_reachable()


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:none", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_no_address_is_not_reachable(
    endpoint: str, fresh_probe: None, monkeypatch: pytest.MonkeyPatch
):
    point_hub_at(endpoint, monkeypatch)
    assert not hub_is_reachable()
