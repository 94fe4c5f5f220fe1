"""ROUGE and BLEU of written texts, counted by words, by Chinese characters or by jieba's words.

Written Chinese has no blanks: counted by words, a whole clause would be right or wrong.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

import numpy as np

from sft_kit.data.corpus.words import word_starts
from sft_kit.settings import CountBy

Unit = Literal["words", "characters", "jieba"]

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")

_HANZI = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u30a1-\u30fa\u31f0-\u31ff"
_WORD = re.compile(r"[^\W_]+")
_CHARACTER_OR_WORD = re.compile(f"[{_HANZI}{_KANA}]|[^\\W_{_HANZI}{_KANA}]+")
_IS_HANZI = re.compile(f"[{_HANZI}]")
_PIECE = re.compile(r"[^\W_]+|\s+|.", flags=re.DOTALL)
_MIN_CHINESE = 0.1
"""Share of Chinese characters among characters and words from which a language is called Chinese:
English with Chinese names has less, and texts of both have more."""


def choose_unit(references: Sequence[str], count_by: CountBy = "auto") -> Unit:
    """Choose what is counted.

    Args:
        references: The texts that should have been written.
        count_by: `auto` takes characters where a tenth or more of what they count would be Chinese
            characters, and words elsewhere.
    """
    if count_by != "auto":
        return count_by
    units = [unit for text in references for unit in _CHARACTER_OR_WORD.findall(text)]
    num_chinese = sum(_IS_HANZI.match(unit) is not None for unit in units)
    return "characters" if units and num_chinese >= _MIN_CHINESE * len(units) else "words"


def score_texts(
    predictions: Sequence[str], references: Sequence[str], count_by: CountBy = "auto"
) -> dict[str, float]:
    """Compare written texts with those that should have been written.

    Args:
        predictions: N written texts.
        references: N texts, one for each.
        count_by: Words; Chinese characters, with the words of other languages whole; or the words
            that jieba finds in Chinese. See `choose_unit` for `auto`.

    Returns:
        `rouge1`, `rouge2` and `rougeL`: F measure between 0 and 1, the mean over the texts, of
        lower-case letters and digits without punctuation. `bleu`: between 0 and 100, of all texts
        together, with case and punctuation.

    Raises:
        ValueError: Nothing to compare, or not one reference a prediction.

    Source:
        Lin 2004, "ROUGE: a Package for Automatic Evaluation of Summaries", as in `rouge-score`;
        Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation", as
        in `sacrebleu` (Post 2018): tokenized by `13a`, `zh`, or jieba.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
    unit = choose_unit(references, count_by)
    rows = rouge_by_row(predictions, references, unit)
    rouge = {name: fmean(row[name] for row in rows) for name in ROUGE_NAMES}
    return {**rouge, "bleu": _bleu(predictions, references, unit)}


def rouge_by_row(
    predictions: Sequence[str], references: Sequence[str], unit: Unit
) -> list[dict[str, float]]:
    """Compute `rouge1`, `rouge2` and `rougeL` (F measure, 0 to 1) of each text.

    Args:
        predictions: Written texts.
        references: One for each.
        unit: From `choose_unit`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE_NAMES, tokenizer=_RougeTokenizer(unit))
    return [
        {name: float(score.fmeasure) for name, score in scorer.score(reference, prediction).items()}
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def rouge_units(text: str, unit: Unit) -> list[str]:
    """Cut a text into what ROUGE counts.

    Of ASCII text, words are those of rouge-score itself, which would take apart or drop the words
    of other scripts.
    """
    text = unicodedata.normalize("NFC", text).lower()
    if unit == "words":
        return _WORD.findall(text)
    if unit == "characters":
        return _CHARACTER_OR_WORD.findall(text)
    return [segment for segment in _segments(text) if _WORD.match(segment)]


@dataclass(frozen=True, slots=True)
class _RougeTokenizer:
    """What `rouge_score` asks for its tokens."""

    unit: Unit

    def tokenize(self, text: str) -> list[str]:
        return rouge_units(text, self.unit)


def _bleu(predictions: Sequence[str], references: Sequence[str], unit: Unit) -> float:
    from sacrebleu.metrics.bleu import BLEU

    tokenize = {"words": "13a", "characters": "zh", "jieba": "none"}[unit]
    prepare: Callable[[str], str] = str
    if unit == "jieba":
        prepare = _blanks_between
    # force: no warning about texts that end in " .", as a model may write them.
    bleu = BLEU(tokenize=tokenize, force=True)
    written, wanted = (list(map(prepare, texts)) for texts in (predictions, references))
    return float(bleu.corpus_score(written, [wanted]).score)


def _blanks_between(text: str) -> str:
    return " ".join(segment for segment in _segments(text) if not segment.isspace())


def _segments(text: str) -> list[str]:
    """Cut a text into jieba's words, words of other scripts, and single marks."""
    if not text:
        return []
    places = np.arange(len(text))
    pieces = np.repeat(*np.array([(n, len(p)) for n, p in enumerate(_PIECE.findall(text))]).T)
    starts = word_starts(text, np.stack([places, places + 1], axis=1), pieces)
    return [text[start:end] for start, end in pairwise([*np.flatnonzero(starts), len(text)])]
