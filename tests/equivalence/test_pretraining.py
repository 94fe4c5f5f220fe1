"""Configurations of pretraining that must agree, in full precision on the CPU."""

import itertools
from collections import Counter

import pytest

from ..recipes.conftest import run
from ..recipes.text_runs import CASES, few_steps, new_model, save_tokenizers, write_texts
from .conftest import assert_same_bits, assert_same_curve, train
from .test_sft import LAUNCHERS, free_port, launch, logged, micro_batches

NUM_STEPS = 8
PAIRS = "mlm and next sentences"


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return save_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", 25)


@pytest.fixture
def settings_of(tokenizers, texts, tmp_path):
    """Settings of eight steps by objective; without evaluation, an epoch has two to four steps."""

    def settings(name, *, dropout=0.0, folder="run"):
        case = CASES[name]
        changes = {
            "data.eval_fraction": 0,
            "train.eval_strategy": "no",
            "train.save_strategy": "no",
            "train.per_device_train_batch_size": 8,
        }
        common = few_steps(texts, tmp_path / folder, NUM_STEPS) | changes
        return common | new_model(case, tokenizers, dropout=dropout) | case.settings

    return settings


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PAIRS, "spans", *slow("wwm", "infill", "documents", "denoise")])
def test_accumulated_micro_batches_equal_one_batch(settings_of, name):
    settings, stem = settings_of(name), CASES[name].stem
    whole = train(settings, stem=stem)
    for size, number in ((2, 4), (1, 8)) if name == PAIRS else ((2, 4),):
        assert_same_curve(whole, train(settings | micro_batches(size, number), stem=stem))


def test_a_mean_of_micro_batch_means_is_noticed(settings_of):
    def plant(recipe):
        make = recipe.make_pretraining_loss

        def mean_of_means(args):
            loss = make(args)
            return lambda outputs, labels, num_items_in_batch=None: loss(outputs, labels, None) / 4

        recipe.make_pretraining_loss = mean_of_means

    settings = settings_of(PAIRS)
    whole = train(settings, stem="pretrain_bert_mlm")
    wrong = train(settings | micro_batches(2, 4), plant, "pretrain_bert_mlm")
    with pytest.raises(AssertionError):
        assert_same_curve(whole, wrong)


# --- what must not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PAIRS, *slow("prefix", "documents", "spans", "denoise")])
def test_evaluating_every_step_leaves_every_bit_as_it_was(settings_of, name):
    settings, stem = settings_of(name, dropout=0.1), CASES[name].stem
    settings |= {"data.eval_fraction": 0.2, "train.max_steps": 4}
    evaluated = {"train.eval_strategy": "steps", "train.eval_steps": 1}
    assert_same_bits(train(settings, stem=stem), train(settings | evaluated, stem=stem))


@pytest.mark.parametrize("name", ["denoise", *slow(PAIRS, "prefix", "documents", "spans")])
def test_activation_checkpointing_changes_nothing(settings_of, name):
    settings, stem = settings_of(name, dropout=0.1) | {"train.max_steps": 4}, CASES[name].stem
    kept = train(settings, stem=stem)
    recomputed = train(settings | {"train.activation_checkpointing": "true"}, stem=stem)
    assert recomputed.model.is_activation_checkpointing
    assert not kept.model.is_activation_checkpointing
    assert_same_curve(kept, recomputed)


# --- resuming ------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def die_before_step_7(recipe):
    class Die(recipe.LogFile):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KilledError

    recipe.LogFile = Die


STREAM = {"data.streaming": "true", "data.shuffle_buffer": 16}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (PAIRS, {}),
        ("wwm", STREAM),
        *(
            pytest.param(name, changes, marks=pytest.mark.slow)
            for name, changes in (
                *(("mlm", {}), ("infill", {}), ("documents", {}), ("spans", {}), ("denoise", {})),
                *((PAIRS, STREAM), ("spans", STREAM), ("mlm", {"train.dataloader_num_workers": 2})),
            )
        ),
    ],
)
def test_a_run_resumed_in_its_second_epoch_ends_with_the_same_bits(
    settings_of, tmp_path, name, changes
):
    stem = CASES[name].stem
    settings = settings_of(name, dropout=0.1) | changes
    settings |= {"train.save_strategy": "steps", "train.save_steps": 5}
    run(stem, settings | {"train.output_dir": tmp_path / "straight"})
    with pytest.raises(KilledError):
        run(stem, settings, change=die_before_step_7)
    run(stem, settings, "--resume")
    resumed, straight = tmp_path / "run", tmp_path / "straight"
    assert logged(resumed, "loss") == logged(straight, "loss")
    assert len(logged(straight, "loss")) == NUM_STEPS
    if not changes.get("data.streaming"):
        at_the_checkpoint = logged(straight, "epoch")[4]
        assert at_the_checkpoint > 1
        assert at_the_checkpoint % 1 > 0, "the checkpoint is not in the middle of an epoch"
    weights = [(folder / "model.safetensors").read_bytes() for folder in (resumed, straight)]
    assert weights[0] == weights[1]


