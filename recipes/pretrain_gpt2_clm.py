"""Pretraining of a small GPT-2 from random weights on plain text (causal language modelling).

    python data/make_corpus.py && python data/make_instructions.py && python data/train_tokenizer.py
    accelerate launch recipes/pretrain_gpt2_clm.py [--config FILE] [section.key=value ...]

With the settings in `pretrain_gpt2_clm.yaml` beside this file it makes the checkpoint that comes
with the project, `data/checkpoints/tiny-gpt2`.
"""

from dataclasses import dataclass
from functools import partial

from transformers import Trainer, TrainingArguments, set_seed

from sft_kit.artifacts import open_run, save_run
from sft_kit.config import load_config, run_recipe
from sft_kit.data.collators import pad_batch
from sft_kit.data.packing import pack_documents
from sft_kit.data.splits import load_conversations
from sft_kit.data.tokenization import to_dataset
from sft_kit.models.base import load_tokenizer, new_causal_lm
from sft_kit.settings import DataSettings, ScratchModelSettings
from sft_kit.training.announce import announce
from sft_kit.training.callbacks import IsolatedEvaluation, LogFile, StopOnNonFinite
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import (
    causal_lm_loss,
    held_out_metrics,
    label_nll,
    language_metrics,
    run_metrics,
)


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ScratchModelSettings
    data: DataSettings
    train: TrainingArguments


def main() -> None:
    """Read, pack, train, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    documents = load_conversations(settings.data)
    train_windows = pack_documents(documents.train, tokenizer, settings.data.max_length)
    eval_windows = pack_documents(documents.eval, tokenizer, settings.data.max_length)

    set_seed(settings.train.seed)  # before the model draws its first weights
    model = new_causal_lm(settings.model, tokenizer)
    trainer = Trainer(
        model=model,
        args=settings.train,
        train_dataset=to_dataset(train_windows),
        eval_dataset=to_dataset(eval_windows),
        data_collator=partial(pad_batch, pad_token_id=tokenizer.pad_token_id),
        compute_loss_func=causal_lm_loss,
        preprocess_logits_for_metrics=label_nll,
        compute_metrics=language_metrics,
        callbacks=[LogFile(), IsolatedEvaluation(), StopOnNonFinite()],
    )
    facts = derive_facts(trainer, train_windows)
    announce(facts, [*config.notes, *documents.notes()], [], train_windows[0], tokenizer)
    run.begin(facts=facts, data=documents.describe())

    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics = held_out_metrics(trainer, "eval") | run_metrics(trainer)
    save_run(run, model, tokenizer, metrics, trainer.state.log_history)
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
