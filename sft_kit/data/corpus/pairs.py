"""Pairs for next-sentence prediction: does the second part follow the first?"""

from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from sft_kit.data.corpus.encoding import Stream
from sft_kit.data.corpus.rows import Flags, Ids, Row, Vocabulary
from sft_kit.data.corpus.windows import number_words, special_flags
from sft_kit.data.corruption.draws import generator_of
from sft_kit.errors import DataError

IS_NEXT, IS_RANDOM, NOT_ASKED = 0, 1, -100
"""Values of `next_sentence_label`."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Sentences of one document that make a row; a part of one sentence that stands alone."""

    first: int
    last: int
    is_pair: bool = True


class SentencePairs:
    """Rows `[CLS] A [SEP] B [SEP]` in which B follows A, or comes from another document.

    A document is cut into runs of sentences that fill a row. Each time, a run is cut at one of its
    sentences by chance; by a second chance of one half, B is not its second part but begins at a
    sentence of another document: of two sentences or more where there are such, since a lone
    sentence never follows anything and would give the pair away. Of a pair that is too long, the
    longer part loses tokens at both ends by chance, so that of a sentence longer than a row mostly
    the middle is seen. The last sentence of a document, where it is left over, is joined to the one
    before it; a document of one sentence gives rows `[CLS] A [SEP]`, and its label is -100.

    All of a row's `documents` are 1: its parts must see each other.

    Args:
        stream: Tokens of documents without special tokens, with flags where sentences begin.
        vocabulary: Start and end token.
        max_length: Tokens per row, special tokens included.
        num_documents: Only so many documents, the first ones, are cut into rows; random second
            parts come from all. None: all are.

    Raises:
        DataError: There is one document only.

    Source:
        Devlin et al. 2018, section 3.1 and appendix A.2; google-research/bert,
        `create_pretraining_data.create_instances_from_document`, but without its shorter rows, and
        with exactly one half of random pairs.
    """

    def __init__(
        self,
        stream: Stream,
        vocabulary: Vocabulary,
        max_length: int,
        num_documents: int | None = None,
    ) -> None:
        flags = np.zeros(0, np.bool_) if stream.sentences is None else stream.sentences
        begins = np.flatnonzero(flags)
        self.stream = stream
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.edges = np.append(begins, len(stream.ids))
        """(S + 1,) first token of each sentence, and the number of tokens."""
        self.documents = np.searchsorted(begins, stream.starts)
        """(K + 1,) first sentence of each document, and the number of sentences."""
        paired = np.flatnonzero(np.diff(self.documents) > 1)
        self.others = paired if len(paired) > 1 else np.arange(len(self.documents) - 1)
        """Documents that random second parts come from, in ascending order."""
        self.runs = self._cut_into_runs(num_documents)
        self.is_special = special_flags(vocabulary)
        if len(self.documents) == 2 and any(run.is_pair for run in self.runs):
            raise DataError(
                "next sentences can't be drawn from another document: found one document only "
                "(give more texts, of a .txt file by a smaller data.unit, or set "
                "pretrain.next_sentence=false)"
            )

    def __len__(self) -> int:
        return len(self.runs)

    def row(self, index: int, seed: int) -> Row:
        """Draw a pair.

        Args:
            index: From 0.
            seed: Decides where the run is cut, what follows, and where it is shortened.
        """
        run = self.runs[index]
        if not run.is_pair:
            return self._row([(run.first, run.last)], NOT_ASKED)
        generator = generator_of(seed)
        cut = int(generator.integers(run.first + 1, run.last))
        first = (int(self.edges[run.first]), int(self.edges[cut]))
        second = (int(self.edges[cut]), int(self.edges[run.last]))
        label = IS_NEXT
        if generator.random() < 0.5:
            label = IS_RANDOM
            second = self._from_another(run, first[1] - first[0], generator)
        return self._row(self._shorten(first, second, generator), label)

    def place(self, index: int) -> str:
        """Say where a row's run of sentences stood in the data; empty where it is not known."""
        run = self.runs[index]
        return self.stream.place(int(self.edges[run.first]), int(self.edges[run.last]))

    def _cut_into_runs(self, num_documents: int | None) -> list[_Run]:
        edges = self.edges.tolist()
        runs: list[_Run] = []
        for begin, end in islice(pairwise(self.documents.tolist()), num_documents):
            if end - begin == 1:
                size = self.max_length - 2
                firsts = range(edges[begin], edges[end], size)
                runs += [_Run(first, min(first + size, edges[end]), False) for first in firsts]
                continue
            first = begin
            while first < end:
                last = min(first + 2, end)
                while last < end and edges[last] - edges[first] < self.max_length - 3:
                    last += 1
                runs.append(_Run(min(first, last - 2), last))
                first = last
        return runs

    def _from_another(
        self, run: _Run, num_first: int, generator: np.random.Generator
    ) -> tuple[int, int]:
        """Tokens of another document from one of its sentences on, enough to fill the row."""
        own = int(np.searchsorted(self.documents, run.first, side="right")) - 1
        place = int(np.searchsorted(self.others, own))
        drawn = int(generator.integers(len(self.others) - 1))
        other = int(self.others[drawn + (drawn >= place)])
        begin, end = int(self.documents[other]), int(self.documents[other + 1])
        sentence = int(generator.integers(begin, end))
        first = int(self.edges[sentence])
        wanted = max(1, self.max_length - 3 - num_first)
        reached = int(np.searchsorted(self.edges, first + wanted))
        return first, int(self.edges[min(reached, end)])

    def _shorten(
        self, first: tuple[int, int], second: tuple[int, int], generator: np.random.Generator
    ) -> list[tuple[int, int]]:
        kept = shortened(first[1] - first[0], second[1] - second[0], self.max_length - 3)
        parts = []
        for (begin, end), size in zip((first, second), kept, strict=True):
            dropped = int(generator.binomial(end - begin - size, 0.5))
            parts.append((begin + dropped, begin + dropped + size))
        return parts

    def _row(self, parts: list[tuple[int, int]], label: int) -> Row:
        """Put the start token in front of the parts and an end token behind each."""
        end = np.array([self.vocabulary.end])
        pieces: list[Ids] = [np.array([self.vocabulary.start])]
        sizes = []
        for begin, stop in parts:
            pieces += [self.stream.ids[begin:stop].astype(np.int64), end]
            sizes.append(stop - begin + 1)
        ids = np.concatenate(pieces)
        types = np.repeat(np.arange(len(parts)), sizes)
        is_special = self.is_special[ids]
        is_special[0] = is_special[np.cumsum(sizes)] = True
        return Row(
            input_ids=ids,
            is_special=is_special,
            words=self._words(parts, is_special),
            sentences=np.cumsum(self._flags(self.stream.sentences, parts, False)),
            documents=np.ones(len(ids), dtype=np.int64),
            token_type_ids=np.concatenate([types[:1], types]),
            next_sentence_label=label,
        )

    def _words(self, parts: list[tuple[int, int]], is_special: Flags) -> Ids:
        if self.stream.words is None:
            return np.arange(len(is_special))
        return number_words(self._flags(self.stream.words, parts, True), is_special)

    def _flags(self, flags: Flags | None, parts: list[tuple[int, int]], framing: bool) -> Flags:
        """Flags of a row's tokens: a part begins what it counts, the start token does not."""
        row = [np.array([framing])]
        for index, (begin, stop) in enumerate(parts):
            own = np.zeros(stop - begin, np.bool_) if flags is None else flags[begin:stop].copy()
            own[0] = framing or index > 0
            row += [own, np.array([framing])]
        return np.concatenate(row)


def shortened(num_first: int, num_second: int, most: int) -> tuple[int, int]:
    """Take tokens from the longer of two parts until both fit; of equal ones, from the second.

    Args:
        num_first: Tokens of the first part.
        num_second: Tokens of the second part.
        most: Tokens of both together.

    Returns:
        What is left of each.
    """
    if num_first + num_second <= most:
        return num_first, num_second
    if num_first <= most - most // 2:
        return num_first, most - num_first
    if num_second <= most // 2:
        return most - num_second, num_second
    return most - most // 2, most // 2
