import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from sft_kit.data.collators import pad_batch
from sft_kit.data.rows import IGNORED

ROWS = [
    {"input_ids": [11, 12, 13, 14, 0], "labels": [IGNORED, IGNORED, 13, 14, 0]},
    {"input_ids": [21, 0], "labels": [IGNORED, 0]},
    {"input_ids": [31, 32, 0, 33], "labels": [IGNORED, 32, 0, 33]},
]


def test_right_padding_equals_the_batch_written_by_hand():
    batch = pad_batch(ROWS, pad_token_id=0)
    assert batch["input_ids"].tolist() == [
        [11, 12, 13, 14, 0],
        [21, 0, 0, 0, 0],
        [31, 32, 0, 33, 0],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0], [0, 1, 2, 3, 0]]
    assert batch["labels"].tolist() == [
        [-100, -100, 13, 14, 0],
        [-100, 0, -100, -100, -100],
        [-100, 32, 0, 33, -100],
    ]


def test_left_padding_equals_the_batch_written_by_hand():
    batch = pad_batch(ROWS[1:], pad_token_id=7, side="left")
    assert batch["input_ids"].tolist() == [[7, 7, 21, 0], [31, 32, 0, 33]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 0], [-100, 32, 0, 33]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_stop_token_keeps_its_label_when_it_is_also_the_padding_token(side: str):
    batch = pad_batch(ROWS, pad_token_id=0, side=side)
    assert batch["labels"].eq(0).sum(dim=1).tolist() == [1, 1, 1]


def test_every_tensor_is_int64():
    assert {tensor.dtype for tensor in pad_batch(ROWS, pad_token_id=0).values()} == {torch.int64}


def real_logits(model: torch.nn.Module, pad_token_id: int, side: str) -> torch.Tensor:
    batch = pad_batch(ROWS, pad_token_id=pad_token_id, side=side)
    labels = batch.pop("labels")
    assert labels.shape == batch["input_ids"].shape
    with torch.no_grad():
        logits = model(**batch).logits
    return logits[batch["attention_mask"].bool()]


def assert_close_everywhere(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.max() < 1e-5
    assert difference.mean() < 1e-6


def test_left_padding_gives_the_logits_of_right_padding_for_gpt2(
    gpt2_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
):
    pad = tokenizer.eos_token_id
    left, right = (real_logits(gpt2_model, pad, side) for side in ("left", "right"))
    assert_close_everywhere(left, right)


def test_left_padding_gives_the_logits_of_right_padding_for_llama(
    llama_model: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
):
    pad = llama_tokenizer.pad_token_id
    left, right = (real_logits(llama_model, pad, side) for side in ("left", "right"))
    assert_close_everywhere(left, right)


def test_padded_rows_give_the_logits_of_each_row_alone(gpt2_model: GPT2LMHeadModel):
    with torch.no_grad():
        alone = torch.cat(
            [gpt2_model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
        )
    assert_close_everywhere(real_logits(gpt2_model, 0, "left"), alone)
