"""Train a new tokenizer on texts: one function per family, the same texts the same tokenizer.

Where `save_pretrained` has written one, `transformers.AutoTokenizer` reads it. To add a family
write a function that makes the tokenizer and give it a line in `FAMILIES`.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from sft_kit.errors import ConfigError, DataError, Problem
from sft_kit.models.tokenizer_options import MOST_TOKENS, Family, TokenizerOptions
from sft_kit.models.unigram import BLANK, unigram_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTER_TOKENS = (*BERT_TOKENS, "[EOS]")
T5_TOKENS = ("<pad>", "</s>", "<unk>")
BART_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
BART_MASK = "<mask>"
_LATER = "##"
_WORDS = Regex(r"\p{Han}|\s|[^\w\s]")
"""What stands alone where a text is numbered by words; the rest is words."""


def train_tokenizer(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """Learn a vocabulary from texts.

    Args:
        texts: What to learn from.
        wanted: What the tokenizer is to be like.

    Raises:
        ConfigError: A setting that the family doesn't have, or a size that the texts can't give.
        DataError: There is no text.
    """
    problems = _problems(wanted)
    if problems:
        raise ConfigError("this tokenizer can't be trained", problems)
    if not any(text and not text.isspace() for text in texts):
        raise DataError("there is no text to train a tokenizer on")
    tokenizer = FAMILIES[wanted.family](texts, wanted)
    if wanted.max_length is not None:
        tokenizer.model_max_length = wanted.max_length
    if wanted.vocab_size is not None and len(tokenizer) < wanted.vocab_size:
        less = ", lower min_count" if wanted.min_piece_count > 1 else ""
        raise _size_error(
            f"found {wanted.vocab_size:,}, but the texts give only {len(tokenizer):,} tokens",
            f"lower it to {len(tokenizer):,} or less{less}, or add texts",
        )
    return tokenizer


def _problems(wanted: TokenizerOptions) -> list[Problem]:
    """Settings that the family does not have."""
    having = {
        "lowercase": (wanted.lowercase, ("bert", "characters")),
        "num_sentinels": (wanted.num_sentinels is not None, ("t5", "characters")),
        "max_token_length": (wanted.max_token_length is not None, ("gpt2", "bart", "t5")),
    }
    return [
        Problem("", key, f"is not for {wanted.family}, but for {', '.join(families)}", "remove it")
        for key, (is_given, families) in having.items()
        if is_given and wanted.family not in families
    ]


def _size_error(found: str, todo: str) -> ConfigError:
    problem = Problem("", "vocab_size", found, todo)
    return ConfigError("this vocabulary can't be made", [problem])


def _room(wanted: TokenizerOptions, num_needed: int, needed: str) -> int:
    """Tokens that a vocabulary may have in all, once what it must have fits."""
    if wanted.vocab_size is None:
        return max(MOST_TOKENS, num_needed)
    if wanted.vocab_size < num_needed:
        raise _size_error(
            f"found {wanted.vocab_size:,}, accepts {num_needed:,} or more: {needed}",
            "raise it" if wanted.family in {"gpt2", "bart"} else "raise it, or raise min_count",
        )
    return wanted.vocab_size


def _train_byte_bpe(
    texts: Sequence[str], wanted: TokenizerOptions, special: Sequence[str | AddedToken]
) -> Tokenizer:
    """Learn merges of bytes; equally frequent pairs are merged in the order of their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    needed = f"{len(alphabet)} bytes and {len(special)} special tokens"
    longest = wanted.max_token_length
    trainer = trainers.BpeTrainer(
        vocab_size=_room(wanted, len(alphabet) + len(special), needed),
        min_frequency=wanted.min_piece_count,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        max_token_length=longest and longest + 1,  # it joins what stays below this
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def _train_gpt2(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """Bytes, and one special token, id 0, that begins, ends and pads.

    Source:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(
        tokenizer_object=_train_byte_bpe(texts, wanted, [END_OF_TEXT]),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _train_bart(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """Bytes, with BART's special tokens at BART's places: four first, the mask token last.

    Source:
        Lewis et al. 2019, "BART"; ids as in facebook/bart-base.
    """
    from transformers import BartTokenizer

    # A span is hidden with the blank before it, so a mask takes that blank in a prompt, too.
    mask = AddedToken(BART_MASK, lstrip=True, special=True)
    tokenizer = _train_byte_bpe(texts, wanted, [*BART_TOKENS, mask])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    ids = tokenizer.get_vocab()
    # The trainer puts special tokens first.
    tokens = sorted(ids, key=lambda token: (token == BART_MASK, ids[token]))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer.model = models.BPE(vocabulary, [(left, right) for left, right in merges])
    return BartTokenizer(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _train_bert(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """WordPiece: Chinese characters and punctuation stand alone, other words are cut into pieces.

    Each character can stand first and later in a word, so that no word of known characters is
    unknown. The pieces are found by merging pairs, the most frequent first.

    Source:
        Wu et al. 2016, "Google's Neural Machine Translation System", section 4.1; layout of
        Devlin et al. 2018, "BERT".
    """
    from transformers import BertTokenizer

    blank = BertTokenizer(do_lower_case=wanted.lowercase)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = blank.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    alphabet = _visible(_character_counts(texts, tokenizer.normalizer), wanted)
    later = [one for one in alphabet if _stays_in_word(one, tokenizer)]
    needed = (
        f"{len(alphabet):,} characters, {len(later):,} of them also as a later part of a word, and "
        f"{len(BERT_TOKENS)} special tokens"
    )
    # The trainer numbers `##` characters in a random order, and breaks ties by these numbers,
    # except where they have one before it starts.
    first = [*BERT_TOKENS, *alphabet, *(_LATER + one for one in later)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_room(wanted, len(first), needed),
        min_frequency=wanted.min_piece_count,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_LATER,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return BertTokenizer(tokenizer.get_vocab(), do_lower_case=wanted.lowercase)


def _stays_in_word(character: str, tokenizer: Tokenizer) -> bool:
    text = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _train_t5(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """A unigram model of pieces in which a blank is `▁`; runs of blanks and newlines become one.

    The ids are T5's: special tokens, pieces, sentinels from the last to `<extra_id_0>`.

    Source:
        Raffel et al. 2019, "Exploring the Limits of Transfer Learning", sections 2.2 and 3.1.4.
    """
    from transformers import T5Tokenizer

    alphabet = sorted({*_visible(_character_counts(texts), wanted), BLANK})
    sentinels = wanted.sentinels
    num_other = len(T5_TOKENS) + len(sentinels)
    needed = (
        f"{len(alphabet):,} characters, {len(T5_TOKENS)} special tokens, {len(sentinels)} sentinels"
    )
    num_pieces = _room(wanted, len(alphabet) + num_other, needed) - num_other
    pieces = unigram_pieces(
        texts,
        alphabet,
        num_pieces,
        min_count=wanted.min_piece_count,
        max_length=wanted.max_token_length,
    )
    vocabulary = [
        *((token, 0.0) for token in T5_TOKENS),
        *pieces,
        *((token, 0.0) for token in reversed(sentinels)),
    ]
    return T5Tokenizer(vocab=vocabulary, extra_ids=len(sentinels))


def _train_characters(texts: Sequence[str], wanted: TokenizerOptions) -> "PreTrainedTokenizerFast":
    """Special tokens for every objective, then a token for each character, blanks and newlines too.

    No special token is put around a text: that is left to the objective. `[CLS]` also begins a text
    that is read from left to right. Of a smaller vocabulary the rarest characters are `[UNK]`.
    """
    from transformers import PreTrainedTokenizerFast

    special = [*CHARACTER_TOKENS, *wanted.sentinels]
    normalizer = normalizers.Lowercase() if wanted.lowercase else None
    counts = _character_counts(texts, normalizer)
    # A file that was read line by line shows no newline.
    counts["\n"] += 1
    most = _room(wanted, len(special) + 1, f"{len(special)} special tokens and a character")
    if wanted.vocab_size is None:
        most = len(special) + len(counts)
    frequent = sorted(_often(counts, wanted), key=lambda one: (one != "\n", -counts[one], one))
    alphabet = sorted(frequent[: most - len(special)])
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    # Without merges, BPE looks characters up in whole words: faster than splitting them off.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=CHARACTER_TOKENS[1]))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_WORDS, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[EOS]",
        additional_special_tokens=wanted.sentinels or None,
        clean_up_tokenization_spaces=False,
    )


def _character_counts(
    texts: Sequence[str], normalizer: "normalizers.Normalizer | None" = None
) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text) if normalizer else text)
    return counts


def _often(counts: Counter[str], wanted: TokenizerOptions) -> list[str]:
    """Characters that are not too rare, in the order of Unicode."""
    least = wanted.min_count or 1
    return sorted(one for one, count in counts.items() if count >= least or one == "\n")


def _visible(counts: Counter[str], wanted: TokenizerOptions) -> list[str]:
    return [one for one in _often(counts, wanted) if not one.isspace()]


FAMILIES: Mapping[
    Family, Callable[[Sequence[str], TokenizerOptions], "PreTrainedTokenizerFast"]
] = MappingProxyType(
    {
        "gpt2": _train_gpt2,
        "bert": _train_bert,
        "t5": _train_t5,
        "bart": _train_bart,
        "characters": _train_characters,
    }
)
