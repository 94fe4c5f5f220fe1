"""Tokenizers of encoders: words in pieces with [CLS], [SEP] and [MASK]; sentinels."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HANZI = "今天气真好我们一起出去玩吧，。他说走大家都了"
WORDS = ["the", "play", "##ing", "##ed", "house", "un", "##like", "##ly", "is", "red"]
LETTERS = [letter for char in "abcdefghijklmnopqrstuvwxyz" for letter in (char, f"##{char}")]


@pytest.fixture(scope="session")
def bert_tokenizer() -> "PreTrainedTokenizerFast":
    """BERT's word pieces over letters, a few words and a few hanzi."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *".,!?'", *HANZI, *WORDS, *LETTERS]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
