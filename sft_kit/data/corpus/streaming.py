"""Texts read, tokenized, shuffled and corrupted while training, pass after pass."""

import random
from collections.abc import Iterator
from itertools import count, islice
from typing import TYPE_CHECKING

from torch.utils.data import IterableDataset, get_worker_info

from sft_kit.data.corpus.corrupted import Corrupt, pairing_seed
from sft_kit.data.corpus.encoding import Stream, chunked, encode, join
from sft_kit.data.corpus.inspection import MAX_MEASURED, has_labels
from sft_kit.data.corpus.reading import open_texts
from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corpus.tokenized import Layout, TokenRows, frame_of
from sft_kit.data.corruption.draws import row_seed
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import TextDataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StreamedRows(IterableDataset[Corrupted]):
    """Rows without end: pass 0, 1, 2, ... over the source, each shuffled and corrupted anew.

    The same seed gives the same sequence. Every process yields all rows, of which accelerate takes
    a share; the worker processes of a data loader part them among themselves. Memory holds a chunk
    of texts and `shuffle_buffer` rows. Where a random second part is asked for, it comes from
    another document of the chunk, or of the last two before it; so a chunk may hold one document.

    Args:
        settings: `path` and how it is read; `max_length`, `pack`, `shuffle_buffer`.
        tokenizer: Encodes the texts.
        vocabulary: Of `sft_kit.data.corpus.vocabulary.vocabulary_of`.
        corrupt: Hides or changes tokens.
        layout: What stands around the tokens of a row.
        words: Number the words; else every token is a word.
        seed: Seed of the run.

    Raises:
        DataError: A row would be longer than the model's context; while rows are asked for,
            whatever can be wrong with a source, and that pairs have one document only.
    """

    def __init__(
        self,
        settings: TextDataSettings,
        tokenizer: "PreTrainedTokenizerBase",
        vocabulary: Vocabulary,
        corrupt: Corrupt,
        *,
        layout: Layout,
        words: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.frame = frame_of(tokenizer, vocabulary, settings, layout=layout, words=words)
        self.corrupt = corrupt
        self.seed = seed

    def __iter__(self) -> Iterator[Corrupted]:
        worker = get_worker_info()
        mine, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        drawn = (numbered for number in count() for numbered in self._shuffled(number))
        for seed, row in islice(drawn, mine, None, num_workers):
            yield self.corrupt(row, seed)

    def first(self) -> Corrupted | None:
        """The first row of the file of which pass 0 learns something; the buffer is not filled.

        None where that is not one of the first `MAX_MEASURED` rows.
        """
        num_rows = 0
        for seed, row in islice(self._rows(0), MAX_MEASURED):
            num_rows += 1
            corrupted = self.corrupt(row, seed)
            if has_labels(corrupted):
                return corrupted
        if not num_rows:
            raise self._no_tokens()
        return None

    def _shuffled(self, number: int) -> Iterator[tuple[int, Row]]:
        """Draw the rows of a pass from a buffer that is filled up with each one drawn."""
        generator = random.Random(row_seed(self.seed, number, -1))
        buffer: list[tuple[int, Row]] = []
        for numbered in self._rows(number):
            if len(buffer) < self.settings.shuffle_buffer:
                buffer.append(numbered)
                continue
            place = generator.randrange(len(buffer))
            yield buffer[place]
            buffer[place] = numbered
        if not buffer:
            raise self._no_tokens()
        generator.shuffle(buffer)
        yield from buffer

    def _rows(self, number: int) -> Iterator[tuple[int, Row]]:
        """Yield the rows of a pass in the order of the file, each with its seed."""
        numbers = count()
        for rows in self._read():
            for index in range(len(rows)):
                seed = row_seed(self.seed, number, next(numbers))
                yield seed, rows.row(index, pairing_seed(seed))

    def _read(self) -> Iterator[TokenRows]:
        """Read, encode and cut a chunk of texts after another; a row may span two of them."""
        rest: Stream | None = None
        has_rows = False
        for chunk in chunked(self._texts(), lambda text: len(text.text)):
            stream = encode(chunk, self.tokenizer, self.frame.marks)
            stream = join([rest, stream], self.frame.marks) if rest else stream
            rows, rest = self.frame.rows_and_rest(stream)
            has_rows |= len(rows) > 0
            yield rows
        if rest and (not has_rows or self.frame.layout == "pairs"):
            yield self.frame.rows(rest)

    def _texts(self) -> Iterator[Text]:
        source = open_texts(self.settings, self.settings.path, streaming=True)
        for found in islice(source.rows, self.settings.num_rows):
            if isinstance(found, Text):
                yield found
            elif self.settings.on_bad_row == "stop":
                raise FormatError(
                    f"{self.settings.path}: found a row that can't be used (repair it, or leave "
                    "such rows out with data.on_bad_row=skip):",
                    found,
                )

    def _no_tokens(self) -> DataError:
        return DataError(f"{self.settings.path}: found no tokens to train on (add texts)")
