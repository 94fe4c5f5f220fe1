"""Pretraining with every objective: what a run leaves, what its figures are, what is refused."""

import ast
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from .test_recipes import (
    ADAPTER,
    RECORD,
    WHOLE_MODEL,
    checkpoints,
    files_in,
    read_log,
    read_record,
)
from .text_runs import CASES, few_steps, going_on, new_model, save_tokenizers, write_texts

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
CURVES = {"perplexity.png", "loss_by_tokens.png"}
AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "pairs": "AutoModelForPreTraining",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
BERT, T5 = "pretrain_bert_mlm", "pretrain_t5_span"
RAGGED = ("mlm and next sentences", "wwm and next sentences", "spans")
OBJECTIVES = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ("wwm and next sentences", "bidirectional")  # each a mixture of two others
    else name
    for name in CASES
]
LORA = "{r: 4, target_modules: all-linear, lora_dropout: 0.0}"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return save_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl")


def keep(kept):
    """Keep the trained model and the rows of a run."""

    def change(recipe):
        make, save = recipe.make_datasets, recipe.save_run

        def make_and_keep(*args):
            kept["rows"] = make(*args)
            return kept["rows"]

        def save_and_keep(run, model, *args, **options):
            kept["model"] = model
            save(run, model, *args, **options)

        recipe.make_datasets, recipe.save_run = make_and_keep, save_and_keep

    return change


@pytest.fixture(scope="module")
def runs(run_recipe, tokenizers, texts, tmp_path_factory):
    """Run folder, trained model and rows by objective; each trained when first asked for."""
    parent = tmp_path_factory.mktemp("runs")
    made: dict[str, dict] = {}

    def run(name):
        if name not in made:
            case, folder = CASES[name], parent / name.replace(" ", "_")
            kept: dict = {"folder": folder}
            settings = few_steps(texts, folder) | new_model(case, tokenizers) | case.settings
            run_recipe(case.stem, settings, change=keep(kept))
            made[name] = kept
        return made[name]

    return run


def load_plain(folder, kind):
    """Load with transformers alone."""
    import transformers

    auto = getattr(transformers, AUTO_CLASSES[kind])
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def probe(model, kind, size):
    """Logits of a batch of two rows of any tokens."""
    import torch

    ids = torch.arange(2 * 9).view(2, 9) * 7 % size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = ids.flip(1)
    with torch.no_grad():
        output = model.eval()(**inputs)
    return output.prediction_logits if kind == "pairs" else output.logits


