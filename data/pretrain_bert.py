"""Pretrain the embedded Chinese BERT: masked tokens and next sentences, the two tasks of the paper.

Run: `python data/train_wordpiece.py && python data/pretrain_bert.py`. It writes a `transformers`
folder with the pooler and both heads, and `metrics.json`. The second task trains the pooler.

Source: Devlin et al. 2018, arXiv 1810.04805, section 3.1.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from train_wordpiece import MAX_LENGTH, documents, reviews
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

HERE = Path(__file__).parent
SEED = 37
SEGMENT_CHARACTERS = 24
"""About the length of a review, so that a batch mixes both without much padding."""
HELD_OUT_FRACTION = 0.02
RANDOM_FRACTION = 0.5
DOCUMENT_FRACTION = 0.25
"""Share of the documents' runs in one pass: what a small model learns in few steps is reviews."""
BATCH_SIZE = 32
NUM_STEPS = 4500
LEARNING_RATE = 1.5e-3


class Pair(NamedTuple):
    """A text, or two halves that may belong together.

    Attributes:
        first: First half, or all there is.
        second: Second half; may be empty.
        label: Class of the second task: 0 belongs together, 1 drawn at random, -100 not asked.
    """

    first: str
    second: str
    label: int


def segments(document: str) -> Iterator[list[str]]:
    """Runs of sentences of a document, two at least, of about `SEGMENT_CHARACTERS` together."""
    run: list[str] = []
    for sentence in re.findall(r"[^。？！\n]+[。？！”’]*", document):
        run.append(sentence)
        if len(run) > 1 and sum(map(len, run)) >= SEGMENT_CHARACTERS:
            yield run
            run = []
    if len(run) > 1:
        yield run


def halves(rng: Random, parts: Sequence[str]) -> tuple[str, str]:
    """The parts cut in two at random."""
    cut = rng.randint(1, len(parts) - 1)
    return "".join(parts[:cut]), "".join(parts[cut:])


def make_pairs(rng: Random, runs: list[list[str]], texts: list[str]) -> list[Pair]:
    """One pass over the reviews and a part of the documents, shuffled.

    Reviews stay whole, as a classifier will see them. The documents are cut in two, and half of the
    second halves come from elsewhere.

    Args:
        rng: Source of every choice.
        runs: Runs of sentences of the documents.
        texts: Reviews.
    """
    pairs = [Pair(text, "", -100) for text in texts]
    both = [halves(rng, run) for run in rng.sample(runs, round(DOCUMENT_FRACTION * len(runs)))]
    for first, second in both:
        is_random = rng.random() < RANDOM_FRACTION
        pairs.append(Pair(first, rng.choice(both)[1] if is_random else second, int(is_random)))
    rng.shuffle(pairs)
    return pairs


def encode(pairs: list[Pair], tokenizer: BertTokenizer) -> list[dict[str, list[int] | int]]:
    """The pairs as token ids, segment numbers and the class of the second task."""
    return [
        {
            **tokenizer(pair.first, pair.second or None, truncation=True, verbose=False),
            "next_sentence_label": pair.label,
        }
        for pair in pairs
    ]


def new_model(tokenizer: BertTokenizer) -> BertForPreTraining:
    """A small BERT with random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.04,  # at 0.02 so small a model takes long to find positions
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForPreTraining(config)


def split(rng: Random, texts: list[str]) -> tuple[list[str], list[str]]:
    """Texts to learn from, and texts held out."""
    shuffled = rng.sample(texts, len(texts))
    num_held_out = round(HELD_OUT_FRACTION * len(texts))
    return shuffled[num_held_out:], shuffled[:num_held_out]


@torch.no_grad()
def held_out_metrics(
    model: BertForPreTraining, pairs: list[Pair], tokenizer: BertTokenizer, most_frequent: int
) -> dict[str, float]:
    """How often the masked token and the second task are guessed, each beside the plain guess.

    Args:
        model: The trained model.
        pairs: Held-out pairs.
        tokenizer: Its tokenizer.
        most_frequent: Token id that a guesser without a model would always say.
    """
    collate = DataCollatorForLanguageModeling(tokenizer, seed=SEED)
    model.eval()
    counts: Counter[str] = Counter()
    examples = encode(pairs, tokenizer)
    for start in range(0, len(examples), BATCH_SIZE):
        batch = collate(examples[start : start + BATCH_SIZE])
        output = model(**batch)
        masked, asked = batch["labels"] != -100, batch["next_sentence_label"] != -100
        labels, order = batch["labels"][masked], batch["next_sentence_label"][asked]
        counts["masked"] += len(labels)
        counts["masked_right"] += int((output.prediction_logits[masked].argmax(-1) == labels).sum())
        counts["masked_frequent"] += int((labels == most_frequent).sum())
        counts["asked"] += len(order)
        counts["asked_right"] += int(
            (output.seq_relationship_logits[asked].argmax(-1) == order).sum()
        )
    return {
        "masked_accuracy": counts["masked_right"] / counts["masked"],
        "most_frequent_token_accuracy": counts["masked_frequent"] / counts["masked"],
        "next_sentence_accuracy": counts["asked_right"] / counts["asked"],
        "num_masked": counts["masked"],
        "num_next_sentence": counts["asked"],
    }


def pretrain(
    tokenizer: BertTokenizer, num_steps: int, output: Path
) -> tuple[BertForPreTraining, dict[str, float]]:
    """Train from random weights.

    Args:
        tokenizer: Tokenizer of `train_wordpiece.py`.
        num_steps: Optimizer updates of `BATCH_SIZE` pairs each.
        output: Folder of the run.
    """
    rng = Random(SEED)
    train_documents, held_out_documents = split(rng, documents())
    train_reviews, held_out_reviews = split(rng, reviews())
    runs = [run for document in train_documents for run in segments(document)]
    pairs: list[Pair] = []
    while len(pairs) < num_steps * BATCH_SIZE:  # each pass cuts and draws anew
        pairs += make_pairs(rng, runs, train_reviews)
    examples = encode(pairs[: num_steps * BATCH_SIZE], tokenizer)
    held_out_runs = [run for document in held_out_documents for run in segments(document)]
    held_out = make_pairs(rng, held_out_runs, held_out_reviews)

    set_seed(SEED)
    model = new_model(tokenizer)
    settings = TrainingArguments(
        output_dir=str(output),
        max_steps=num_steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        adam_beta2=0.98,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=num_steps // 10,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=SEED,
    )
    collate = DataCollatorForLanguageModeling(tokenizer)
    trainer = Trainer(model, settings, collate, train_dataset=examples)
    trainer.train()
    ids = Counter(token for example in examples for token in example["input_ids"])
    most_frequent = max(set(ids) - set(tokenizer.all_special_ids), key=lambda token: ids[token])
    metrics = held_out_metrics(model, held_out, tokenizer, most_frequent)
    return model, {**metrics, "num_tokens": ids.total()}


def main() -> None:
    """Pretrain and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, default=HERE / "checkpoints/tiny-bert-chinese")
    parser.add_argument("--output", type=Path, default=Path("runs/pretrain_bert_chinese"))
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    arguments = parser.parse_args()
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    model, metrics = pretrain(tokenizer, arguments.steps, arguments.output)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    metrics["seconds"] = time.perf_counter() - start
    text = json.dumps(metrics, indent=2)
    (arguments.output / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
