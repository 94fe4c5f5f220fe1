"""Rows corrupted as they are asked for: from memory by number, and from a file without end."""

import json
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from sft_kit.data.corpus import encoding, streaming
from sft_kit.data.corpus.corrupted import CorruptedRows, pairing_seed
from sft_kit.data.corpus.streaming import StreamedRows
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.tokenized import tokenize_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.draws import row_seed
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import TextDataSettings

NUM_TEXTS = 60


class Numbered:
    """Rows that tell how they were asked for."""

    def __len__(self):
        return 3

    def row(self, index, seed):
        return index, seed


def together(row, seed):
    return {"row": row, "seed": seed}


# --- from memory ---------------------------------------------------------------------------------


def test_a_row_is_corrupted_by_the_seed_of_its_epoch_and_number():
    rows = CorruptedRows(Numbered(), together, seed=7)
    seen = set()
    for epoch in (0, 1, 5):
        rows.epoch = epoch
        for index in range(3):
            seed = row_seed(7, epoch, index)
            assert rows[index] == {"row": (index, pairing_seed(seed)), "seed": seed}
            seen |= {seed, pairing_seed(seed)}
    assert len(seen) == 18


def test_held_out_rows_are_corrupted_alike_in_every_epoch():
    rows = CorruptedRows(Numbered(), together, seed=7, fixed=True)
    before = list(rows)
    rows.epoch = 3
    assert list(rows) == before
    assert len(before) == len(rows) == 3


@pytest.mark.parametrize("index", [3, -1])
def test_there_is_no_row_beyond_the_last(index):
    with pytest.raises(IndexError):
        CorruptedRows(Numbered(), together, seed=7)[index]


# --- from a file ---------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = [
        f"The house number {n} is red. It is playing. " * (n % 4 + 1) for n in range(NUM_TEXTS)
    ]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A file of several chunks, so that rows span two of them."""
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 700)


def stream_of(path, tokenizer, corrupt=None, seed=3, layout="masked", **settings):
    settings = TextDataSettings(path=path, max_length=32, streaming=True, **settings)
    vocabulary = vocabulary_of(tokenizer, "masked")
    corrupt = corrupt or (
        lambda row, seed: {"input_ids": row.input_ids, "labels": row.input_ids, "seed": seed}
    )
    return StreamedRows(settings, tokenizer, vocabulary, corrupt, layout=layout, seed=seed)


def in_memory(path, tokenizer, layout="masked", **settings):
    settings = TextDataSettings(path=path, max_length=32, eval_fraction=0, **settings)
    vocabulary = vocabulary_of(tokenizer, "masked")
    texts = load_texts(settings).train
    return tokenize_texts(texts, tokenizer, vocabulary, settings, layout=layout)


def ids_of(rows):
    return [tuple(row["input_ids"].tolist()) for row in rows]


@pytest.mark.parametrize("pack", [True, False])
def test_each_pass_yields_the_rows_of_the_file_in_another_order(path, bert_tokenizer, pack):
    rows = in_memory(path, bert_tokenizer, pack=pack)
    expected = [tuple(rows.row(index, 0).input_ids.tolist()) for index in range(len(rows))]
    stream = stream_of(path, bert_tokenizer, pack=pack, shuffle_buffer=20)
    found = list(islice(stream, 2 * len(expected)))
    first, second = found[: len(expected)], found[len(expected) :]
    assert Counter(ids_of(first)) == Counter(ids_of(second)) == Counter(expected)
    assert len({row["seed"] for row in found}) == 2 * len(expected)
    orders = [expected, ids_of(first), ids_of(second)]
    assert all(one != other for one, other in pairwise(orders))


def test_a_buffer_of_one_keeps_the_order_and_seeds_follow_the_number(path, bert_tokenizer):
    rows = in_memory(path, bert_tokenizer)
    expected = [tuple(rows.row(index, 0).input_ids.tolist()) for index in range(len(rows))]
    stream = stream_of(path, bert_tokenizer, shuffle_buffer=1)
    found = list(islice(stream, 2 * len(expected)))
    assert ids_of(found) == expected * 2
    seeds = [row_seed(3, number, index) for number in range(2) for index in range(len(expected))]
    assert [row["seed"] for row in found] == seeds
    assert ids_of([stream.first()]) == expected[:1]
    assert stream.first()["seed"] == seeds[0]


def test_the_first_row_of_a_stream_is_one_of_which_something_is_learnt(path, bert_tokenizer):
    nothing = row_seed(3, 0, 0)  # of the very first row

    def corrupt(row, seed):
        labels = np.full(len(row.input_ids), -100 if seed in unlearnt else 7)
        return {"input_ids": row.input_ids, "labels": labels, "seed": seed}

    unlearnt = {nothing}
    assert stream_of(path, bert_tokenizer, corrupt).first()["seed"] == row_seed(3, 0, 1)
    unlearnt = range(2**64)
    assert stream_of(path, bert_tokenizer, corrupt).first() is None


def test_the_same_seed_gives_the_same_sequence_and_another_seed_another(path, bert_tokenizer):
    def take(seed):
        stream = stream_of(path, bert_tokenizer, seed=seed, layout="pairs", shuffle_buffer=16)
        return [(row["seed"], *row["input_ids"].tolist()) for row in islice(stream, 150)]

    assert take(3) == take(3)
    assert take(3) != take(4)
    stream = stream_of(path, bert_tokenizer, shuffle_buffer=16)
    assert ids_of(islice(stream, 50)) == ids_of(islice(stream, 50))  # each time from the beginning


def test_worker_processes_part_the_rows_among_themselves(path, bert_tokenizer, monkeypatch):
    class Worker:
        def __init__(self, number):
            self.id, self.num_workers = number, 3

    stream = stream_of(path, bert_tokenizer, shuffle_buffer=16)
    whole = ids_of(islice(stream, 60))
    for number in range(3):
        monkeypatch.setattr(streaming, "get_worker_info", lambda number=number: Worker(number))
        assert ids_of(islice(stream, 20)) == whole[number::3]


def test_processes_take_their_share_of_each_batch(path, bert_tokenizer):
    """As the Trainer's data loader does: two processes with batches of 2 see batches of 4."""
    from accelerate.data_loader import IterableDatasetShard

    stream = stream_of(path, bert_tokenizer, shuffle_buffer=16)
    whole = ids_of(islice(stream, 40))
    shares = [
        ids_of(
            islice(IterableDatasetShard(stream, batch_size=2, num_processes=2, process_index=n), 20)
        )
        for n in range(2)
    ]
    expected = [
        [whole[at + part] for at in range(2 * n, 40, 4) for part in (0, 1)] for n in range(2)
    ]
    assert shares == expected


