"""The text of a reply, also while it is still being written."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextPieces:
    """Turns the token ids of one reply into pieces of text that need no correction later.

    Args:
        tokenizer: The run's tokenizer.
        stop_token_ids: Tokens that end the reply and are not part of it.
        on_text: Called with each new piece, never empty.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_token_ids: Sequence[int],
        on_text: Callable[[str], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self.on_text = on_text
        self.num_shown = 0

    def take(self, ids: list[int]) -> None:
        """Show what is certain of the reply's ids so far."""
        text = decode_reply(self.tokenizer, until_stop(ids, self.stop_token_ids))
        # A character of several tokens decodes to U+FFFD until its last token is there.
        self._show(text.rstrip("\ufffd").rstrip())

    def finish(self, text: str) -> None:
        """Show what is missing to the whole text."""
        self._show(text)

    def _show(self, text: str) -> None:
        if len(text) > self.num_shown:
            piece = text[self.num_shown :]
            self.num_shown = len(text)
            self.on_text(piece)


def until_stop(ids: Sequence[int], stop_token_ids: Sequence[int]) -> list[int]:
    """Return the ids before the first stop token."""
    return list(takewhile(lambda token_id: token_id not in stop_token_ids, ids))


def decode_reply(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of a reply, without special tokens and surrounding whitespace."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast("str", text).strip()
