"""Texts to rows of tokens: packed into full windows, or text by text."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np

from sft_kit.data.corpus.encoding import Marks, Stream, encode
from sft_kit.data.corpus.pairs import SentencePairs
from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.data.corpus.windows import (
    Bounds,
    TokenizedTexts,
    framed_bounds,
    plain_bounds,
    special_flags,
    text_bounds,
)
from sft_kit.data.segments import leading_special_tokens
from sft_kit.errors import DataError
from sft_kit.settings import TextDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Layout = Literal["causal", "masked", "pairs", "spans", "denoise"]
"""What stands around the tokens of a row. `causal`: each text begins with what the tokenizer puts
there and ends with the end token, and rows are cut from the stream of these. `masked` and
`denoise`: start token, tokens, end token; `spans`: tokens, end token. In these, the end token also
stands between the texts of a row. `pairs`: see `sft_kit.data.corpus.pairs`."""


TokenRows: TypeAlias = TokenizedTexts | SentencePairs

_NUM_KEPT_BACK = 2
"""Documents of a stream of pairs that wait for more texts; at its end they have each other."""


def tokenize_texts(
    texts: Iterable[Text],
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: Vocabulary,
    settings: TextDataSettings,
    *,
    layout: Layout,
    words: bool = False,
) -> TokenRows:
    """Encode texts and cut them into rows of at most `max_length` tokens.

    With `pack` the texts follow each other and every row is full; the rest behind the last full
    row is left out, where there is one. Without, each text begins a row and goes on in as many as
    it needs. Pairs are never packed.

    Args:
        texts: In order.
        tokenizer: Fast where words or sentences are needed (`denoise` and `pairs` need sentences).
        vocabulary: Of `sft_kit.data.corpus.vocabulary.vocabulary_of`.
        settings: `max_length` in tokens, special tokens included, and `pack`.
        layout: What stands around the tokens of a row.
        words: Number the words; else every token is a word.

    Raises:
        DataError: A row would be longer than the model's context, the tokenizer can't say where
            its tokens stand in a text, or pairs have one document only.
    """
    frame = frame_of(tokenizer, vocabulary, settings, layout=layout, words=words)
    return frame.rows(encode(texts, tokenizer, frame.marks))


@dataclass(frozen=True, slots=True)
class Frame:
    """How a stream of tokens becomes rows.

    Attributes:
        layout: What stands around the tokens of a row.
        marks: What texts are encoded with.
        max_length: Tokens per row, special tokens included.
        pack: Rows are cut from the whole stream.
        before: Token ids in front of every row.
        after: Token ids behind every row.
        vocabulary: Which tokens are special.
    """

    layout: Layout
    marks: Marks
    max_length: int
    pack: bool
    before: tuple[int, ...]
    after: tuple[int, ...]
    vocabulary: Vocabulary

    def rows(self, stream: Stream) -> TokenRows:
        """Cut all of a stream into rows; the rest becomes one where there is no full one."""
        if self.layout == "pairs":
            return SentencePairs(stream, self.vocabulary, self.max_length)
        rows, rest = self.rows_and_rest(stream)
        if len(rows) or not rest or not len(rest.ids):
            return rows
        bounds = np.array([[0, len(rest.ids) - len(self.after)]])
        return self._cut(rest, bounds)

    def rows_and_rest(self, stream: Stream) -> tuple[TokenRows, Stream | None]:
        """Cut a stream into rows, and give back what more texts are to be joined to.

        Args:
            stream: Tokens of texts.

        Returns:
            The rows, and the rest: what does not fill a row where rows are packed; of pairs the
            last two documents, so that whatever comes behind finds another document.
        """
        if self.layout == "pairs":
            ready = max(len(stream.starts) - 1 - _NUM_KEPT_BACK, 0)
            pairs = SentencePairs(stream, self.vocabulary, self.max_length, ready)
            return pairs, stream.tail(int(stream.starts[ready]))
        body = self.max_length - len(self.before) - len(self.after)
        if not self.pack:
            smallest = 1 if self.after else 2  # nothing predicts the first token of a causal row
            return self._cut(stream, text_bounds(stream, body, len(self.after), smallest)), None
        bounds, rest = framed_bounds(stream, body) if self.after else plain_bounds(stream, body)
        return self._cut(stream, bounds), stream.tail(rest)

    def _cut(self, stream: Stream, bounds: Bounds) -> TokenRows:
        special = special_flags(self.vocabulary)
        return TokenizedTexts(stream, bounds, special, self.before, self.after)


def frame_of(
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: Vocabulary,
    settings: TextDataSettings,
    *,
    layout: Layout,
    words: bool = False,
) -> Frame:
    """Decide what stands around tokens; the arguments are those of `tokenize_texts`.

    Raises:
        DataError: A row would be longer than the model's context.
    """
    if settings.max_length > tokenizer.model_max_length:
        raise DataError(
            f"data.max_length={settings.max_length} is longer than the model's context of "
            f"{tokenizer.model_max_length} tokens: lower it, or raise the context in model.config"
        )
    end = (vocabulary.end,)
    special = frozenset(np.flatnonzero(special_flags(vocabulary)).tolist())
    if tokenizer.unk_token_id != vocabulary.end:  # GPT-2 calls its end token the unknown one, too
        special -= {tokenizer.unk_token_id}
    if layout == "causal":
        prefix = leading_special_tokens(tokenizer)
        leading = cast("list[int]", tokenizer(prefix, add_special_tokens=False)["input_ids"])
        marks = Marks(tuple(leading), end, words=words, keep_empty=True, special=special)
        before: tuple[int, ...] = ()
        after: tuple[int, ...] = ()
    elif layout == "pairs":
        marks, before, after = Marks(sentences=True, words=words, special=special), (), ()
    else:
        marks = Marks(after=end, sentences=layout == "denoise", words=words, special=special)
        before, after = () if layout == "spans" else (vocabulary.start,), end
    return Frame(layout, marks, settings.max_length, settings.pack, before, after, vocabulary)
