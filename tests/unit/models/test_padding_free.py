"""Without padding every row is answered as it is alone, and rows see nothing of each other."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)

from sft_kit.data.collators import pad_batch
from sft_kit.models.adapters import attach_lora
from sft_kit.models.block_attention import BLOCKS, register_blocks
from sft_kit.models.padding_free import (
    can_leave_out_padding,
    has_much_padding,
    leave_out_padding,
    leaves_out_padding,
    size_without_padding,
)
from sft_kit.models.token_losses import answer_losses

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
    "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=60, n_positions=256, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2, a window of 6 tokens": Gemma2Config(
        **SMALL, head_dim=8, sliding_window=6, attn_logit_softcapping=None
    ),
}  # fmt: skip
LENGTHS = (5, 140, 1, 23, 140)


def build(name: str, attention: str = BLOCKS) -> Any:
    register_blocks()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]))
    model.set_attn_implementation(attention)
    return model


def rows() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for length in LENGTHS:
        tokens = torch.randint(1, 60, (length,), generator=generator).tolist()
        made.append({"input_ids": tokens, "labels": [-100, *tokens[1:]]})
    return made


def batch(made: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    inputs = pad_batch(made, pad_token_id=0, next_tokens=True)
    del inputs["labels"]
    return inputs


def each_alone(model: Any, made: list[dict[str, list[int]]]) -> list[torch.Tensor]:
    """Losses of every row by the model's own forward, over one row without padding."""
    losses = []
    for row in made:
        tokens = torch.tensor([row["input_ids"]])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        losses.append(functional.cross_entropy(logits, tokens[0, 1:], reduction="none"))
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_every_row_alone(name: str) -> None:
    model, reference = build(name), build(name, "eager")
    model, reference = (
        attach_lora(one, LoraConfig(r=2, target_modules="all-linear"), fused=False)
        for one in (model, reference)
    )
    with torch.no_grad():
        for one in (model, reference):
            torch.manual_seed(3)
            for part, weight in one.named_parameters():
                if "lora_" in part:
                    weight.normal_(std=0.1)
    assert answer_losses(model) == [
        "padding: left out where there is much (model.attention, model.fused)"
    ]
    model.train()
    made = rows()
    seen: list[torch.Size] = []
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    nll = model(**batch(made)).nll
    hook.remove()
    assert seen == [torch.Size([1, sum(LENGTHS) + 11])]  # 309 and a row to fill it up to 320
    alone = each_alone(reference.train(), made)
    for found, truth in zip(nll, alone, strict=True):
        torch.testing.assert_close(found[1 : 1 + len(truth)], truth, atol=1e-4, rtol=1e-4)
        assert not found[1 + len(truth) :].any()
    nll.sum().backward()
    torch.cat(alone).sum().backward()
    pairs = zip(model.named_parameters(), reference.parameters(), strict=True)
    for (part, mine), theirs in pairs:
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_learns_nothing_of_the_others(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    answer_losses(model)
    model.train()
    made = rows()
    before = model(**batch(made)).nll
    made[1]["input_ids"][70] = (made[1]["input_ids"][70] + 1) % 60
    after = model(**batch(made)).nll
    for place in (0, 2, 3, 4):
        assert torch.equal(before[place], after[place])
    assert not torch.equal(before[1], after[1])


def test_queries_in_float32_and_values_in_bfloat16_are_learnt_from() -> None:
    """As under autocast where a norm of queries and keys answers in float32, such as Qwen3's."""
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(3))
    upstream = torch.randn(1, 9, 2, 8, generator=generator)
    given = [query.clone(), key.clone(), value.bfloat16()]
    truth = [query.double(), key.double(), value.bfloat16().double()]
    for one in (*given, *truth):
        one.requires_grad_()
    borders = torch.tensor([0, 4, 9], dtype=torch.int32)
    register_blocks()
    attend = AttentionInterface()[BLOCKS]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(nn.Module(), *given, None, is_causal=True, cu_seq_lens_q=borders)
    found.backward(upstream.to(found.dtype))
    rows = [
        functional.scaled_dot_product_attention(
            *(one[:, :, start:end] for one in truth), is_causal=True
        )
        for start, end in ((0, 4), (4, 9))
    ]
    expected = torch.cat(rows, 2).transpose(1, 2)
    expected.backward(upstream.double())
    assert found.dtype == torch.bfloat16
    pairs = [
        (found, expected),
        *((one.grad, other.grad) for one, other in zip(given, truth, strict=True)),
    ]
    for one, other in pairs:
        assert float(((one.double() - other).norm() / other.norm()).detach()) < 0.02


