"""Replies of a model: many at once, or one as it is being written.

A reply depends on the model, its own prompt and the sampling settings only: not on the other
prompts of the batch, not on torch's global random state (which is neither read nor moved) and not
on the generation settings that a checkpoint brings along, but for the end tokens it names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from sft_kit.data.rows import Message
from sft_kit.data.templates import Template, encode_prompt
from sft_kit.errors import DataError, Problem
from sft_kit.inference.drawing import draw_processors
from sft_kit.inference.kept_cache import KeptCache
from sft_kit.inference.text_pieces import TextPieces, decode_reply, until_stop
from sft_kit.models.base import context_length
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Attributes:
        text: The reply without special tokens and surrounding whitespace.
        ids: Its token ids, without the stop token.
        stopped: The model ended the reply itself, with a stop token; else it was cut.
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

    Returns:
        A reply per prompt; empty ones where another process has the model's weights.

    Raises:
        DataError: Prompts that are empty or leave no room for a reply.
    """
    if next(model.parameters()).is_meta:
        return [Reply("", [], stopped=False) for _ in prompts]
    encoded = [encode_prompt(tokenizer, template, messages) for messages in prompts]
    rooms = reply_rooms(model, [len(ids) for ids in encoded], sampling.max_new_tokens)
    stop_token_ids = stop_ids(model, template)
    replies: dict[int, Reply] = {}
    with answering(model):
        for batch in _batches(rooms, [len(ids) for ids in encoded], batch_size):
            chosen = [encoded[index] for index in batch]
            completions = _complete(model, chosen, rooms[batch[0]], stop_token_ids, sampling)
            for index, ids in zip(batch, completions, strict=True):
                replies[index] = _reply(tokenizer, ids, stop_token_ids)
    return [replies[index] for index in range(len(prompts))]


