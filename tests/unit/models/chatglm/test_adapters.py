"""Original layer names and old adapters, against LoRA on the fused layers computed by hand."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.adapters import ParameterCount, attach_lora, count_parameters, load_adapter
from sft_kit.models.base import load_causal_lm
from sft_kit.models.chatglm.adapters import convert_adapter
from sft_kit.models.chatglm.layers import rename_layers
from sft_kit.models.chatglm.old_adapters import has_old_names
from sft_kit.models.merging import merge, to_dense
from sft_kit.settings import ModelSettings

FOLDERS = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"]
LAYERS = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h",
          "mlp.dense_4h_to_h")  # fmt: skip
RANK, ALPHA = 4, 10
Tensors = dict[str, Tensor]

# As PEFT 0.3.0 wrote it; 0.2 also has `enable_lora` and `merge_weights`.
OLD_SETTINGS: dict[str, object] = {
    "base_model_name_or_path": "/models/base", "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "lora_alpha": ALPHA, "lora_dropout": 0.1,
    "merge_weights": False, "enable_lora": None, "modules_to_save": None, "peft_type": "LORA",
    "r": RANK, "target_modules": ["query_key_value"], "task_type": "CAUSAL_LM",
}  # fmt: skip


def load(folder: Path):
    return load_causal_lm(ModelSettings(str(folder), dtype="float32"))


def logits(model: nn.Module) -> Tensor:
    """Logits (T, V), computed in float64: float32 alone moves them by 2e-5."""
    nn.Module.to(model, torch.float64)
    ids = torch.arange(1, 33).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


def original_name(layer: int, name: str) -> str:
    return f"transformer.encoder.layers.{layer}.{name}"


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / request.param


@pytest.fixture
def fp16(chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / "chatglm2_tiny_fp16"


def fused_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """(output, input) size of the original layers, from the original config."""
    config = json.loads((folder / "config.json").read_text())
    query = config["num_attention_heads"] * config["kv_channels"]
    key = config["multi_query_group_num"] * config["kv_channels"]
    hidden, ffn = config["hidden_size"], config["ffn_hidden_size"]
    sizes = ((query + 2 * key, hidden), (hidden, query), (2 * ffn, hidden), (hidden, ffn))
    names = dict(zip(LAYERS, sizes, strict=True))
    found = {
        original_name(layer, name): size
        for layer in range(config["num_layers"])
        for name, size in names.items()
    }
    vocabulary = config["padded_vocab_size"]
    return found | {
        "transformer.output_layer": (vocabulary, hidden),
        "transformer.embedding.word_embeddings": (vocabulary, hidden),
    }


def random_lora(folder: Path, layers: tuple[str, ...] = LAYERS, rank: int = RANK) -> Tensors:
    """A fused adapter with an effect, as old PEFT saved it."""
    generator = torch.Generator().manual_seed(3)
    tensors: Tensors = {}
    for name, (num_out, num_in) in fused_shapes(folder).items():
        if name.endswith(tuple(layers)):
            key = f"base_model.model.{name}"
            draw = {"lora_A": (rank, num_in), "lora_B": (num_out, rank)}
            for part, shape in draw.items():
                values = 0.1 * torch.randn(shape, generator=generator)
                tensors[f"{key}.{part}.weight"] = values
    return tensors


def save_old(target: Path, tensors: Tensors, *, binary: bool = True, **settings: object) -> Path:
    target.mkdir()
    text = json.dumps(OLD_SETTINGS | settings)
    (target / "adapter_config.json").write_text(text, encoding="utf-8")
    if binary:
        torch.save(tensors, target / "adapter_model.bin")
    else:
        save_file(tensors, target / "adapter_model.safetensors")
    return target


def by_hand(folder: Path, change: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Logits of a model whose *fused* weights were changed, before they are cut into layers.

    Args:
        folder: Checkpoint.
        change: Original name of a layer and its weight -> the weight to compute with.
    """
    model = to_dense(load(folder))
    nn.Module.to(model, torch.float64)
    parts = model.state_dict()
    cut = ("q_proj", "k_proj", "v_proj")
    for layer in range(model.config.num_hidden_layers):
        block = f"model.layers.{layer}"
        names = {
            "self_attention.query_key_value": [f"{block}.self_attn.{part}.weight" for part in cut],
            "self_attention.dense": [f"{block}.self_attn.o_proj.weight"],
            "mlp.dense_h_to_4h": [f"{block}.mlp.gate_up_proj.weight"],
            "mlp.dense_4h_to_h": [f"{block}.mlp.down_proj.weight"],
        }
        for name, pieces in names.items():
            fused = change(
                original_name(layer, name), torch.cat([parts[piece] for piece in pieces])
            )
            sizes = [len(parts[piece]) for piece in pieces]
            parts.update(zip(pieces, fused.split(sizes), strict=True))
    output = parts["lm_head.weight"]
    parts["lm_head.weight"] = change("transformer.output_layer", output)
    model.load_state_dict(parts)
    return logits(model)


