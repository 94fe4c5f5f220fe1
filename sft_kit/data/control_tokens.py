"""Texts that spell a control token: the model would read a stop in the middle of an answer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sft_kit.data.rows import Conversation, Where
from sft_kit.data.templates import spelled_special_tokens
from sft_kit.errors import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def spelled_problems(
    where: Where, texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[Problem]:
    """Find the special tokens that a row's texts spell.

    Args:
        where: Place of the row.
        texts: All that is encoded of it.
        tokenizer: Says which tokens are special.

    Returns:
        One problem for each token.
    """
    return [
        Problem(
            str(where),
            "content",
            f"spells the special token {token!r}, which the model reads as a control token",
            "remove or rewrite it in the row",
        )
        for token in spelled_special_tokens(tokenizer, list(texts))
    ]


def conversation_problems(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> list[Problem]:
    """Find the special tokens that a conversation spells.

    Args:
        conversation: A row as read.
        tokenizer: Says which tokens are special.
    """
    texts = [message["content"] for message in conversation.messages]
    return spelled_problems(conversation.where, [*texts, conversation.text or ""], tokenizer)