def stream(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    messages: Sequence[Message],
    sampling: SampleSettings,
    on_text: Callable[[str], None],
    kept: KeptCache | None = None,
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
        kept: States of this chat's earlier turns, which are not computed again; gets those of this
            turn, also when it is interrupted.

    Raises:
        DataError: A prompt that is empty or leaves no room for a reply.
    """
    ids = encode_prompt(tokenizer, template, messages)
    (room,) = reply_rooms(model, [len(ids)], sampling.max_new_tokens)
    stop_token_ids = stop_ids(model, template)
    pieces = TextPieces(tokenizer, stop_token_ids, on_text)
    completion = continue_ids(model, ids, room, stop_token_ids, sampling, kept, pieces.take)
    reply = _reply(tokenizer, completion, stop_token_ids)
    pieces.finish(reply.text)
    return reply


def continue_ids(
    model: "PreTrainedModel | PeftModel",
    ids: Sequence[int],
    num_tokens: int,
    stop_token_ids: Sequence[int],
    sampling: SampleSettings,
    kept: KeptCache | None = None,
    on_ids: Callable[[list[int]], None] | None = None,
) -> list[int]:
    """Continue one list of token ids.

    `[*kept.ids, *more]` goes on exactly where the last call stopped, whatever ids a tokenizer would
    make of the text.

    Args:
        model: Causal language model; its training mode is put back afterwards.
        ids: P token ids to continue, at least one.
        num_tokens: Most new tokens.
        stop_token_ids: Tokens that end the continuation, at least one.
        sampling: How to draw; its `max_new_tokens` takes no part.
        kept: States of ids that `ids` may begin with; gets those of this call.
        on_ids: Called after every new token with all new ids so far.

    Returns:
        The new ids; a stop token that ended them is the last.
    """
    recorder = _Recorder(on_ids)
    lent: AbstractContextManager[DynamicCache | None] = (
        nullcontext() if kept is None else kept.lent(model, ids, recorder.ids)
    )
    with answering(model), lent as cache:
        _complete(model, [list(ids)], num_tokens, stop_token_ids, sampling, recorder, cache)
    return recorder.ids


def stop_ids(model: "PreTrainedModel | PeftModel", template: Template) -> tuple[int, ...]:
    """Return the ids of all tokens that end a reply, the template's first.

    A checkpoint may end its replies with more tokens than its template shows: `<|eot_id|>` and
    `<|eom_id|>` of Llama 3, `<|observation|>` of ChatGLM3.

    Args:
        model: Model whose `generation_config.eos_token_id` names the checkpoint's own end tokens.
        template: The run's template.
    """
    named = getattr(_base(model).generation_config, "eos_token_id", None)
    own = [named] if isinstance(named, int) else list(named or [])
    return tuple(dict.fromkeys([*template.stop_token_ids, *own]))


class _Recorder(BaseStreamer):
    """Keeps the new ids of one continuation as they come, so that an interruption loses none."""

    def __init__(self, on_ids: Callable[[list[int]], None] | None) -> None:
        self.ids: list[int] = []
        self.on_ids = on_ids
        self.knows_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (the first call) or new token ids."""
        if not self.knows_prompt:
            self.knows_prompt = True
            return
        self.ids.extend(value.flatten().tolist())
        if self.on_ids is not None:
            self.on_ids(self.ids)

    def end(self) -> None:
        """Do nothing: nothing was held back."""


def reply_rooms(
    model: "PreTrainedModel | PeftModel", prompt_lengths: Sequence[int], max_new_tokens: int
) -> list[int]:
    """Return how many tokens each reply may have.

    Args:
        model: Its context bounds prompt and reply together.
        prompt_lengths: Tokens of each prompt.
        max_new_tokens: Most tokens of a reply.

    Raises:
        DataError: Prompts that are empty or leave no room for a reply.
    """
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
    stop_token_ids: Sequence[int],
    sampling: SampleSettings,
    streamer: BaseStreamer | None = None,
    cache: DynamicCache | None = None,
) -> list[list[int]]:
    """Continue B prompts by at most `num_tokens`; left padding ends them all in one column."""
    width = max(len(ids) for ids in prompts)
    # Any id can pad: padding is masked, and `generate` counts positions from the mask.
    pad_token_id = stop_token_ids[0]
    padded = [[pad_token_id] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    output = cast("Any", model).generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=_generation_config(
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(stop_token_ids),
            pad_token_id=pad_token_id,
        ),
        logits_processor=draw_processors(sampling, len(prompts), model.device),
        streamer=streamer,
        **({} if cache is None else {"past_key_values": cache}),
    )
    return cast("list[list[int]]", output[:, width:].tolist())


def _generation_config(**values: int | list[int]) -> GenerationConfig:
    return cast("GenerationConfig", cast("Any", GenerationConfig)(**values))


@contextmanager
def answering(model: "PreTrainedModel | PeftModel") -> Iterator[None]:
    """Switch off dropout and the checkpoint's own generation settings, then put both back.

    `generate` fills whatever its settings leave open from `model.generation_config`: a repetition
    penalty shipped with a checkpoint would take part unseen.
    """
    base = _base(model)
    shipped = base.generation_config
    pad_token_id = getattr(base.config, "pad_token_id", None)
    modes = [(module, module.training) for module in model.modules()]
    base.generation_config = _generation_config()
    if pad_token_id is not None:
        # `generate` drops a mask of ones. GPT-2 then warns of padding where the ids it reads begin
        # with the pad token; with kept states that is the stop token of the last reply.
        base.config.pad_token_id = None
    model.eval()
    try:
        yield
    finally:
        base.generation_config = shipped
        if pad_token_id is not None:
            base.config.pad_token_id = pad_token_id
        for module, mode in modes:
            module.training = mode


def _base(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    base = cast("Any", model).get_base_model() if hasattr(model, "get_base_model") else model
    return cast("PreTrainedModel", base)


def _reply(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], stop_token_ids: Sequence[int]
) -> Reply:
    kept = until_stop(ids, stop_token_ids)
    return Reply(decode_reply(tokenizer, kept), kept, stopped=len(kept) < len(ids))