# --- masks ---------------------------------------------------------------------------------------


def watch(seen):
    """Keep the labels of each training step and of each held-out batch, row by row."""

    def rows_of(labels):
        return [tuple(row[row != -100].tolist()) for row in labels.cpu()]

    def change(recipe):
        make, make_loss, figures = (
            recipe.make_datasets, recipe.make_pretraining_loss, recipe.label_figures,
        )  # fmt: skip

        def keep_rows(*args):
            seen["rows"] = make(*args)
            return seen["rows"]

        def watched_loss(args):
            loss = make_loss(args)

            def watched(outputs, labels, num_items_in_batch=None):
                if outputs.logits.requires_grad:
                    seen["train"].extend(rows_of(labels))
                return loss(outputs, labels, num_items_in_batch)

            return watched

        def watched_figures(logits, labels):
            only = labels[0] if isinstance(labels, tuple) else labels
            seen["eval"].extend(rows_of(only))
            return figures(logits, labels)

        recipe.make_datasets, recipe.make_pretraining_loss = keep_rows, watched_loss
        recipe.label_figures = watched_figures

    seen |= {"train": [], "eval": []}
    return change


def expected_labels(rows, epoch):
    """What each row is to learn in an epoch, asked for one by one."""
    before, rows.epoch = rows.epoch, epoch
    labels = [rows[index]["labels"] for index in range(len(rows))]
    rows.epoch = before
    return Counter(tuple(row[row != -100].tolist()) for row in labels)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_has_masks_of_its_own_whoever_makes_them(settings_of, num_workers):
    changes = {"train.max_steps": -1, "train.num_train_epochs": 3, "train.warmup_steps": 0}
    if num_workers:
        changes |= micro_batches(4, 2) | {"train.dataloader_num_workers": num_workers}
    seen: dict = {}
    train(settings_of(PAIRS) | changes, watch(seen), "pretrain_bert_mlm")
    rows = seen["rows"].train
    expected = [expected_labels(rows, epoch) for epoch in range(3)]
    assert len(rows) % 8, "an epoch's last batch is as large as the others"
    assert len(seen["train"]) == 3 * len(rows)
    for epoch in range(3):
        of_epoch = seen["train"][epoch * len(rows) : (epoch + 1) * len(rows)]
        assert Counter(of_epoch) == expected[epoch]
    assert expected[0] != expected[1] != expected[2] != expected[0]