def test_only_the_first_texts_of_each_pass_are_read_where_asked(path, bert_tokenizer):
    stream = stream_of(path, bert_tokenizer, num_rows=1, pack=False, shuffle_buffer=5)
    assert len(set(ids_of(islice(stream, 10)))) == 1


def write_documents(path, count):
    """Documents that are longer than a chunk: one of them in each."""
    names = "abcdefgh"[:count]
    texts = [" ".join(f"The house {name} is red." for _ in range(40)) for name in names]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return str(path), names


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pairs_find_another_document_though_a_chunk_has_but_one(tmp_path, bert_tokenizer, count):
    path, names = write_documents(tmp_path / "long.jsonl", count)
    letters = bert_tokenizer.convert_tokens_to_ids(list(names))
    rows = in_memory(path, bert_tokenizer, layout="pairs")
    stream = stream_of(path, bert_tokenizer, lambda row, _: row, layout="pairs")
    seen = Counter()
    for row in islice(stream, 10 * len(rows)):
        parts = [row.input_ids[row.token_type_ids == part] for part in (0, 1)]
        first, second = (set(part.tolist()) & set(letters) for part in parts)
        assert len(first) == len(second) == 1
        assert (first == second) == (row.next_sentence_label == 0)
        seen[row.next_sentence_label, *first] += 1
    of_each = 10 * len(rows) // count  # rows of each document, in ten passes
    assert [seen[0, letter] + seen[1, letter] for letter in letters] == [of_each] * count
    assert len(seen) == 2 * count


def test_pairs_of_one_document_alone_are_refused(tmp_path, bert_tokenizer):
    path, _ = write_documents(tmp_path / "one.jsonl", 1)
    with pytest.raises(DataError, match="found one document only"):
        next(iter(stream_of(path, bert_tokenizer, layout="pairs")))


def test_a_text_smaller_than_a_row_still_gives_one(tmp_path, bert_tokenizer):
    path = tmp_path / "small.txt"
    path.write_text("The house is red.", encoding="utf-8")
    (row,) = islice(stream_of(str(path), bert_tokenizer), 1)
    expected = bert_tokenizer("[CLS] the house is red. [SEP]")["input_ids"]
    assert row["input_ids"].tolist() == expected


def test_a_bad_row_stops_a_stream_or_is_left_out(tmp_path, bert_tokenizer):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "red"}\n{"text": 1}\n{"text": "house"}', encoding="utf-8")
    with pytest.raises(FormatError, match=r"bad\.jsonl:2"):
        next(iter(stream_of(str(path), bert_tokenizer)))
    skipping = stream_of(str(path), bert_tokenizer, on_bad_row="skip", pack=False)
    assert len(set(ids_of(islice(skipping, 4)))) == 2


def test_a_stream_without_a_token_ends_in_an_error_not_in_a_loop(tmp_path, bert_tokenizer):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": "\\u200b"}', encoding="utf-8")
    stream = stream_of(str(path), bert_tokenizer)
    for ask in (lambda: next(iter(stream)), stream.first):
        with pytest.raises(DataError, match="found no tokens to train on"):
            ask()


@pytest.mark.slow
def test_memory_stays_flat_however_long_the_file(tmp_path, bert_tokenizer, monkeypatch):
    import tracemalloc

    monkeypatch.undo()
    path = tmp_path / "long.txt"
    generator = np.random.default_rng(0)
    words = np.array(["the", "house", "is", "red", "playing", "unlikely", "played", "today"])
    with path.open("w", encoding="utf-8") as handle:
        for _ in range(6000):
            handle.write(" ".join(generator.choice(words, 100)) + ".\n\n")
    stream = iter(stream_of(str(path), bert_tokenizer, shuffle_buffer=100))
    peaks = []
    tracemalloc.start()
    for _ in range(4):
        tracemalloc.reset_peak()
        list(islice(stream, 6000))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert path.stat().st_size > 3e6
    assert max(peaks[1:]) < 1.3 * peaks[0]
