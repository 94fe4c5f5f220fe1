"""Pretraining of an encoder with a decoder: spans behind sentinels (T5).

    accelerate launch recipes/pretrain_t5_span.py [--config FILE] [section.key=value ...]

The settings stand in `pretrain_t5_span.yaml` beside this file.
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import open_run, pair_samples, save_run, show_samples
from sft_kit.config import load_config, run_recipe
from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.corpus.datasets import make_datasets
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import corruption_of, objective_of
from sft_kit.inference.filling import choose_prompts, write_plain
from sft_kit.models.adapters import attach_lora
from sft_kit.models.labelled_outputs import answer_where_labelled
from sft_kit.models.pretraining import (
    checkpoint_of,
    describe_start,
    load_pretraining_model,
    load_pretraining_tokenizer,
)
from sft_kit.settings import PretrainModelSettings, SampleSettings, SpanSettings, TextDataSettings
from sft_kit.training.announce import announce_pretraining
from sft_kit.training.callbacks import FreshCorruption, LogFile
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
    data: TextDataSettings
    pretrain: SpanSettings
    train: TrainingArguments
    sample: SampleSettings


def main() -> None:
    """Read, hide, train, compare, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_pretraining_tokenizer(settings.model)
    objective = objective_of(settings.pretrain, settings.data.max_length)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    prompts, left_out = choose_prompts(tokenizer, settings.sample.prompts, objective.name)
    texts = load_texts(settings.data)
    corrupt = corruption_of(settings.pretrain, vocabulary, tokenizer)
    rows = make_datasets(
        texts, tokenizer, vocabulary, settings.data, objective, corrupt, settings.train.seed
    )

    set_seed(settings.train.seed)  # before the model draws its first weights
    base = load_pretraining_model(
        settings.model,
        tokenizer,
        objective.kind,
        num_token_types=objective.num_token_types,
        has_adapter=settings.adapter is not None,
    )
    model = attach_lora(base, settings.adapter, fused=settings.model.fused)
    answer_where_labelled(model)  # logits where there is a label, nowhere else
    written_before = write_plain(
        model, tokenizer, prompts, settings.sample, kind=objective.kind, objective=objective.name
    )
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=rows.train,
        eval_dataset=rows.eval,
        data_collator=partial(
            pad_corrupted,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=model.config.decoder_start_token_id,
            mark_labels=True,
        ),
        compute_loss_func=make_pretraining_loss(settings.train),
        preprocess_logits_for_metrics=label_figures,
        compute_metrics=partial(pretraining_metrics, most_frequent=rows.most_frequent),
        callbacks=[LogFile(), FreshCorruption(rows.train)],
    )
    facts = derive_facts(trainer, rows.train, max_length=settings.data.max_length)
    notes = [*config.notes, *texts.notes(), *rows.notes(), *left_out]
    announce_pretraining(facts, notes, rows.warnings, rows.first, tokenizer)
    run.begin(
        facts=facts,
        data=texts.describe(),
        pretraining=objective.describe(),
        **describe_start(settings.model),
    )

    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics = held_out_metrics(trainer, "eval") | run_metrics(trainer)
    written = write_plain(
        model, tokenizer, prompts, settings.sample, kind=objective.kind, objective=objective.name
    )

    samples = pair_samples(prompts, written_before, written)
    history = trainer.state.log_history
    checkpoint = checkpoint_of(settings.model)
    save_run(run, model, tokenizer, metrics, history, base=checkpoint, samples=samples)
    show_samples(samples, "before training")
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
