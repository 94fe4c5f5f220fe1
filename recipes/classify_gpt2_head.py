"""Text classification with GPT-2, or any other decoder: classes in place of its next-token head.

    accelerate launch recipes/classify_gpt2_head.py [--config FILE] [section.key=value ...]

With `classify.lm_weight` the language model goes on learning the texts beside their labels. The
settings stand in `classify_gpt2_head.yaml` beside this file. Without network:

    accelerate launch recipes/classify_gpt2_head.py model.checkpoint=data/checkpoints/tiny-gpt2
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import Labels, open_run, save_run
from sft_kit.config import load_config, run_recipe
from sft_kit.data.collators import pad_labelled
from sft_kit.data.labelled.splits import load_labelled
from sft_kit.data.labelled.tokenization import (
    check_labelled,
    to_labelled_dataset,
    tokenize_labelled,
)
from sft_kit.evaluation.classification import class_metrics, evaluate
from sft_kit.evaluation.report import report_files
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.heads import head_of, load_classifier
from sft_kit.models.pooling import padding_of
from sft_kit.settings import ClassifySettings, LabelledDataSettings, ModelSettings
from sft_kit.training.announce import announce_classifier
from sft_kit.training.callbacks import LogFile
from sft_kit.training.classification import (
    class_logits,
    early_stopping,
    make_loss,
    predict_held_out,
)
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import run_metrics
from sft_kit.training.trainer import SafeTrainer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: LabelledDataSettings
    classify: ClassifySettings
    train: TrainingArguments


def main() -> None:
    """Read, check, swap the head, train, evaluate, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    rows = load_labelled(settings.data)
    names, multi_label = rows.label_names, settings.data.multi_label
    train_examples = tokenize_labelled(rows.train, tokenizer, names, settings.data)
    eval_examples = tokenize_labelled(rows.eval, tokenizer, names, settings.data)
    warnings = check_labelled([*train_examples, *eval_examples], tokenizer, settings.data)

    set_seed(settings.train.seed)  # before the head and the adapter draw their first weights
    classifier = load_classifier(
        settings.model,
        names,
        multi_label=multi_label,
        lm_weight=settings.classify.lm_weight,
        pad_token_id=tokenizer.pad_token_id,
    )
    # The head trains and is saved with the adapter.
    model = attach_lora(classifier, settings.adapter, fused=settings.model.fused)
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=to_labelled_dataset(train_examples),
        eval_dataset=to_labelled_dataset(eval_examples),
        data_collator=partial(pad_labelled, pad_token_id=tokenizer.pad_token_id),
        compute_loss_func=make_loss(settings.classify, train_examples, names),
        preprocess_logits_for_metrics=class_logits,
        compute_metrics=class_metrics,
        callbacks=[LogFile(), *early_stopping(settings.classify)],
    )
    facts = derive_facts(trainer, train_examples)
    notes = [*config.notes, *rows.notes(), head_of(classifier).note, padding_of(classifier)]
    announce_classifier(facts, notes, warnings, rows.train[0], train_examples[0], tokenizer)
    run.begin(
        facts=facts,
        data=rows.describe(),
        labels=Labels(names, multi_label).describe(),
        base=describe_base(settings.model),
    )

    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics, files = run_metrics(trainer), {}
    if held_out := predict_held_out(trainer):
        metrics = held_out.metrics | metrics
        report = evaluate(
            held_out.logits, held_out.labels, rows.eval, names, multi_label=multi_label
        )
        files = report_files(report)

    history = trainer.state.log_history
    save_run(run, model, tokenizer, metrics, history, base=settings.model, files=files)
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