def plain_lora(tensors: Tensors, scale: float = ALPHA / RANK) -> Callable[[str, Tensor], Tensor]:
    """W + alpha / r * B @ A, layer by layer."""

    def change(name: str, weight: Tensor) -> Tensor:
        key = f"base_model.model.{name}"
        if f"{key}.lora_A.weight" not in tensors:
            return weight
        delta = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        return weight + scale * delta

    return change


def difference(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def adapted_layers(model: nn.Module) -> set[str]:
    names = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name.removeprefix("base_model.model.") for name in names}


def lora(targets: object, **options: object) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=targets, **options)


# --- old adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_an_old_adapter_gives_the_logits_of_the_fused_layers_by_hand(
    folder: Path, tmp_path: Path, binary: bool
):
    tensors = random_lora(folder)
    adapter = save_old(tmp_path / "old", tensors, binary=binary, target_modules=list(LAYERS))
    base = load(folder)
    before = logits(base)
    model = load_adapter(base, adapter)
    expected = by_hand(folder, plain_lora(tensors))
    assert difference(before, expected) > 1
    assert difference(logits(model), expected) < 1e-5
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_converted_adapter_is_a_plain_one_for_peft(folder: Path, tmp_path: Path):
    tensors = random_lora(folder, ("query_key_value",))
    base = load(folder)
    convert_adapter(save_old(tmp_path / "old", tensors), tmp_path / "new", base.config)
    settings = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["k_proj", "q_proj", "v_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)
    assert settings["base_model_name_or_path"] == "/models/base"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    model = PeftModel.from_pretrained(base, tmp_path / "new").eval()
    assert difference(logits(model), by_hand(folder, plain_lora(tensors))) < 1e-5


def test_the_three_layers_share_a_and_cut_b_by_rows(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16, ("query_key_value",))
    convert_adapter(save_old(tmp_path / "old", tensors), tmp_path / "new", load(fp16).config)
    found = load_file(tmp_path / "new" / "adapter_model.safetensors")
    old = f"base_model.model.{original_name(1, 'self_attention.query_key_value')}"
    new = "base_model.model.model.layers.1.self_attn"
    fused = tensors[f"{old}.lora_B.weight"]
    for part, rows in {"q_proj": (0, 64), "k_proj": (64, 96), "v_proj": (96, 128)}.items():
        assert torch.equal(found[f"{new}.{part}.lora_A.weight"], tensors[f"{old}.lora_A.weight"])
        assert torch.equal(found[f"{new}.{part}.lora_B.weight"], fused[slice(*rows)])
    assert len(fused) == 128
    assert len(found) == 2 * 3 * 2


def test_ranks_and_alphas_of_single_layers_are_kept(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16, ("query_key_value", "dense"))
    wide = random_lora(fp16, ("query_key_value",), rank=6)
    special = f"base_model.model.{original_name(1, 'self_attention.query_key_value')}"
    tensors |= {key: value for key, value in wide.items() if key.startswith(special)}
    adapter = save_old(
        tmp_path / "old", tensors,
        rank_pattern={"layers.1.self_attention.query_key_value": 6},
        alpha_pattern={"layers.1.self_attention.query_key_value": 3},
    )  # fmt: skip

    def change(name: str, weight: Tensor) -> Tensor:
        is_special = special.endswith(name)
        return plain_lora(tensors, 3 / 6 if is_special else ALPHA / RANK)(name, weight)

    model = load_adapter(load(fp16), adapter)
    assert difference(logits(model), by_hand(fp16, change)) < 1e-5


def test_an_adapter_of_some_blocks_stays_in_them(fp16: Path, tmp_path: Path):
    tensors = {key: value for key, value in random_lora(fp16).items() if ".layers.1." in key}
    adapter = save_old(tmp_path / "old", tensors, layers_to_transform=[1])
    model = load_adapter(load(fp16), adapter)
    assert len(adapted_layers(model)) == 6
    assert all(name.startswith("model.layers.1.") for name in adapted_layers(model))
    assert difference(logits(model), by_hand(fp16, plain_lora(tensors))) < 1e-5


def test_rank_stabilised_scaling_is_kept(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16)
    model = load_adapter(load(fp16), save_old(tmp_path / "old", tensors, use_rslora=True))
    expected = by_hand(fp16, plain_lora(tensors, ALPHA / RANK**0.5))
    assert difference(logits(model), expected) < 1e-5


def test_dora_magnitudes_are_cut_by_rows(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16)
    generator = torch.Generator().manual_seed(4)
    for key in [key for key in tensors if key.endswith("lora_B.weight")]:
        name = key.replace("lora_B.weight", "lora_magnitude_vector")
        tensors[name] = 1 + torch.rand(len(tensors[key]), generator=generator)

    def change(name: str, weight: Tensor) -> Tensor:
        adapted = plain_lora(tensors)(name, weight)
        magnitude = tensors.get(f"base_model.model.{name}.lora_magnitude_vector")
        if magnitude is None:
            return weight
        return adapted * (magnitude / adapted.norm(dim=1))[:, None]

    model = load_adapter(load(fp16), save_old(tmp_path / "old", tensors, use_dora=True))
    assert difference(logits(model), by_hand(fp16, change)) < 1e-4


def test_the_output_layer_can_have_an_adapter_or_be_saved_whole(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16, ("output_layer", "dense"))
    model = load_adapter(load(fp16), save_old(tmp_path / "lora", tensors))
    assert difference(logits(model), by_hand(fp16, plain_lora(tensors))) < 1e-5

    whole = torch.randn(fused_shapes(fp16)["transformer.output_layer"])
    tensors = random_lora(fp16, ("dense",))
    old = tensors | {"base_model.model.transformer.output_layer.weight": whole}
    model = load_adapter(
        load(fp16), save_old(tmp_path / "whole", old, modules_to_save=["output_layer"])
    )

    def change(name: str, weight: Tensor) -> Tensor:
        return whole if name.endswith("output_layer") else plain_lora(tensors)(name, weight)

    assert difference(logits(model), by_hand(fp16, change)) < 1e-5


def test_the_embedding_can_have_an_adapter(fp16: Path, tmp_path: Path):
    rows, hidden = fused_shapes(fp16)["transformer.embedding.word_embeddings"]
    key = "base_model.model.transformer.embedding.word_embeddings"
    tensors = {
        f"{key}.lora_embedding_A": torch.randn(RANK, rows) * 0.1,
        f"{key}.lora_embedding_B": torch.randn(hidden, RANK) * 0.1,
    }
    model = load_adapter(load(fp16), save_old(tmp_path / "old", tensors))
    base = load(fp16)
    a, b = tensors.values()
    base.model.embed_tokens.weight.data += ALPHA / RANK * (b @ a).T
    assert difference(logits(model), logits(base)) < 1e-5


def test_an_adapter_saved_here_is_loaded_without_conversion(folder: Path, tmp_path: Path):
    model = attach_lora(load(folder), lora(["query_key_value"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    expected = logits(model.eval())
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    again = load_adapter(load(folder), tmp_path)
    assert torch.equal(logits(again), expected)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "prefixes .*have no place.*train a LoRA adapter"),
        ({"peft_type": "P_TUNING"}, "prefixes .*have no place"),
        ({"peft_type": "ADALORA"}, "found 'ADALORA', accepts LORA"),
        ({"enable_lora": [True, False, True]}, "enable_lora: found .*no equivalent"),
        ({"layer_replication": [[0, 1]]}, "layer_replication: found .*no equivalent"),
        ({"bias": "lora_only"}, "bias: found 'lora_only', accepts none"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights: found 'pissa', which changed the base",
        ),
        ({"r": None}, "r: found None, accepts a number"),
    ],
)
def test_an_adapter_that_means_something_else_is_refused(
    fp16: Path, tmp_path: Path, settings: dict[str, object], message: str
):
    adapter = save_old(tmp_path / "old", random_lora(fp16), **settings)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(load(fp16), adapter)


def change_first(part: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        key = next(key for key in tensors if part in key)
        changed = change(tensors.pop(key))
        if changed is not None:
            tensors[key] = changed

    return apply


def rename_first(old: str, new: str) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        key = next(key for key in tensors if old in key)
        tensors[key.replace(old, new)] = tensors.pop(key)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            change_first("lora_B", lambda value: value[:-1]),
            "lora_B.weight: found 127 x 4, .*128 x 4",
        ),
        (
            change_first("lora_A", lambda value: value[:, 1:]),
            "lora_A.weight: found 4 x 63, .*4 x 64",
        ),
        (change_first("lora_A", lambda value: value[1:]), "lora_A.weight: found 3 x 64, .*4 x 64"),
        (change_first("lora_B", lambda _: None), "lora_B.weight: found none, .*128 x 4"),
        (rename_first("layers.0", "layers.7"), "layers.7.*: the base, which has 2 blocks"),
        (rename_first("lora_A.weight", "lora_A.other.weight"), "lora_A.other: the base, which"),
        (rename_first("lora_A.weight", "lora_E"), "lora_E: accepts LoRA tensors"),
        (rename_first("lora_A.weight", "weight"), "query_key_value.weight: found"),
    ],
)
def test_tensors_that_fit_no_layer_are_refused(
    fp16: Path, tmp_path: Path, damage: Callable[[Tensors], None], message: str
):
    tensors = random_lora(fp16)
    damage(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(load(fp16), save_old(tmp_path / "old", tensors))


def test_all_problems_are_reported_at_once(fp16: Path, tmp_path: Path):
    tensors = {key: value[:, :3] for key, value in random_lora(fp16).items()}
    with pytest.raises(CheckpointError) as caught:
        load_adapter(load(fp16), save_old(tmp_path / "old", tensors))
    assert len(caught.value.problems) == len(tensors) == 16


def test_nothing_in_a_pickle_is_run(fp16: Path, tmp_path: Path):
    class Marker:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    adapter = save_old(tmp_path / "old", {})
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"x": Marker()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"adapter_model.bin: found a bare pickle"):
        load_adapter(load(fp16), adapter)
    assert not (tmp_path / "executed").exists()