def test_held_out_masks_are_the_same_at_every_evaluation_and_for_every_seed(settings_of):
    found = []
    for seed in (1, 2):
        settings = settings_of("mlm") | {
            "train.seed": seed,
            "data.eval_fraction": 0.4,
            "train.eval_strategy": "steps",
            "train.max_steps": 4,
        }
        seen: dict = {}
        train(settings, watch(seen), "pretrain_bert_mlm")
        num_rows = len(seen["rows"].eval)
        assert len(seen["eval"]) == 3 * num_rows  # at steps 2 and 4, and at the end
        parts = [seen["eval"][first : first + num_rows] for first in (0, num_rows, 2 * num_rows)]
        assert parts[0] == parts[1] == parts[2]
        found.append((parts[0], seen["train"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_streamed_rows_are_the_same_for_any_number_of_workers(tokenizers, texts):
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from sft_kit.data.corpus.streaming import StreamedRows
    from sft_kit.data.corpus.vocabulary import vocabulary_of
    from sft_kit.data.corruption.choose import corruption_of
    from sft_kit.settings import MaskedSettings, TextDataSettings

    tokenizer = AutoTokenizer.from_pretrained(tokenizers["bert"])
    vocabulary = vocabulary_of(tokenizer, "masked")
    corrupt = corruption_of(MaskedSettings(), vocabulary, tokenizer)
    settings = TextDataSettings(str(texts), max_length=32, streaming=True, shuffle_buffer=8)
    stream = StreamedRows(settings, tokenizer, vocabulary, corrupt, layout="masked", seed=5)

    def first(num_workers):
        loader = DataLoader(
            stream, batch_size=1, num_workers=num_workers, collate_fn=lambda rows: rows[0]
        )
        return [
            (row["input_ids"].tolist(), row["labels"].tolist())
            for row in itertools.islice(iter(loader), 60)
        ]

    alone = first(0)
    assert len({str(row) for row in alone}) == 60, "passes repeat each other"
    assert first(2) == alone


# --- documents in a window -----------------------------------------------------------------------


def windows_of(tokenizers, texts, family, *, document_mask):
    """Full windows of documents, and the texts' documents one by one as token ids."""
    from transformers import AutoTokenizer

    from sft_kit.data.corpus.datasets import make_datasets
    from sft_kit.data.corpus.texts import load_texts
    from sft_kit.data.corpus.vocabulary import vocabulary_of
    from sft_kit.data.corruption.choose import corruption_of, objective_of
    from sft_kit.settings import CausalSettings, TextDataSettings

    tokenizer = AutoTokenizer.from_pretrained(tokenizers[family])
    data = TextDataSettings(str(texts), max_length=64, eval_fraction=0.0)
    pretrain = CausalSettings(document_mask=document_mask)
    objective = objective_of(pretrain, data.max_length)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    corrupt = corruption_of(pretrain, vocabulary, tokenizer)
    rows = make_datasets(
        load_texts(data), tokenizer, vocabulary, data, objective, corrupt, seed=1
    ).train
    return [rows[index] for index in range(len(rows))], tokenizer


def model_of(family, tokenizer, implementation):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..recipes.text_runs import SIZES

    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), initializer_range=0.2, **SIZES[family]
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


def nll_of(model, rows):
    import torch

    from sft_kit.data.corpus.collators import pad_corrupted
    from sft_kit.objectives.language import token_nll

    batch = pad_corrupted(rows, pad_token_id=0)
    labels = batch.pop("labels")
    with torch.no_grad():
        return token_nll(model(**batch).logits, labels)


FAMILIES = list(itertools.product(("gpt2", "llama"), ("eager", "sdpa")))


@pytest.mark.parametrize(("family", "implementation"), FAMILIES)
def test_packed_documents_cost_what_each_costs_alone(tokenizers, texts, family, implementation):
    import torch

    from sft_kit.models.attention_masks import take_documents

    apart, tokenizer = windows_of(tokenizers, texts, family, document_mask=True)
    together, _ = windows_of(tokenizers, texts, family, document_mask=False)
    plain = model_of(family, tokenizer, implementation)
    alone = []
    for row in apart:
        for number in sorted(set(row["documents"].tolist())):
            ids = torch.from_numpy(row["input_ids"][row["documents"] == number])[None]
            labels = ids.clone()
            with torch.no_grad():
                logits = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
            nll = -logits.gather(1, labels[0, 1:, None])[:, 0]
            alone.append(torch.cat([torch.zeros(1), nll]))  # nothing predicts the first token
    expected = torch.cat(alone).view(len(apart), -1)
    assert len(alone) > 2 * len(apart)
    packed = model_of(family, tokenizer, implementation)
    take_documents(packed)
    difference = (nll_of(packed, apart) - expected).abs()
    assert difference.max() < 2e-5
    assert difference.mean() < 2e-6
    mixed = (nll_of(packed, together) - expected).abs()
    assert mixed[:, 1:].max() > 0.1
    assert (mixed[:, :5] < 2e-5).all(1).any(), "a window's first document begins alike"


@pytest.mark.parametrize(("family", "implementation"), FAMILIES)
def test_nothing_of_a_document_leaks_into_the_next(tokenizers, texts, family, implementation):
    import copy

    from sft_kit.models.attention_masks import take_documents

    moved = {}
    for is_apart in (True, False):
        rows, tokenizer = windows_of(tokenizers, texts, family, document_mask=is_apart)
        documents, _ = windows_of(tokenizers, texts, family, document_mask=True)
        model = model_of(family, tokenizer, implementation)
        take_documents(model)
        changed = copy.deepcopy(rows)
        for row in changed:
            row["input_ids"] = row["input_ids"].copy()
            row["input_ids"][0] = 8 if row["input_ids"][0] == 7 else 7
        difference = (nll_of(model, rows) - nll_of(model, changed)).abs()
        first = [row["documents"] == 1 for row in documents]
        moved[is_apart] = [
            (float(of[is_first].max()), float(of[~is_first].max()))
            for of, is_first in zip(difference, first, strict=True)
            if 2 < is_first.sum() < len(is_first)
        ]
    assert len(moved[True]) > 3
    assert all(inside > 1e-4 and outside == 0 for inside, outside in moved[True])
    assert all(outside > 1e-4 for _, outside in moved[False])


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (PAIRS, {}),
        *(
            pytest.param(name, changes, marks=pytest.mark.slow)
            for name, changes in (
                *(("wwm", STREAM), ("infill", {}), ("documents", {}), ("spans", {})),
                *(("denoise", {}), (PAIRS, STREAM)),
            )
        ),
    ],
)
def test_two_processes_give_the_curve_and_the_model_of_one(settings_of, tmp_path, name, changes):
    from safetensors.torch import load_file

    stem, one, two = CASES[name].stem, tmp_path / "one", tmp_path / "two"
    settings = settings_of(name) | {"train.save_strategy": "no"} | changes
    # Whole batches only: the last batch of an epoch would be filled up with rows seen before.
    settings |= {"train.dataloader_drop_last": "true", "train.max_steps": 4}
    run(stem, settings | {"train.output_dir": one})
    words = [*LAUNCHERS["torchrun"], str(free_port())]
    done = launch(words, settings | micro_batches(4, 1) | {"train.output_dir": two}, stem)
    assert done.returncode == 0, done.stderr
    assert len(logged(two, "loss")) == 4
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-5)
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in found) <= 1e-4
