"""What models write that hold no chats: texts that go on, masks and blanks that are filled.

As a chat's reply, it depends on the model, its own prompt and the sampling settings only; torch's
global random state is neither read nor moved.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from transformers import GenerationConfig

from sft_kit.data.corpus.vocabulary import Needs, vocabulary_of
from sft_kit.data.segments import leading_special_tokens
from sft_kit.errors import CheckpointError, DataError, Problem
from sft_kit.inference.drawing import draw_processors
from sft_kit.inference.encoder import Encoder, evaluating
from sft_kit.inference.generate import Reply, answering, continue_ids, reply_rooms
from sft_kit.inference.masks import correct_characters, fill_masks
from sft_kit.inference.placing import encode, spell_out
from sft_kit.inference.prefix import continue_texts, fill_blanks
from sft_kit.inference.seq2seq import begin_and_end
from sft_kit.inference.text_pieces import until_stop
from sft_kit.models.base import context_length
from sft_kit.models.kinds import Kind
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Write: TypeAlias = Callable[[Encoder, Sequence[str], SampleSettings], list[Reply]]

_BY_OBJECTIVE: Mapping[str, _Write] = MappingProxyType(
    {
        "mlm": fill_masks,
        "wwm": fill_masks,
        "bidirectional": fill_masks,
        "spell": correct_characters,
        "causal": partial(continue_texts, two_way=False),
        "prefix": partial(continue_texts, two_way=True),
        "infill": fill_blanks,
    }
)
"""What an encoder does, by what it was trained for."""


_FILLS = ("mlm", "wwm", "bidirectional", "infill")


def write_plain(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    sampling: SampleSettings,
    *,
    kind: Kind,
    objective: str,
) -> list[Reply]:
    """Have a model do with texts what it was trained for.

    A decoder continues a text. An encoder-decoder reads a text and writes one. An encoder fills the
    text's mask tokens, corrects its characters, continues it or fills its blanks. Special tokens
    that a text spells, such as `[MASK]` or `<extra_id_0>`, count as such.

    Args:
        model: Its training mode is put back afterwards.
        tokenizer: The run's tokenizer.
        prompts: Texts.
        sampling: How to draw; a reply also ends where the model's context ends.
        kind: What the model reads and answers.
        objective: What it was trained for, as `run.yaml` says.

    Returns:
        What the model wrote: of masks, blanks and characters the whole text with them filled in.
        Nothing where another process has the model's weights.

    Raises:
        DataError: Prompts that can't be used, all at once, or a tokenizer that lacks a token.
        CheckpointError: The model does not fit its objective, or is broken.
    """
    if next(model.parameters()).is_meta:
        return [Reply("", [], stopped=False) for _ in prompts]
    if kind == "causal":
        return _continue(model, tokenizer, prompts, sampling)
    if kind == "seq2seq":
        return _transduce(model, tokenizer, prompts, sampling, objective)
    write = _BY_OBJECTIVE.get(objective)
    if write is None:
        known = ", ".join(_BY_OBJECTIVE)
        raise CheckpointError(f"an encoder with objective {objective!r} is not known ({known} are)")
    needs: Needs = "left_to_right" if objective == "causal" else "masked"
    with evaluating(model):
        return write(Encoder(model, tokenizer, vocabulary_of(tokenizer, needs)), prompts, sampling)


def choose_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], objective: str
) -> tuple[list[str], list[str]]:
    """Choose the prompts that an objective can do something with.

    Masks and blanks are filled where there are any; a text that goes on should have none.

    Args:
        tokenizer: Knows the mask token.
        prompts: Texts.
        objective: What the model is trained for, as `run.yaml` says.

    Returns:
        The prompts to write for, and a sentence on each of the others.
    """
    mask = tokenizer.mask_token
    fills, goes_on = objective in _FILLS, objective in ("causal", "prefix")
    chosen, left_out = [], []
    for prompt in prompts:
        has_mask = mask is not None and mask in prompt
        if (fills and not has_mask) or (goes_on and has_mask):
            why = f"has no {mask} to fill" if fills else f"has a {mask}, and texts go on here"
            left_out.append(f"sample.prompts: {prompt!r} {why}, so it is left out ({objective})")
        else:
            chosen.append(prompt)
    return chosen, left_out


def _continue(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    sampling: SampleSettings,
) -> list[Reply]:
    """Continue texts, each begun as the documents of training were."""
    end = vocabulary_of(tokenizer, "causal").end
    before = encode(tokenizer, leading_special_tokens(tokenizer))
    starts = [[*before, *encode(tokenizer, prompt)] for prompt in prompts]
    rooms = reply_rooms(model, [len(ids) for ids in starts], sampling.max_new_tokens)
    replies = []
    for ids, room in zip(starts, rooms, strict=True):
        written = continue_ids(model, ids, room, [end], sampling)
        kept = until_stop(written, [end])
        replies.append(Reply(spell_out(tokenizer, kept), kept, stopped=len(kept) < len(written)))
    return replies


def _transduce(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    sampling: SampleSettings,
    objective: str,
) -> list[Reply]:
    """Let the encoder read and the decoder write; sentinels stay in the text where they count."""
    sources = [_read_as(tokenizer, prompt, objective) for prompt in prompts]
    _refuse_long_sources(model, sources)
    kept_visible = frozenset(
        vocabulary_of(tokenizer, "spans").sentinels if objective == "spans" else ()
    )
    tokens = begin_and_end(model, tokenizer)
    stops = _ends(tokens, tokenizer, objective)
    replies = []
    with answering(model):
        for ids in sources:
            written = _write_one(model, ids, {**tokens, "eos_token_id": stops}, sampling)
            kept = until_stop(written, stops)
            text = _with_sentinels(tokenizer, kept, kept_visible)
            replies.append(Reply(text, kept, stopped=len(kept) < len(written)))
    return replies


def _read_as(tokenizer: "PreTrainedTokenizerBase", prompt: str, objective: str) -> list[int]:
    """Encode a text with the special tokens around it that rows of the objective have."""
    if objective == "spans":
        return [*encode(tokenizer, prompt), vocabulary_of(tokenizer, "spans").end]
    if objective == "denoise":
        vocabulary = vocabulary_of(tokenizer, "denoise")
        return [vocabulary.start, *encode(tokenizer, prompt), vocabulary.end]
    return cast("list[int]", tokenizer(prompt, verbose=False)["input_ids"])


def _ends(
    tokens: Mapping[str, int | list[int]], tokenizer: "PreTrainedTokenizerBase", objective: str
) -> list[int]:
    """Tokens that end what is written: BART's texts end with `sep_token` where there is one."""
    ends = cast("list[int]", tokens["eos_token_id"])
    own = [vocabulary_of(tokenizer, "denoise").end] if objective == "denoise" else []
    return [*dict.fromkeys([*ends, *own])]


