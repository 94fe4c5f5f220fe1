"""A reward model of its own base and template, which reads prompts and completions as text."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch

from sft_kit.artifacts.reward import LoadedReward
from sft_kit.data.collators import pad_batch
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Message
from sft_kit.data.segments import encode_segments, leading_special_tokens
from sft_kit.data.templates import render_segments, spelled_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextScorer = Callable[[Sequence[Prompt], Sequence[str]], torch.Tensor]
"""B prompts and B completions to (B,) scores."""

_ROWS_AT_ONCE = 16


def make_text_scorer(loaded: LoadedReward) -> TextScorer:
    """Make what scores completions as the reward model would score them in a data file.

    The chat is rendered with the reward model's own template, so that no space or token of the
    policy's template gets into it. What spells a special token of the reward model is left out: a
    policy could end its answer in the middle with it, and be scored for the better half.

    Args:
        loaded: From `load_reward_run`.
    """
    longest = loaded.tokenizer.model_max_length

    def score(prompts: Sequence[Prompt], completions: Sequence[str]) -> torch.Tensor:
        rows = [
            _ids_of(loaded, prompt, completion)[-longest:]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        starts = range(0, len(rows), _ROWS_AT_ONCE)
        return torch.cat([_read(loaded, rows[start : start + _ROWS_AT_ONCE]) for start in starts])

    return score


def _ids_of(loaded: LoadedReward, prompt: Prompt, completion: str) -> list[int]:
    """Encode a prompt with its answer, up to and including the stop token."""
    tokenizer, template = loaded.tokenizer, loaded.template
    answer = _without_special_tokens(tokenizer, completion)
    if not prompt.messages:
        text = _without_special_tokens(tokenizer, prompt.text)
        pieces = (leading_special_tokens(tokenizer), text, answer)
        encoded = tokenizer(list(pieces), add_special_tokens=False, verbose=False)["input_ids"]
        return [*chain.from_iterable(cast("list[list[int]]", encoded)), template.stop_token_id]
    chat = [
        Message(
            role=message["role"], content=_without_special_tokens(tokenizer, message["content"])
        )
        for message in prompt.messages
    ]
    chat.append(Message(role="assistant", content=answer.strip()))
    (row,) = encode_segments(tokenizer, [render_segments(tokenizer, template, chat)])
    return list(chain.from_iterable(row))


def _without_special_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    while spelled := spelled_special_tokens(tokenizer, [text]):  # removing one can spell another
        for token in spelled:
            text = text.replace(token, "")
    return text


@torch.no_grad()
def _read(loaded: LoadedReward, rows: Sequence[list[int]]) -> torch.Tensor:
    batch = pad_batch([{"input_ids": ids, "labels": ids} for ids in rows], pad_token_id=0)
    device = loaded.model.device
    output = loaded.model(
        input_ids=batch["input_ids"].to(device),
        attention_mask=batch["attention_mask"].to(device),
    )
    return cast("torch.Tensor", output.logits)[:, 0].float().cpu()
