"""A tuned model ends its answers by itself, and one trained with the padding masked by id does not.

GPT-2 has one special token: the padding is the end-of-text token. A collator that ignores labels by
the padding's id ignores every stop with it.
"""

import copy
import json

import pytest

from .conftest import train

NUM_ROWS = 32
MOST = 31
NUM_STEPS = 100
WORDS = ("water", "ice", "fox", "dog", "park", "zero", "two", "four")


@pytest.fixture
def lesson(tmp_path):
    """32 questions with answers of one to four words."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "instruction": f"Say {WORDS[index % 8]} {index // 8 + 1} times.",
            "output": " ".join([WORDS[index % 8]] * (index // 8 + 1)),
        }
        for index in range(NUM_ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def overfit(settings, path, change=None):
    """Train the whole model on all rows at once with the recipe."""
    changes = {
        "adapter": "null",
        "data.path": path,
        "data.num_rows": "null",
        "train.per_device_train_batch_size": NUM_ROWS,
        "train.learning_rate": 3e-3,
        "train.lr_scheduler_type": "constant",
        "train.warmup_steps": 0,
        "train.max_steps": NUM_STEPS,
    }
    without_adapter = {key: value for key, value in settings.items() if "adapter" not in key}
    return train(without_adapter | changes, change)


def ask(model, tokenizer, rows):
    """Ask every question as chat does."""
    from sft_kit import SampleSettings, choose_template
    from sft_kit.inference.generate import generate

    template = choose_template(tokenizer, "human-assistant")
    prompts = [[{"role": "user", "content": row["instruction"]}] for row in rows]
    sampling = SampleSettings(max_new_tokens=40)
    return generate(model, tokenizer, template, prompts, sampling, batch_size=NUM_ROWS)


def test_the_tuned_model_stops_by_itself(settings, lesson, tokenizer):
    path, rows = lesson
    curve = overfit(settings, path)
    answers = ask(curve.model, tokenizer, rows)
    num_stopped = sum(answer.stopped for answer in answers)
    print(f"stopped by themselves: {num_stopped} of {NUM_ROWS}, loss {curve.losses[-1]:.4f}")
    assert num_stopped >= MOST
    right = [answer.text == row["output"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) >= MOST


def test_padding_masked_by_id_teaches_no_stop(settings, lesson, tokenizer):
    from torch.nn.functional import pad
    from transformers import DataCollatorForLanguageModeling

    path, rows = lesson
    padding_is_stop = copy.deepcopy(tokenizer)
    padding_is_stop.pad_token = padding_is_stop.eos_token
    collator = DataCollatorForLanguageModeling(padding_is_stop, mlm=False)

    def mask_by_id(recipe):
        def pad_batch(batch, *, pad_token_id, next_tokens):
            assert pad_token_id == padding_is_stop.pad_token_id
            assert next_tokens
            padded = dict(collator([{"input_ids": row["input_ids"]} for row in batch]))
            return padded | {"next_tokens": pad(padded["labels"][:, 1:], (0, 1), value=-100)}

        recipe.pad_batch = pad_batch

    curve = overfit(settings, path, mask_by_id)
    answers = ask(curve.model, tokenizer, rows)
    num_stopped = sum(answer.stopped for answer in answers)
    print(f"stopped by themselves: {num_stopped} of {NUM_ROWS}, loss {curve.losses[-1]:.4f}")
    assert curve.losses[-1] < 0.5, "it did not learn the answers either"
    assert num_stopped < MOST