# --- what a run leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_leaves_exactly_its_files_and_has_learnt(runs, name):
    case, folder = CASES[name], runs(name)["folder"]
    model = set(WHOLE_MODEL)
    if case.kind in ("masked", "pairs"):
        model.remove("generation_config.json")
    curves = CURVES if case.kind == "causal" else CURVES | {"accuracy.png"}
    assert files_in(folder) == RECORD | curves | TOKENIZER | model | checkpoints([4], model)
    record = read_record(folder)
    assert record["status"] == "finished"
    assert record["pretraining"] == {"kind": case.kind, "objective": case.objective}
    assert "base" not in record
    log = read_log(folder)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(0 < line["grad_norm"] < math.inf for line in steps)
    held_out = [line["eval_loss"] for line in log if "eval_loss" in line]
    assert len(held_out) == 3  # at steps 2 and 4, and at the end
    assert held_out[2] == held_out[1] < held_out[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plain_transformers_gives_the_logits_of_the_trained_model(runs, name):
    case, kept = CASES[name], runs(name)
    plain = load_plain(kept["folder"], case.kind)
    size = plain.config.vocab_size
    assert (probe(plain, case.kind, size) == probe(kept["model"], case.kind, size)).all()
    metrics = json.loads((kept["folder"] / "metrics.json").read_text())
    assert metrics["reload_max_logit_difference"] == 0
    saved = (kept["folder"] / "model.safetensors").read_bytes()
    assert saved == (kept["folder"] / "checkpoint-4" / "model.safetensors").read_bytes()


def visible(row):
    """Which token sees which, as transformers' own additive mask (1, 1, T, T), token by token."""
    import torch

    length, prefix = len(row["input_ids"]), row["prefix_length"]
    sees = [[key < prefix or key <= query for key in range(length)] for query in range(length)]
    return torch.tensor(sees).logical_not()[None, None].float() * torch.finfo().min


def answers(case, model, row):
    """Logits of a row alone, and what each of them is to be: pairs of (logits, label)."""
    import torch

    ids, labels = (torch.tensor(row[name])[None] for name in ("input_ids", "labels"))
    extras = {
        name: torch.tensor(row[name])[None]
        for name in ("token_type_ids", "position_ids")
        if name in row
    }
    if case.kind == "seq2seq":
        logits = model(input_ids=ids, labels=labels).logits
    elif case.kind == "causal":
        documents = row.get("documents", [1] * ids.shape[1])
        parts = [
            model(input_ids=ids[:, [at for at, of in enumerate(documents) if of == number]]).logits
            for number in sorted(set(documents))
        ]
        logits, labels = torch.cat(parts, 1)[:, :-1], labels[:, 1:]
    elif "prefix_length" in row:
        logits = model(input_ids=ids, attention_mask=visible(row), **extras).logits
    else:
        output = model(input_ids=ids, **extras)
        logits = output.prediction_logits if case.kind == "pairs" else output.logits
    counts = labels[0] != -100
    return logits[0][counts].double(), labels[0][counts]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_figures_are_those_of_plain_transformers_row_by_row(runs, name):
    import torch

    case, kept = CASES[name], runs(name)
    model = load_plain(kept["folder"], case.kind)
    rows = [kept["rows"].eval[index] for index in range(len(kept["rows"].eval))]
    assert len(rows) > 8
    if name in RAGGED:
        assert len({len(row["labels"]) for row in rows}) > 2
    with torch.no_grad():
        found = [answers(case, model, row) for row in rows]
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    nll = -logits.log_softmax(-1)[range(len(labels)), labels].mean().item()
    metrics = json.loads((kept["folder"] / "metrics.json").read_text())
    masked = "eval_masked_loss" if case.kind == "pairs" else "eval_loss"
    assert metrics[masked] == pytest.approx(nll, abs=2e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    if case.kind == "causal":
        return
    right = (logits.argmax(-1) == labels).double().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(right)
    learnt = Counter(
        label
        for index in range(len(kept["rows"].train))
        for label in kept["rows"].train[index]["labels"].tolist()
        if label != -100
    )
    frequent = min(label for label in learnt if learnt[label] == max(learnt.values()))
    share = (labels == frequent).double().mean().item()
    assert metrics["eval_unigram_accuracy"] == pytest.approx(share)


@pytest.mark.parametrize(
    "name",
    [
        "mlm and next sentences",
        pytest.param("wwm and next sentences", marks=pytest.mark.slow),
    ],
)
def test_figures_of_pairs_are_the_sum_that_transformers_trains_on(runs, name):
    import torch

    kept = runs(name)
    model = load_plain(kept["folder"], "pairs")
    rows = [kept["rows"].eval[index] for index in range(len(kept["rows"].eval))]
    asked = [row for row in rows if row["next_sentence_label"] != -100]
    assert {row["next_sentence_label"] for row in asked} == {0, 1}
    assert len(asked) < len(rows), "no document of one sentence"
    nats, right = [], []
    for row in asked:
        ids, parts = (torch.tensor(row[key])[None] for key in ("input_ids", "token_type_ids"))
        labels, follows = torch.tensor(row["labels"])[None], row["next_sentence_label"]
        with torch.no_grad():
            output = model(input_ids=ids, token_type_ids=parts)
            logits = output.seq_relationship_logits[0].double()
            if (labels != -100).any():
                both = model(
                    input_ids=ids,
                    token_type_ids=parts,
                    labels=labels,
                    next_sentence_label=torch.tensor([follows]),
                ).loss.item()
                scores = output.prediction_logits[0].log_softmax(-1)
                counts = labels[0] != -100
                masked = -scores[counts].gather(1, labels[0][counts, None]).mean().item()
                pair = -logits.log_softmax(-1)[follows].item()
                assert masked + pair == pytest.approx(both, abs=1e-6)
        nats.append(-logits.log_softmax(-1)[follows].item())
        right.append(int(logits.argmax()) == follows)
    metrics = json.loads((kept["folder"] / "metrics.json").read_text())
    mean = sum(nats) / len(nats)
    assert metrics["eval_next_sentence_loss"] == pytest.approx(mean, abs=2e-6)
    assert metrics["eval_next_sentence_accuracy"] == pytest.approx(sum(right) / len(right))
    total = metrics["eval_masked_loss"] + metrics["eval_next_sentence_loss"]
    assert metrics["eval_loss"] == pytest.approx(total)


# --- going on with a checkpoint ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quantization"), [("wwm", "none"), ("spans", "none"), ("mlm", "nf4")]
)
def test_an_adapter_on_a_checkpoint_comes_back_in_plain_peft(
    run_recipe, runs, texts, tmp_path, name, quantization
):
    import bitsandbytes
    from peft import PeftModel

    from sft_kit.artifacts.plain import load_plain_run
    from sft_kit.models.fingerprint import describe_base
    from sft_kit.settings import ModelSettings

    case, base, folder = CASES[name], runs(name)["folder"], tmp_path / "run"
    kept: dict = {}
    changes = {"adapter": LORA, "model.quantization": quantization}
    settings = few_steps(texts, folder) | going_on(base) | case.settings | changes
    run_recipe(case.stem, settings, change=keep(kept))

    curves = CURVES | {"accuracy.png"}
    weights = ADAPTER | {"README.md"}
    expected = RECORD | curves | TOKENIZER | ADAPTER | checkpoints([4], weights)
    assert files_in(folder) == expected
    record = read_record(folder)
    described = describe_base(ModelSettings(str(base)))
    assert record["base"]["fingerprint"] == described["fingerprint"]
    assert record["base"]["name"] == str(base)
    loaded = load_plain_run(str(folder))
    size = loaded.model.config.vocab_size
    ours = probe(loaded.model, case.kind, size)
    if quantization == "none":
        assert (ours == probe(kept["model"], case.kind, size)).all()
        plain_base = load_plain(base, case.kind)
        before = probe(plain_base, case.kind, size)
        plain = PeftModel.from_pretrained(plain_base, str(folder))
        assert (probe(plain, case.kind, size) == ours).all()
        assert (before - ours).abs().max() > 1e-4, "the adapter has learnt nothing"
    else:
        layers = [type(module) for module in loaded.model.modules()]
        assert bitsandbytes.nn.Linear4bit in layers
    steps = [line["eval_loss"] for line in read_log(folder) if "eval_loss" in line]
    assert steps[-1] < steps[0]


def test_next_sentences_go_on_with_a_checkpoint_that_has_no_head_for_them(
    run_recipe, runs, texts, tmp_path
):
    from safetensors.torch import load_file

    from sft_kit.errors import CheckpointError

    name = "mlm and next sentences"
    base, folder = runs("mlm")["folder"], tmp_path / "run"
    settings = few_steps(texts, folder) | going_on(base) | CASES[name].settings
    with pytest.raises(CheckpointError, match="seq_relationship"):
        run_recipe(BERT, settings | {"adapter": LORA})
    assert not folder.exists()

    kept: dict = {}
    run_recipe(BERT, settings, change=keep(kept))
    before, after = (load_file(place / "model.safetensors") for place in (base, folder))
    added = {name.rpartition(".")[0] for name in after.keys() - before.keys()}
    assert added == {"bert.pooler.dense", "cls.seq_relationship"}
    same = [name for name in before if (before[name] == after[name]).all()]
    assert not same
    plain = load_plain(folder, "pairs")
    size = plain.config.vocab_size
    assert (probe(plain, "pairs", size) == probe(kept["model"], "pairs", size)).all()
    assert read_record(folder)["base"]["name"] == str(base)


def test_a_checkpoint_of_both_tasks_goes_on_with_one(run_recipe, runs, texts, tmp_path):
    base, folder = runs("mlm and next sentences")["folder"], tmp_path / "run"
    run_recipe(BERT, few_steps(texts, folder) | going_on(base) | CASES["wwm"].settings)
    load_plain(folder, "masked")
    assert read_record(folder)["pretraining"] == {"kind": "masked", "objective": "wwm"}


# --- the same steps ------------------------------------------------------------------------------


NAMED_PARTS = {
    "collator": "data_collator",
    "loss": "compute_loss_func",
    "figures": "preprocess_logits_for_metrics",
    "metrics": "compute_metrics",
}
SEAMS = {"answer_where_labelled", "take_documents"}


def same_steps(stem: str) -> str:
    """What a recipe does, without its objective's settings class, seams and figures."""
    tree = ast.parse((RECIPES / f"{stem}.py").read_text(encoding="utf-8"))
    body = [node for node in tree.body[1:] if not isinstance(node, ast.ImportFrom)]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "pretrain":
            node.annotation = ast.Constant("settings of the objective")
        if isinstance(node, ast.Call):
            node.keywords = [word for word in node.keywords if word.arg not in NAMED_PARTS.values()]
        if isinstance(node, ast.FunctionDef):
            node.body = [
                step
                for step in node.body[1:]  # the docstring
                if not (
                    isinstance(step, ast.Expr)
                    and isinstance(step.value, ast.Call)
                    and ast.unparse(step.value.func) in SEAMS
                )
            ]
    return "\n".join(ast.unparse(node) for node in body)


def test_all_pretraining_recipes_do_the_same_steps():
    stems = sorted({case.stem for case in CASES.values()})
    assert stems == sorted(path.stem for path in RECIPES.glob("pretrain_*.py"))
    assert len(stems) == 5
    first = same_steps(stems[0])
    assert "trainer.train" in first
    assert first.count("\n") > 35
    for stem in stems[1:]:
        assert same_steps(stem) == first
