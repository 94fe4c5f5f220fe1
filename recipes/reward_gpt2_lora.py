"""A reward model from compared answers, with GPT-2 or any other decoder and a LoRA adapter.

    accelerate launch recipes/reward_gpt2_lora.py [--config FILE] [section.key=value ...]

It gives an answer one number; PPO optimises against it. The settings stand in
`reward_gpt2_lora.yaml` beside this file. Without GPU and network:

    accelerate launch recipes/reward_gpt2_lora.py model.checkpoint=data/checkpoints/tiny-gpt2
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import open_run, save_run
from sft_kit.config import load_config, run_recipe
from sft_kit.data.preference.collators import pad_answers
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.preference.tokenization import (
    check_preferences,
    to_preference_dataset,
    tokenize_preferences,
)
from sft_kit.data.templates import choose_template
from sft_kit.evaluation.preference import evaluate_preferences, preference_metrics
from sft_kit.evaluation.preference_report import preference_report_files
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.heads import head_of
from sft_kit.models.pooling import padding_of
from sft_kit.models.reward_model import load_reward_model
from sft_kit.settings import ModelSettings, PreferenceDataSettings, RewardSettings
from sft_kit.training.announce import announce_preferences
from sft_kit.training.callbacks import LogFile
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import run_metrics
from sft_kit.training.preference import (
    make_reward_loss,
    measure_scale,
    score_held_out,
    scores_by_group,
)
from sft_kit.training.trainer import SafeTrainer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: PreferenceDataSettings
    reward: RewardSettings
    train: TrainingArguments


def main() -> None:
    """Read, check, put a score head on, train, evaluate, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    template = choose_template(tokenizer, settings.data.template)
    rows = load_preferences(settings.data, tokenizer, template)
    everything = [*rows.train, *rows.eval]
    train_examples = tokenize_preferences(rows.train, tokenizer, template, settings.data)
    eval_examples = tokenize_preferences(rows.eval, tokenizer, template, settings.data)
    warnings = check_preferences(
        [*train_examples, *eval_examples], everything, tokenizer, template, settings.data
    )

    set_seed(settings.train.seed)  # before the head and the adapter draw their first weights
    scorer = load_reward_model(settings.model, pad_token_id=tokenizer.pad_token_id)
    # The head trains and is saved with the adapter.
    model = attach_lora(scorer, settings.adapter, fused=settings.model.fused)
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=to_preference_dataset(train_examples),
        eval_dataset=to_preference_dataset(eval_examples),
        data_collator=partial(pad_answers, pad_token_id=tokenizer.pad_token_id),
        compute_loss_func=make_reward_loss(settings.reward),
        preprocess_logits_for_metrics=scores_by_group,
        compute_metrics=preference_metrics,
        callbacks=[LogFile()],
    )
    facts = derive_facts(trainer, train_examples)
    notes = [*config.notes, *rows.notes(), head_of(scorer).note, padding_of(scorer)]
    announce_preferences(facts, notes, warnings, train_examples[0], tokenizer)
    run.begin(
        facts=facts,
        data=rows.describe(),
        template=template.describe(),
        base=describe_base(settings.model),
        reward_model={"head": head_of(scorer).note},
    )

    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics, files = run_metrics(trainer), {}
    held_out = score_held_out(trainer)
    if held_out:
        metrics = held_out.metrics | metrics
        report = evaluate_preferences(held_out.by_group(), eval_examples, tokenizer)
        files = preference_report_files(report)
    scale = measure_scale(trainer, held_out)
    run.record["score_scale"] = scale.describe()  # PPO normalises by it

    history = trainer.state.log_history
    metrics |= scale.metrics()
    save_run(run, model, tokenizer, metrics, history, base=settings.model, files=files)
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