def test_a_model_that_answers_without_learning_keeps_its_padding() -> None:
    model = build("gpt2")
    plain = copy.deepcopy(model)
    answer_losses(model, fused=True)
    answer_losses(plain, fused=False)
    inputs = batch(rows())
    assert torch.equal(model.eval()(**inputs).nll, plain.eval()(**inputs).nll)


def test_padding_stays_where_the_kernel_does_not_know_the_borders() -> None:
    assert can_leave_out_padding(build("llama"))
    for attention in ("sdpa", "eager"):
        model = build("llama", attention)
        assert not can_leave_out_padding(model)
        assert answer_losses(model)[0].startswith("padding: computed")
    assert answer_losses(build("llama"), fused=False)[0].startswith("padding: computed")


def test_padding_stays_where_rows_of_such_heads_do_not_fit_the_kernel() -> None:
    """Values are narrower than keys."""
    config = DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2,
    )  # fmt: skip
    register_blocks()
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(BLOCKS)
    assert answer_losses(model)[0].startswith("padding: computed")
    assert model.train()(**batch(rows())).nll.isfinite().all()


def test_padding_stays_where_attention_is_cut_into_chunks_longer_than_the_rows_tried() -> None:
    model = build("llama")
    model.config.attention_chunk_size = 100
    assert not can_leave_out_padding(model)


def test_positions_that_nobody_gives_are_counted_row_by_row() -> None:
    model = build("gpt2")
    answer_losses(model)
    model.train()
    inputs = batch(rows())
    expected = model(**inputs).nll
    del inputs["position_ids"]
    assert torch.equal(model(**inputs).nll, expected)


def test_a_model_tells_whether_it_leaves_out_padding() -> None:
    model = build("gpt2")
    assert not leaves_out_padding(model)
    adapted = attach_lora(model, LoraConfig(r=2, target_modules="all-linear"), fused=False)
    answer_losses(adapted)
    assert leaves_out_padding(adapted)
    answer_losses(adapted, fused=False)
    assert not leaves_out_padding(adapted)


def test_a_model_that_drops_the_borders_on_the_way_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("llama")
    kernel = AttentionInterface()[BLOCKS]

    def forgetful(*args: Any, cu_seq_lens_q: object = None, **options: Any) -> Any:
        assert cu_seq_lens_q is not None
        return kernel(*args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, BLOCKS, forgetful)
    assert not can_leave_out_padding(model)


def test_a_model_that_counts_positions_by_itself_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("gpt2")
    forward = model.transformer.forward

    def counting(*args: Any, position_ids: object = None, **options: Any) -> Any:
        assert position_ids is not None
        return forward(*args, **options)

    monkeypatch.setattr(model.transformer, "forward", counting)
    assert not can_leave_out_padding(model)


def test_inputs_lose_their_padding_and_the_borders_are_told() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]])
    inputs = {"input_ids": torch.arange(9).view(3, 3), "attention_mask": mask, "use_cache": False}
    flat = leave_out_padding(inputs, BLOCKS, ignored={"input_ids": -100})
    assert flat["input_ids"].tolist() == [[0, 1, 2, 3, 7, 8, -100, -100]]
    assert flat["attention_mask"].tolist() == [[1] * 8]
    assert flat["cu_seq_lens_q"].tolist() == flat["cu_seq_lens_k"].tolist() == [0, 3, 4, 6, 8]
    assert flat["max_length_q"] == flat["max_length_k"] == 3
    assert flat["use_cache"] is False
    assert leave_out_padding(inputs, "flash_attention_2")["attention_mask"] is None


def test_batches_have_few_sizes_and_little_to_fill_up() -> None:
    sizes = set()
    for count in range(1, 4097):
        mask = torch.ones(1, count, dtype=torch.long)
        flat = leave_out_padding({"attention_mask": mask}, BLOCKS)
        size = flat["attention_mask"].shape[1]
        assert size == size_without_padding(mask)
        assert count <= size <= max(count + 7, count * 17 / 16)
        assert flat["cu_seq_lens_q"].tolist()[-1] == size
        sizes.add(size)
    assert len(sizes) == 16 * 6  # eight apart up to 256, then sixteen from one power of two on


def test_a_little_padding_stays() -> None:
    mask = torch.ones(10, 10, dtype=torch.long)
    mask[0, :9] = 0
    assert not has_much_padding(mask)
    mask[0] = mask[1, 9] = 0
    assert has_much_padding(mask)
