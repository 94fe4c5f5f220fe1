"""Pretraining of a decoder on plain text: causal language modelling.

    accelerate launch recipes/pretrain_gpt2_clm.py [--config FILE] [section.key=value ...]

The settings stand in `pretrain_gpt2_clm.yaml` beside this file. With them it makes the checkpoint
that comes with the project, `data/checkpoints/tiny-gpt2`; its texts and its tokenizer come first:

    python data/make_corpus.py && python data/make_instructions.py && python data/train_tokenizer.py
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
from sft_kit.models.attention_masks import take_documents
from sft_kit.models.pretraining import (
    checkpoint_of,
    describe_start,
    load_pretraining_model,
    load_pretraining_tokenizer,
)
from sft_kit.settings import CausalSettings, PretrainModelSettings, SampleSettings, TextDataSettings
from sft_kit.training.announce import announce_pretraining
from sft_kit.training.callbacks import FreshCorruption, LogFile
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import (
    causal_lm_loss,
    held_out_metrics,
    label_nll,
    language_metrics,
    run_metrics,
)
from sft_kit.training.trainer import SafeTrainer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: PretrainModelSettings
    adapter: LoraConfig | None
    data: TextDataSettings
    pretrain: CausalSettings
    train: TrainingArguments
    sample: SampleSettings


def main() -> None:
    """Read, pack, train, compare, save."""
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
    take_documents(model)  # attention as `documents` and prefixes ask
    written_before = write_plain(
        model, tokenizer, prompts, settings.sample, kind=objective.kind, objective=objective.name
    )
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=rows.train,
        eval_dataset=rows.eval,
        data_collator=partial(pad_corrupted, pad_token_id=tokenizer.pad_token_id),
        compute_loss_func=causal_lm_loss,
        preprocess_logits_for_metrics=label_nll,
        compute_metrics=language_metrics,
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
