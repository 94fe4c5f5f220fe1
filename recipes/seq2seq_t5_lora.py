"""Fine-tuning of T5, BART or any other encoder-decoder model on pairs of texts.

    accelerate launch recipes/seq2seq_t5_lora.py [--config FILE] [section.key=value ...]

Summaries, translations, answers: what one text becomes another. The settings stand in
`seq2seq_t5_lora.yaml` beside this file. Without GPU and network:

    accelerate launch recipes/seq2seq_t5_lora.py model.checkpoint=data/checkpoints/tiny-t5
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import open_run, pair_samples, save_run, show_samples
from sft_kit.config import load_config, run_recipe
from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.pairs.splits import load_pairs
from sft_kit.data.pairs.tokenization import check_pairs, to_pair_dataset, tokenize_pairs
from sft_kit.evaluation.writing_report import evaluate_writing, writing_files
from sft_kit.inference.seq2seq import write
from sft_kit.models.adapters import attach_lora
from sft_kit.models.labelled_outputs import answer_where_labelled
from sft_kit.models.pretraining import (
    checkpoint_of,
    describe_start,
    load_pretraining_model,
    load_pretraining_tokenizer,
)
from sft_kit.settings import PairDataSettings, PretrainModelSettings, WritingSettings
from sft_kit.training.announce import announce
from sft_kit.training.callbacks import LogFile
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import held_out_metrics, run_metrics
from sft_kit.training.pretraining import (
    label_figures,
    make_pretraining_loss,
    pretraining_metrics,
)
from sft_kit.training.trainer import SafeTrainer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: PretrainModelSettings
    adapter: LoraConfig | None
    data: PairDataSettings
    writing: WritingSettings
    train: TrainingArguments


def main() -> None:
    """Read, check, train, write, compare, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_pretraining_tokenizer(settings.model)
    rows = load_pairs(settings.data, tokenizer)
    train_examples = tokenize_pairs(rows.train, tokenizer, settings.data)
    eval_examples = tokenize_pairs(rows.eval, tokenizer, settings.data)
    warnings = check_pairs([*train_examples, *eval_examples], tokenizer, settings.data)

    set_seed(settings.train.seed)  # before the adapter draws its first weights
    has_adapter = settings.adapter is not None
    base = load_pretraining_model(settings.model, tokenizer, "seq2seq", has_adapter=has_adapter)
    model = attach_lora(base, settings.adapter, fused=settings.model.fused)
    answer_where_labelled(model)  # logits where there is a label, nowhere else
    asked = rows.eval[: settings.writing.num_rows]
    sources = [example.input_ids for example in eval_examples[: settings.writing.num_rows]]
    samples = slice(settings.writing.num_samples)
    before = write(model, tokenizer, sources[samples], settings.writing)
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=to_pair_dataset(train_examples),
        eval_dataset=to_pair_dataset(eval_examples),
        data_collator=partial(
            pad_corrupted,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=base.config.decoder_start_token_id,
            mark_labels=True,
        ),
        compute_loss_func=make_pretraining_loss(settings.train),
        preprocess_logits_for_metrics=label_figures,
        compute_metrics=pretraining_metrics,
        callbacks=[LogFile()],
    )
    shown = [example.in_one_row() for example in train_examples]
    facts = derive_facts(trainer, shown)
    announce(facts, [*config.notes, *rows.notes()], warnings, shown[0], tokenizer)
    run.begin(
        facts=facts,
        data=rows.describe(),
        pretraining={"kind": "seq2seq", "objective": "pairs of texts"},
        **describe_start(settings.model),
    )

    metrics_before = held_out_metrics(trainer, "base")
    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics = metrics_before | held_out_metrics(trainer, "eval") | run_metrics(trainer)
    files, written = {}, write(model, tokenizer, sources, settings.writing)
    if written:
        report = evaluate_writing(asked, written, settings.writing.count_by)
        metrics |= report.metrics()
        files = writing_files(report)

    prompts = [pair.source for pair in asked[samples]]
    compared = pair_samples(prompts, before, written[samples])
    history, start = trainer.state.log_history, checkpoint_of(settings.model)
    save_run(run, model, tokenizer, metrics, history, base=start, samples=compared, files=files)
    show_samples(compared)
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
