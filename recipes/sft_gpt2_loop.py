"""The fine-tuning of `sft_gpt2_lora.py` as one flat loop: shuffle, accumulate, clip, step.

    accelerate launch recipes/sft_gpt2_loop.py [--config FILE] [section.key=value ...]

It takes the same settings and gives the same loss curve (a test holds the two together). Read it to
see what a Trainer does, or start from it when a Trainer is in the way.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from peft import LoraConfig
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import TrainingArguments, get_scheduler, set_seed

from sft_kit.artifacts import open_run, save_run
from sft_kit.config import load_config, refuse_unread, run_recipe
from sft_kit.data.checks import check_examples
from sft_kit.data.collators import pad_batch
from sft_kit.data.preparation import prepare
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import to_dataset
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.token_losses import answer_losses
from sft_kit.objectives.language import IGNORED
from sft_kit.run_log import append_log
from sft_kit.settings import DataSettings, ModelSettings

READ = {
    *("output_dir", "seed", "max_steps", "learning_rate", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"),
    *("lr_scheduler_type", "warmup_steps", "use_cpu", "bf16", "fp16"),
}
"""What this loop reads of TrainingArguments; any other key in the YAML is an error."""


@dataclass
class Settings:
    """The sections of the YAML; each is the class that uses it."""

    model: ModelSettings
    adapter: LoraConfig | None
    data: DataSettings
    train: TrainingArguments


def main() -> None:
    """Read, check, train, save."""
    config = load_config(Settings, __file__)
    refuse_unread(config, "train", READ)
    settings, args = config.settings, config.settings.train
    run = open_run(config)

    tokenizer = load_tokenizer(settings.model)
    template = choose_template(tokenizer, settings.data.template)
    rows = prepare(settings.data, tokenizer, template)
    warnings = check_examples(rows.train, template, tokenizer, settings.data)

    set_seed(args.seed)  # before the adapter draws its first weights
    model = attach_lora(
        load_causal_lm(settings.model), settings.adapter, fused=settings.model.fused
    )
    # Logits are made where there is a label; padding is left out where the model can do without.
    padding = answer_losses(model, fused=settings.model.fused)
    set_seed(args.seed)  # so that shuffling and dropout do not depend on the adapter's size
    mixed_precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    accelerator = Accelerator(
        cpu=args.use_cpu,
        mixed_precision=mixed_precision,
        # The order of an epoch's rows depends on seed and epoch alone, on every process.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    told = [*config.notes, *padding, *rows.notes(), *(f"warning: {one}" for one in warnings)]
    accelerator.print("\n".join(told))
    loader = DataLoader(
        to_dataset(rows.train),
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        collate_fn=partial(pad_batch, pad_token_id=tokenizer.pad_token_id, next_tokens=True),
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    scheduler = get_scheduler(
        args.lr_scheduler_type, optimizer, int(args.warmup_steps), args.max_steps
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.begin(
        data=rows.describe(), template=template.describe(), base=describe_base(settings.model)
    )

    model.train()
    history: list[dict[str, float]] = []
    losses: list[torch.Tensor] = []
    progress = tqdm(total=args.max_steps, disable=not accelerator.is_main_process)
    started = time.monotonic()
    steps = islice(batches_by_step(loader, args.gradient_accumulation_steps), args.max_steps)
    for step, (epoch, micro_batches) in enumerate(steps, start=1):
        # One divisor for all micro-batches and processes: the mean over supervised tokens.
        local_count = sum(batch["labels"].ne(IGNORED).sum() for batch in micro_batches)
        num_labels = accelerator.reduce(local_count, reduction="sum")
        step_loss = torch.zeros((), device=accelerator.device)
        for batch in micro_batches:
            del batch["labels"]  # the model reads them as `next_tokens`
            is_last = batch is micro_batches[-1]
            with nullcontext() if is_last else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss = model(**batch).nll.sum() / num_labels
                # DDP averages gradients; the loss is a share of the global mean, to be summed.
                accelerator.backward(loss * accelerator.num_processes)
            step_loss += loss.detach()
        grad_norm = accelerator.clip_grad_norm_(trainable, args.max_grad_norm)
        learning_rate = scheduler.get_last_lr()[0]
        optimizer.step()
        if not accelerator.optimizer_step_was_skipped:  # by fp16's gradient scaler
            scheduler.step()
        optimizer.zero_grad()

        losses.append(accelerator.reduce(step_loss, reduction="sum"))
        progress.update()
        if step % args.logging_steps == 0 or step == args.max_steps:
            mean = float(torch.stack(losses).mean())
            figures = {"loss": mean, "grad_norm": float(grad_norm), "learning_rate": learning_rate}
            history.append({"step": step, "epoch": epoch, **figures})
            if accelerator.is_main_process:
                append_log(run.path, history[-1])
            progress.set_postfix(loss=f"{mean:.4f}")
            losses.clear()
    progress.close()

    metrics = {"train_seconds": time.monotonic() - started, "final_loss": history[-1]["loss"]}
    trained = accelerator.unwrap_model(model)
    save_run(run, trained, tokenizer, metrics, history, base=settings.model)
    run.announce_end(metrics)


def batches_by_step(
    loader: DataLoader[Any], num_micro_batches: int
) -> Iterator[tuple[int, list[dict[str, torch.Tensor]]]]:
    """Yield the epoch and the micro-batches of one step after the other, without end.

    An epoch's last step takes what is left of it.
    """
    for epoch in count():
        loader.set_epoch(epoch)  # type: ignore[attr-defined]
        batches = iter(loader)
        while micro_batches := list(islice(batches, num_micro_batches)):
            yield epoch, micro_batches


if __name__ == "__main__":
    run_recipe(main)
