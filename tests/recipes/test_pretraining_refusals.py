"""What the pretraining recipes refuse: one message, exit code 2, and no folder is claimed."""

import pytest

from .text_runs import (
    CASES,
    SIZES,
    few_steps,
    going_on,
    new_model,
    save_model,
    save_tokenizers,
    write_texts,
)

TINY_DISTILBERT = {
    "model.architecture": "distilbert",
    "model.config": "{dim: 32, n_layers: 2, n_heads: 2, hidden_dim: 64}",
}
ENDLESS = {
    "data.streaming": "true", "data.eval_fraction": 0, "train.eval_strategy": "no",
    "train.max_steps": -1,
}  # fmt: skip

# Objective, changes, parts of the message. "tokenizer gpt2" and "checkpoint bert" become folders.
REFUSALS = {
    "no mask token": (
        "mlm",
        {"model.tokenizer": "tokenizer gpt2"},
        ["found no mask token", "sft-kit tokenizer train --family bert"],
    ),
    "no sentinels": ("spans", {"model.tokenizer": "tokenizer bert"}, ["found no sentinels"]),
    "a BERT for spans": ("spans", going_on("checkpoint bert"), ["(spans)", "no sentinels"]),
    "a BERT to denoise": (
        "denoise",
        going_on("checkpoint bert"),
        ["found bert, accepts an encoder and a decoder", "use a recipe for that"],
    ),
    "a T5 for masks": ("mlm", going_on("checkpoint t5"), ["(masked)", "found no mask token"]),
    "a BART for masks": (
        "mlm",
        going_on("checkpoint bart"),
        ["found bart, accepts an encoder with a head for masked", "it is an encoder and a decoder"],
    ),
    "an encoder that sees what it should predict": (
        "windows",
        going_on("checkpoint bert"),
        ["found bert, accepts a decoder (as gpt2 or llama)"],
    ),
    "a new decoder for masks": (
        "mlm",
        {"model.architecture": "gpt2", "model.config": "{n_embd: 32}"},
        ["model.architecture=gpt2", "found gpt2", "it is a decoder"],
    ),
    "checkpoint and tokenizer": (
        "mlm",
        {"model.checkpoint": "checkpoint bert"},
        ["together with model.checkpoint", "model.tokenizer", "model.architecture"],
    ),
    "neither checkpoint nor tokenizer": (
        "mlm",
        {"model.tokenizer": "null"},
        ["found neither model.checkpoint nor model.tokenizer"],
    ),
    "an adapter on a new model": (
        "mlm",
        {"adapter": "{r: 4, target_modules: all-linear}"},
        ["found an adapter for a new model", "set model.checkpoint"],
    ),
    "no head for pairs": (
        "mlm and next sentences",
        TINY_DISTILBERT,
        ["pretrain.next_sentence: found true", "distilbert has no head", "take a BERT"],
    ),
    "too few token types": (
        "infill",
        {"model.config.type_vocab_size": 2},
        ["found 2", "numbers tokens from 0 to 15", "model.config.type_vocab_size=16"],
    ),
    "a stream without end": ("mlm", ENDLESS, ["train.max_steps", "rows never end"]),
    "workers that never hear of the next epoch": (
        "mlm",
        {"train.dataloader_num_workers": 1, "train.dataloader_persistent_workers": "true"},
        ["train.dataloader_persistent_workers", "the same tokens in every epoch"],
    ),
    "more than all that is learnt": (
        "mlm",
        {"pretrain.mask_token_fraction": 0.9, "pretrain.random_token_fraction": 0.2},
        ["0.9 of mask tokens and 0.2 of random tokens", "accepts 1 in all at most"],
    ),
    "a share beyond its bound": ("mlm", {"pretrain.mask_fraction": 1.5}, ["mask_fraction", "1.5"]),
    "longer than the context": (
        "mlm",
        {"data.max_length": 65},
        ["data.max_length=65 is longer than the model's context of 64 tokens"],
    ),
    "no text": ("mlm", {"data.path": "empty file"}, ["empty.txt"]),
    "one document for pairs": (
        "mlm and next sentences",
        {"data.path": "one document", "data.eval_fraction": 0, "train.eval_strategy": "no"},
        ["found one document only"],
    ),
    "the setting of another objective": (
        "prefix",
        {"pretrain.max_span_length": 5},
        ["pretrain.max_span_length", "set pretrain.objective to infill"],
    ),
    "the objective of another recipe": (
        "mlm",
        {"pretrain.objective": "prefix"},
        ["pretrain.objective", "mlm", "wwm", "spell"],
    ),
    "no characters to misspell": (
        "spell",
        {"model.tokenizer": "tokenizer latin"},
        ["the vocabulary has no characters that are mistaken for each other"],
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders and files by how the table names them."""
    from transformers import BertTokenizer

    parent = tmp_path_factory.mktemp("inputs")
    tokenizers = save_tokenizers(parent / "tokenizers")
    found = {f"tokenizer {family}": folder for family, folder in tokenizers.items()}
    for family in SIZES:
        found[f"checkpoint {family}"] = save_model(
            parent / "checkpoints" / family, family, tokenizers[family]
        )
    latin = parent / "latin"
    latin.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (latin / "vocab.txt").write_text("\n".join([*special, "the", "room"]), encoding="utf-8")
    BertTokenizer(vocab=str(latin / "vocab.txt")).save_pretrained(latin)
    (parent / "empty.txt").write_text("\n \n", encoding="utf-8")
    (parent / "one.txt").write_text("the room is fine.\nthe film is dull.\n", encoding="utf-8")
    return found | {
        "tokenizer latin": latin,
        "empty file": parent / "empty.txt",
        "one document": parent / "one.txt",
        "texts": write_texts(parent / "texts.jsonl"),
    }


@pytest.mark.parametrize("name", REFUSALS)
def test_wrong_input_ends_in_one_message_and_claims_no_folder(
    run_recipe, places, tmp_path, capsys, name
):
    which, changes, said = REFUSALS[name]
    case, folder = CASES[which], tmp_path / "run"
    tokenizers = {family: places[f"tokenizer {family}"] for family in SIZES}
    settings = few_steps(places["texts"], folder) | new_model(case, tokenizers) | case.settings
    if "model.config" in changes:  # takes the place of the fields set one by one
        fields = [key for key in settings if key.startswith("model.config.")]
        settings = {key: value for key, value in settings.items() if key not in fields}
    resolved = {key: places.get(str(value), value) for key, value in changes.items()}
    flags: list[str] = []
    if "model.config" in resolved:  # a file's mapping takes the place of the recipe's
        fields = resolved.pop("model.config")
        flags = ["--config", str(tmp_path / "other.yaml")]
        (tmp_path / "other.yaml").write_text(f"model:\n  config: {fields}\n", encoding="utf-8")

    def as_a_command(recipe):
        main, start = recipe.main, recipe.run_recipe
        recipe.main = lambda: start(main)

    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_recipe(case.stem, settings | resolved, *flags, change=as_a_command)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    message = " ".join(" ".join(lines).split())
    for part in said:
        assert part in message
    assert sum(line.startswith("error:") for line in lines) == 1
    assert "Traceback" not in message
    assert not folder.exists()


def test_the_table_knows_all_its_inputs(places):
    named = [str(value) for _, changes, _ in REFUSALS.values() for value in changes.values()]
    used = [name for name in named if name.split(" ")[0] in ("tokenizer", "checkpoint")]
    assert len(used) == 9
    assert set(used) <= places.keys()
