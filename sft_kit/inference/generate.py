"""Replies of a model: many at once, or one as it is being written.

A reply depends on the model, its own prompt and the sampling settings only: not on the other
prompts of the batch, not on torch's global random state (which is neither read nor moved) and not
on the generation settings that a checkpoint brings along.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from sft_kit.data.rows import Message
from sft_kit.data.templates import Template, encode_prompt
from sft_kit.errors import CheckpointError, DataError, Problem
from sft_kit.models.base import context_length
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Dividing by less overflows float32; long before that, only the likeliest token can be drawn.
_COLDEST = 1e-6


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Attributes:
        text: The reply without special tokens and surrounding whitespace.
        ids: Its token ids, without the stop token.
        stopped: The model ended the reply itself, with the stop token; else it was cut.
    """

    text: str
    ids: list[int]
    stopped: bool


def generate(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    prompts: Sequence[Sequence[Message]],
    sampling: SampleSettings,
    batch_size: int = 8,
) -> list[Reply]:
    """Answer every prompt.

    Args:
        model: Causal language model; its training mode is put back afterwards.
        tokenizer: The run's tokenizer.
        template: The run's template.
        prompts: Chats whose last message waits for an answer.
        sampling: How to draw; a reply also ends where the model's context ends.
        batch_size: Prompts per forward pass; changes the speed only.

    Raises:
        DataError: Prompts that are empty or leave no room for a reply.
    """
    encoded = [encode_prompt(tokenizer, template, messages) for messages in prompts]
    rooms = _reply_rooms(model, [len(ids) for ids in encoded], sampling.max_new_tokens)
    replies: dict[int, Reply] = {}
    with _answering(model):
        for batch in _batches(rooms, [len(ids) for ids in encoded], batch_size):
            completions = _complete(
                model,
                [encoded[index] for index in batch],
                rooms[batch[0]],
                template.stop_token_id,
                sampling,
            )
            for index, ids in zip(batch, completions, strict=True):
                replies[index] = _reply(tokenizer, template, ids)
    return [replies[index] for index in range(len(prompts))]


def stream(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    messages: Sequence[Message],
    sampling: SampleSettings,
    on_text: Callable[[str], None],
) -> Reply:
    """Answer one prompt, handing over the text as it comes.

    It is generated in the calling thread: an exception from `on_text`, or Ctrl-C, ends the
    generation there and then and leaves the model as it was.

    Args:
        model: Causal language model; its training mode is put back afterwards.
        tokenizer: The run's tokenizer.
        template: The run's template.
        messages: Chat whose last message waits for an answer.
        sampling: How to draw; a reply also ends where the model's context ends.
        on_text: Called with each new piece, never half a character; together they are the text.

    Raises:
        DataError: A prompt that is empty or leaves no room for a reply.
    """
    ids = encode_prompt(tokenizer, template, messages)
    (room,) = _reply_rooms(model, [len(ids)], sampling.max_new_tokens)
    pieces = _TextPieces(tokenizer, template.stop_token_id, on_text)
    with _answering(model):
        (completion,) = _complete(model, [ids], room, template.stop_token_id, sampling, pieces)
    reply = _reply(tokenizer, template, completion)
    pieces.finish(reply.text)
    return reply


