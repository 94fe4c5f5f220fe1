"""A tiny run: random weights so large that every token read changes the likeliest next one."""

from dataclasses import dataclass

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sft_kit.data.templates import Template, choose_template


@dataclass
class Run:
    """Stands in for a loaded run."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    template: Template


@pytest.fixture
def run(tokenizer):
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    return Run(model, tokenizer, choose_template(tokenizer, "human-assistant"))


@pytest.fixture
def scripted(run):
    """Make the model say exactly the given token ids after a prompt, then the stop token."""

    def script(ids, num_prompt_tokens):
        original = run.model.forward

        def forward(input_ids=None, past_key_values=None, **rest):
            num_read = past_key_values.get_seq_length() if past_key_values is not None else 0
            output = original(input_ids=input_ids, past_key_values=past_key_values, **rest)
            position = num_read + input_ids.shape[1] - num_prompt_tokens
            chosen = ids[position] if position < len(ids) else run.template.stop_token_id
            output.logits[:] = 0.0
            output.logits[..., chosen] = 9.0
            return output

        run.model.forward = forward

    return script
