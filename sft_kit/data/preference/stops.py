"""Tokens that end a completion beside the template's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sft_kit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_token_ids(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> list[int]:
    """Look up the ids of tokens that a user wants a completion to end with.

    Args:
        tokenizer: The policy's.
        tokens: Each as it is spelled, one token of the vocabulary.

    Raises:
        ConfigError: A text is not one token.
    """
    found: list[int] = []
    problems: list[Problem] = []
    for token in tokens:
        ids = cast("list[int]", tokenizer(token, add_special_tokens=False)["input_ids"])
        if len(ids) != 1:
            message = f"found {token!r}, which is {len(ids)} tokens, accepts single tokens"
            problems.append(Problem("", "ppo.stop_tokens", message, "name one of them"))
        found += ids[:1]
    if problems:
        raise ConfigError("these tokens can't end a completion", problems)
    return found