def test_an_adapter_of_the_loaded_layers_in_bin_is_the_adapter_and_is_not_unpickled(
    fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = attach_lora(load(fp16), lora(["q_proj", "dense"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = logits(load_adapter(load(fp16), tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    assert torch.equal(logits(load_adapter(load(fp16), tmp_path)), expected)
    assert not torch.equal(logits(load(fp16)), expected)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_damaged_file_is_an_error_in_words(fp16: Path, tmp_path: Path, name: str, content: bytes):
    adapter = save_old(tmp_path / "old", {})
    (adapter / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: it is damaged"):
        load_adapter(load(fp16), adapter)


def test_an_empty_adapter_and_settings_that_are_none_are_refused(fp16: Path, tmp_path: Path):
    adapter = save_old(tmp_path / "old", {})
    with pytest.raises(CheckpointError, match="it holds no tensors"):
        load_adapter(load(fp16), adapter)
    for text in ("{", "[]", "\udcff"):
        (adapter / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CheckpointError, match=r"adapter_config\.json can't be read"):
            load_adapter(load(fp16), adapter)


def test_a_folder_without_settings_or_weights_holds_no_adapter(fp16: Path, tmp_path: Path):
    base = load(fp16)
    with pytest.raises(CheckpointError, match=r"it has no adapter_config\.json"):
        load_adapter(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(OLD_SETTINGS))
    with pytest.raises(CheckpointError, match=r"it has no adapter_model\.safetensors \("):
        load_adapter(base, tmp_path)


# --- names of target modules ---------------------------------------------------------------------

BLOCKS = {
    "query_key_value": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
    "dense": {"self_attn.o_proj"},
    "dense_h_to_4h": {"mlp.gate_up_proj"},
    "dense_4h_to_h": {"mlp.down_proj"},
}


def in_blocks(parts: set[str], *layers: int) -> set[str]:
    return {f"model.layers.{layer}.{part}" for layer in layers for part in parts}


@pytest.mark.parametrize("original", list(BLOCKS))
def test_an_original_name_means_the_layers_that_hold_its_weights(folder: Path, original: str):
    base = load(folder)
    layers = range(base.config.num_hidden_layers)
    assert adapted_layers(attach_lora(base, lora([original]))) == in_blocks(
        BLOCKS[original], *layers
    )


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, in_blocks(BLOCKS["query_key_value"], 0, 1)),
        ("all-linear", in_blocks(set().union(*BLOCKS.values()), 0, 1)),
        (["dense", "q_proj"], in_blocks({"self_attn.o_proj", "self_attn.q_proj"}, 0, 1)),
        (["mlp.dense_4h_to_h"], in_blocks({"mlp.down_proj"}, 0, 1)),
        (["layers.1.self_attention.dense"], in_blocks({"self_attn.o_proj"}, 1)),
        (["output_layer"], {"lm_head"}),
        (["word_embeddings"], {"model.embed_tokens"}),
        (r".*\.query_key_value", in_blocks(BLOCKS["query_key_value"], 0, 1)),
        (r".*\.1\..*dense", in_blocks({"self_attn.o_proj"}, 1)),
        (
            r".*\.0\.\w+\.(dense_4h_to_h|q_proj)",
            in_blocks({"mlp.down_proj", "self_attn.q_proj"}, 0),
        ),
        (r"model\.layers\.1\..*o_proj", in_blocks({"self_attn.o_proj"}, 1)),
    ],
)
def test_targets_may_be_named_both_ways_mixed_and_by_expression(
    fp16: Path, targets: object, expected: set[str]
):
    assert adapted_layers(attach_lora(load(fp16), lora(targets))) == expected


def test_exclusions_ranks_and_whole_layers_may_have_original_names(fp16: Path):
    config = lora(
        ["query_key_value", "dense"], exclude_modules=["layers.0.self_attention.dense"],
        rank_pattern={"query_key_value": 2}, alpha_pattern={"dense": 5},
        modules_to_save=["output_layer"],
    )  # fmt: skip
    model = attach_lora(load(fp16), config)
    assert adapted_layers(model) == in_blocks(BLOCKS["query_key_value"], 0, 1) | in_blocks(
        {"self_attn.o_proj"}, 1
    )
    block = model.base_model.model.model.layers[1].self_attn
    assert (block.k_proj.r["default"], block.o_proj.r["default"]) == (2, RANK)
    assert block.o_proj.lora_alpha["default"] == 5
    assert model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad


class OriginalLayers(nn.Module):
    """Linear layers under the original names, which PEFT adapts as it does any module's."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        for layer in range(num_layers):
            for name in BLOCKS:
                block = "mlp" if "4h" in name else "self_attention"
                module: nn.Module = self
                path = ["transformer", "encoder", "layers", str(layer), block]
                for part in path:
                    if part not in dict(module.named_children()):
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.add_module(name, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "pattern",
    [
        {".*query_key_value": 2},
        {"query_key_value|dense": 2},
        {r".*layers\.0\..*query_key_value": 2},
        {"dense": 2},
        {r"mlp\..*": 2, "dense_4h_to_h": 3},
        {"dense_4h_to_h": 3, r"mlp\..*": 2},
        {r"layers\.1\..*": 1, "query_key_value": 2, r".*self_attention\.dense": 3},
        {"self_attention.dense": 2},
        {r"[a-z.]*\.1\.\w+\.\w+": 2},
    ],
)
def test_expressions_give_the_ranks_that_peft_gives_the_original_layers(
    fp16: Path, pattern: dict[str, int]
):
    options = {"rank_pattern": pattern, "alpha_pattern": dict.fromkeys(pattern, 16)}
    base = load(fp16)
    config = lora(list(BLOCKS), **options)
    config.task_type = None  # the stand-in is no language model
    original = get_peft_model(OriginalLayers(base.config.num_hidden_layers), config)
    wanted = {}
    for name, (rank, alpha) in ranks_and_alphas(original).items():
        _, _, layer, _, kind = name.removeprefix("transformer.").rsplit(".", 4)
        wanted |= dict.fromkeys(in_blocks(BLOCKS[kind], int(layer)), (rank, alpha))
    assert len({rank for rank, _ in wanted.values()}) > 1
    assert ranks_and_alphas(attach_lora(base, lora(list(BLOCKS), **options))) == wanted


def ranks_and_alphas(model: PeftModel) -> dict[str, tuple[int, int]]:
    return {
        name.removeprefix("base_model.model."): (m.r["default"], m.lora_alpha["default"])
        for name, m in model.named_modules()
        if isinstance(m, LoraLayer)
    }


def test_native_and_original_names_may_share_a_pattern_of_ranks(fp16: Path):
    pattern = {"k_proj": 1, r".*(query_key_value|down_proj)": 2}
    model = attach_lora(load(fp16), lora(list(BLOCKS), rank_pattern=pattern))
    found = {name.rpartition(".")[2]: rank for name, (rank, _) in ranks_and_alphas(model).items()}
    assert found == {
        "q_proj": 2, "k_proj": 1, "v_proj": 2, "down_proj": 2, "o_proj": RANK,
        "gate_up_proj": RANK,
    }  # fmt: skip


def test_a_pattern_that_is_no_expression_is_a_config_error(fp16: Path):
    with pytest.raises(ConfigError, match="unterminated subpattern"):
        attach_lora(load(fp16), lora(["dense"], rank_pattern={"(dense": 2}))


def test_names_are_told_from_the_header_without_reading_tensors(tmp_path: Path):
    for name, is_old in (("transformer.encoder.layers.0.mlp.dense_h_to_4h", True),
                         ("model.layers.0.mlp.gate_up_proj", False)):  # fmt: skip
        tensors = {f"base_model.model.{name}.lora_A.weight": torch.zeros(4, 8)}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        whole = (tmp_path / "adapter_model.safetensors").read_bytes()
        (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-128])  # no tensor is left
        (tmp_path / "adapter_config.json").write_text(json.dumps(OLD_SETTINGS))
        assert has_old_names(tmp_path) == is_old


def test_a_name_of_neither_kind_is_refused_with_the_native_names(fp16: Path):
    with pytest.raises(ConfigError, match=r"found 'query_key_values', .*down_proj.*q_proj"):
        attach_lora(load(fp16), lora(["query_key_values", "dense"]))
    with pytest.raises(ConfigError, match="matches no layer"):
        attach_lora(load(fp16), lora(r".*c_attn"))


def test_settings_without_names_of_chatglm_are_left_alone():
    config = lora(["q_proj", "mlp.down_proj"])
    before = config.to_dict()
    rename_layers(config, 2)
    assert sorted(config.target_modules) == sorted(before.pop("target_modules"))
    after = config.to_dict()
    del after["target_modules"]
    assert after == before


# --- counting and merging ------------------------------------------------------------------------


def test_packed_layers_count_as_the_weights_they_stand_for(chatglm_fixtures: Path):
    dense = load(chatglm_fixtures / "chatglm2_tiny_fp16")
    packed = load(chatglm_fixtures / "chatglm2_tiny_int4")
    total = dense.num_parameters()
    # r x (in + out) of q, k and v in two blocks of width 64
    adapter = 2 * RANK * (3 * 64 + 64 + 32 + 32)
    assert count_parameters(packed) == ParameterCount(0, total)
    for base in (dense, packed):
        found = count_parameters(attach_lora(base, lora(["query_key_value"])))
        assert found == ParameterCount(adapter, total + adapter)


def test_an_old_adapter_on_packed_weights_merges_into_a_stock_glm(folder: Path, tmp_path: Path):
    tensors = random_lora(folder)
    model = load_adapter(load(folder), save_old(tmp_path / "old", tensors))
    merged = merge(model)
    assert type(merged).__module__.startswith("transformers.models.glm.")
    expected = by_hand(folder, plain_lora(tensors))
    assert difference(logits(merged), expected) < 2e-5


@pytest.mark.parametrize("base", ["THUDM/chatglm3-6b", "/models/chatglm3-6b-32k"])
def test_an_adapter_of_the_other_family_is_refused(
    chatglm_fixtures: Path, tmp_path: Path, base: str
):
    folder = chatglm_fixtures / "chatglm2_tiny_fp16"  # the shapes are the same in both families
    old = save_old(tmp_path / "old", random_lora(folder), base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match="of the family chatglm2"):
        load_adapter(load(folder), old)
    other = tmp_path / "other"
    save_old(other, random_lora(folder), base_model_name_or_path="THUDM/chatglm2-6b-int4")
    load_adapter(load(folder), other)


def test_a_state_dict_with_the_adapters_name_in_it_is_converted_too(fp16: Path, tmp_path: Path):
    tensors = random_lora(fp16)
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    assert named.keys() != tensors.keys()
    plain = load_adapter(load(fp16), save_old(tmp_path / "plain", tensors))
    ours = load_adapter(load(fp16), save_old(tmp_path / "named", named))
    assert torch.equal(logits(ours), logits(plain))


@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal"])
def test_a_start_that_packed_weights_do_not_allow_is_refused_in_words(
    chatglm_fixtures: Path, start: str
):
    model = load(chatglm_fixtures / "chatglm2_tiny_int4")
    with pytest.raises(ConfigError, match="the adapter does not fit the model"):
        attach_lora(model, lora(["query_key_value"], init_lora_weights=start))
