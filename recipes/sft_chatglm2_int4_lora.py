r"""Supervised fine-tuning of ChatGLM2 or ChatGLM3 with a LoRA adapter on packed int4 weights.

    accelerate launch recipes/sft_chatglm2_int4_lora.py [--config FILE] [section.key=value ...]

The settings stand in `sft_chatglm2_int4_lora.yaml` beside this file. Without GPU and network:

    accelerate launch recipes/sft_chatglm2_int4_lora.py \
        model.checkpoint=data/checkpoints/tiny-chatglm2-int4
"""

from dataclasses import dataclass
from functools import partial

from peft import LoraConfig
from transformers import TrainingArguments, set_seed

from sft_kit.artifacts import open_run, pair_samples, save_run, show_samples
from sft_kit.config import load_config, run_recipe
from sft_kit.data.checks import check_examples
from sft_kit.data.collators import pad_batch
from sft_kit.data.preparation import prepare
from sft_kit.data.rows import Message
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import to_dataset
from sft_kit.inference.generate import generate
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.token_losses import answer_losses
from sft_kit.settings import DataSettings, ModelSettings, SampleSettings
from sft_kit.training.announce import announce
from sft_kit.training.callbacks import LogFile
from sft_kit.training.facts import derive_facts
from sft_kit.training.metrics import (
    causal_lm_loss,
    held_out_metrics,
    language_metrics,
    run_metrics,
)
from sft_kit.training.trainer import SafeTrainer


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments
    sample: SampleSettings


def main() -> None:
    """Read, check, train, compare, save."""
    config = load_config(Settings, __file__)
    settings = config.settings
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    template = choose_template(tokenizer, settings.data.template)
    rows = prepare(settings.data, tokenizer, template)
    warnings = check_examples(rows.train, template, tokenizer, settings.data)

    set_seed(settings.train.seed)  # before the adapter draws its first weights
    model = attach_lora(
        load_causal_lm(settings.model), settings.adapter, fused=settings.model.fused
    )
    # Logits are made where there is a label; padding is left out where the model can do without.
    padding = answer_losses(model, fused=settings.model.fused)
    prompts = settings.sample.prompts
    questions: list[list[Message]] = [[{"role": "user", "content": text}] for text in prompts]
    answers_before = generate(model, tokenizer, template, questions, settings.sample)
    trainer = SafeTrainer(
        model=model,
        args=settings.train,
        train_dataset=to_dataset(rows.train),
        eval_dataset=to_dataset(rows.eval),
        data_collator=partial(pad_batch, pad_token_id=tokenizer.pad_token_id, next_tokens=True),
        compute_loss_func=causal_lm_loss,
        compute_metrics=language_metrics,
        callbacks=[LogFile()],
    )
    facts = derive_facts(trainer, rows.train)
    announce(facts, [*config.notes, *padding, *rows.notes()], warnings, rows.train[0], tokenizer)
    run.begin(
        facts=facts,
        data=rows.describe(),
        template=template.describe(),
        base=describe_base(settings.model),
    )

    metrics_before = held_out_metrics(trainer, "base")
    trainer.train(resume_from_checkpoint=run.checkpoint)
    metrics = metrics_before | held_out_metrics(trainer, "eval") | run_metrics(trainer)
    answers_after = generate(model, tokenizer, template, questions, settings.sample)

    samples = pair_samples(prompts, answers_before, answers_after)
    history = trainer.state.log_history
    save_run(run, model, tokenizer, metrics, history, base=settings.model, samples=samples)
    show_samples(samples)
    run.announce_end(metrics)


if __name__ == "__main__":
    run_recipe(main)