class _Draw(LogitsProcessor):
    """Draws every row's next token with the row's own generator, and leaves only it possible.

    `generate(do_sample=True)` would draw from torch's global generator: training that shows samples
    would continue differently, and a reply would depend on its neighbours in the batch.
    """

    def __init__(self, seed: int, num_rows: int, device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for _ in range(num_rows)]

    def __call__(self, _: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Turn scores (B, V) into 0 for the token drawn and -inf for all others."""
        rows = zip(scores.softmax(dim=-1), self.generators, strict=True)
        drawn = torch.stack([torch.multinomial(row, 1, generator=source) for row, source in rows])
        only = torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)
        return cast("torch.FloatTensor", only)


class _RefuseNaN(LogitsProcessor):
    """Ends the generation of a broken model, whose likeliest token would silently be token 0."""

    def __call__(self, _: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (B, V) unchanged."""
        if torch.isnan(scores).any():
            raise CheckpointError(
                "the model's scores are not numbers (NaN): its weights are broken, or its training "
                "has diverged; train again with a lower train.learning_rate"
            )
        return scores


class _TextPieces(BaseStreamer):
    """Turns the token ids of one reply into pieces of text that need no correction later."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_token_id: int,
        on_text: Callable[[str], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_token_id = stop_token_id
        self.on_text = on_text
        self.ids: list[int] | None = None
        self.num_shown = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (the first call) or new token ids."""
        if self.ids is None:
            self.ids = []
            return
        self.ids.extend(value.flatten().tolist())
        text = _decode(self.tokenizer, _until_stop(self.ids, self.stop_token_id))
        # A character of several tokens decodes to U+FFFD until its last token is there.
        self._show(text.rstrip("\ufffd").rstrip())

    def end(self) -> None:
        """Do nothing: `finish` shows the rest."""

    def finish(self, text: str) -> None:
        """Show what is missing to the whole text."""
        self._show(text)

    def _show(self, text: str) -> None:
        if len(text) > self.num_shown:
            piece = text[self.num_shown :]
            self.num_shown = len(text)
            self.on_text(piece)


def _reply_rooms(
    model: "PreTrainedModel | PeftModel", prompt_lengths: Sequence[int], max_new_tokens: int
) -> list[int]:
    """Return how many tokens each reply may have."""
    context = context_length(model.config)
    problems = []
    for number, length in enumerate(prompt_lengths, start=1):
        if length == 0:
            problems.append(
                Problem(f"prompt {number}", "", "has no token to continue", "write something")
            )
        elif context is not None and length >= context:
            found = f"has {length:,} tokens, the model reads at most {context:,} with the reply"
            problems.append(Problem(f"prompt {number}", "", found, "shorten it"))
    if problems:
        raise DataError(f"{len(problems)} of {len(prompt_lengths)} prompts can't be used", problems)
    if context is None:
        return [max_new_tokens] * len(prompt_lengths)
    return [min(max_new_tokens, context - length) for length in prompt_lengths]


def _batches(
    rooms: Sequence[int], prompt_lengths: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Yield indices of prompts with the same room (one limit per batch), sorted by length."""
    order = sorted(range(len(rooms)), key=lambda index: (rooms[index], prompt_lengths[index]))
    for _, group in groupby(order, key=lambda index: rooms[index]):
        indices = list(group)
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _complete(
    model: "PreTrainedModel | PeftModel",
    prompts: Sequence[list[int]],
    num_tokens: int,
    stop_token_id: int,
    sampling: SampleSettings,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Continue B prompts by at most `num_tokens`; left padding ends them all in one column."""
    width = max(len(ids) for ids in prompts)
    # Any id can pad: padding is masked, and `generate` counts positions from the mask.
    padded = [[stop_token_id] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    output = cast("Any", model).generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=_generation_config(
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=stop_token_id,
            pad_token_id=stop_token_id,
        ),
        logits_processor=_processors(sampling, len(prompts), model.device),
        streamer=streamer,
    )
    return cast("list[list[int]]", output[:, width:].tolist())


def _generation_config(**values: int | bool) -> GenerationConfig:
    return cast("GenerationConfig", cast("Any", GenerationConfig)(**values))


def _processors(
    sampling: SampleSettings, num_rows: int, device: torch.device
) -> LogitsProcessorList:
    processors = LogitsProcessorList([_RefuseNaN()])
    if sampling.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(max(sampling.temperature, _COLDEST)))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(_Draw(sampling.seed, num_rows, device))
    return processors


@contextmanager
def _answering(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Switch off dropout and the checkpoint's own generation settings, then put both back.

    `generate` fills whatever its settings leave open from `model.generation_config`: a repetition
    penalty shipped with a checkpoint would take part unseen.
    """
    base = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
    shipped = base.generation_config
    modes = [(module, module.training) for module in model.modules()]
    base.generation_config = _generation_config()
    model.eval()
    try:
        yield
    finally:
        base.generation_config = shipped
        for module, mode in modes:
            module.training = mode


def _reply(tokenizer: "PreTrainedTokenizerBase", template: Template, ids: Sequence[int]) -> Reply:
    kept = _until_stop(ids, template.stop_token_id)
    return Reply(_decode(tokenizer, kept), kept, stopped=len(kept) < len(ids))


def _until_stop(ids: Sequence[int], stop_token_id: int) -> list[int]:
    return list(ids[: ids.index(stop_token_id)] if stop_token_id in ids else ids)


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast("str", text).strip()