def _refuse_long_sources(
    model: "PreTrainedModel | PeftModel", sources: Sequence[Sequence[int]]
) -> None:
    context = context_length(model.config)
    problems = [
        Problem(
            f"prompt {number}",
            "",
            f"has {len(ids):,} tokens, the model reads at most {context:,}",
            "shorten it",
        )
        for number, ids in enumerate(sources, start=1)
        if context is not None and len(ids) > context
    ]
    if problems:
        raise DataError(f"{len(problems)} of {len(sources)} prompts can't be used", problems)


def _write_one(
    model: "PreTrainedModel | PeftModel",
    ids: Sequence[int],
    tokens: Mapping[str, int | list[int]],
    sampling: SampleSettings,
) -> list[int]:
    context = context_length(model.config)
    room = sampling.max_new_tokens if context is None else min(sampling.max_new_tokens, context)
    input_ids = torch.tensor([list(ids)], device=model.device)
    options: dict[str, Any] = {
        **tokens,
        "max_new_tokens": room,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": cast("list[int]", tokens["eos_token_id"])[0],
    }
    output = cast("Any", model).generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=cast("Any", GenerationConfig)(**options),
        logits_processor=draw_processors(sampling, 1, model.device),
    )
    return cast("list[int]", output[0, 1:].tolist())  # the first one begins the decoder


def _with_sentinels(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], sentinels: frozenset[int]
) -> str:
    special = {*tokenizer.all_special_ids} - sentinels
    if not sentinels:
        return spell_out(tokenizer, ids)
    shown = [token_id for token_id in ids if token_id not in special]
    return cast("str", tokenizer.decode(shown, clean_up_tokenization_spaces=False)).strip()
