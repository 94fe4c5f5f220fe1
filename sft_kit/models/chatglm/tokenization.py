"""ChatGLM's tokenizer, built from its `tokenizer.model` on the tokenizers library.

The ids are those of the original code. Three things differ, as is the habit of transformers: "sop"
and "eop" are written `<sop>` and `<eop>` (as plain words they would be found inside "sophisticated"
and "develop"), special tokens spelled in a text become special tokens (`split_special_tokens=True`
encodes them as text, as the original always does), and `decode` shows special tokens unless told
to skip them.
"""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import cast

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from sft_kit.config.checkpoint_header import config_of
from sft_kit.models.chatglm.family import Family, detect_family
from sft_kit.models.chatglm.prompts import CHAT_TEMPLATES
from sft_kit.models.chatglm.sentencepiece_model import SPACE
from sft_kit.models.chatglm.tokenizer_files import (
    BACKEND_FILE,
    END,
    MODEL_FILE,
    UNKNOWN,
    check_size,
    find_files,
    load_backend,
    number_in,
    sha256_of,
    special_tokens,
    tokenizer_error,
)

_ALIASES: Mapping[str, str] = MappingProxyType(
    {"sop": "<sop>", "eop": "<eop>", "<bos>": "<s>", "<eos>": "</s>", "<pad>": "<unk>"}
)
_OWN_NAMES = frozenset({*special_tokens("chatglm3"), *_ALIASES})
_BEGIN = "<s>"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_BAD_BYTE = re.compile("[\udc80-\udcff]")


class ChatGLMTokenizer(PreTrainedTokenizerFast):
    """Tokenizer of ChatGLM2 and ChatGLM3.

    `AutoTokenizer` finds it by its name in `tokenizer_config.json`, for the original folders as for
    saved ones, and never runs the code that a folder brings along.

    Args:
        vocab_file: `tokenizer.model`.
        tokenizer_file: `tokenizer.json`, as saved by this class; starts faster.
        family: None finds out from the folder.
        tokenizer_model_sha256: Of the `tokenizer.model` that `tokenizer_file` was made from.
        **kwargs: As for every tokenizer of transformers. `model_max_length` comes from the folder's
            config.json where it is not given.

    Raises:
        CheckpointError: The files are missing, damaged, not ChatGLM2's or 3's, don't belong to each
            other, or don't fit the vocabulary of the model in the same folder.
    """

    vocab_files_names = {"vocab_file": MODEL_FILE, "tokenizer_file": BACKEND_FILE}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        tokenizer_file: str | None = None,
        family: Family | None = None,
        tokenizer_model_sha256: str | None = None,
        **kwargs: object,
    ) -> None:
        files = find_files(vocab_file, tokenizer_file, str(kwargs.get("name_or_path") or ""))
        self.family: Family = detect_family(files.folder, files.name, family)
        self.tokenizer_model_sha256 = sha256_of(files.model) or tokenizer_model_sha256
        self._tokenizer = load_backend(files, self.family, tokenizer_model_sha256)
        config = {} if files.folder is None else config_of(files.folder)
        options = _options(kwargs, self.family, config)
        later_tokens = _later_tokens(self._tokenizer, options.pop("added_tokens_decoder", None))
        super().__init__(  # type: ignore[no-untyped-call]
            vocab_file=str(files.model) if files.model else None,
            family=self.family,
            tokenizer_model_sha256=self.tokenizer_model_sha256,
            added_tokens_decoder=later_tokens,
            **options,
        )
        self.vocab_file = str(files.model) if files.model else None
        where = str(files.model or files.backend)
        _check_later_tokens(self.backend_tokenizer, later_tokens, where)
        check_size(len(self), config, where)

    @classmethod
    def convert_to_native_format(
        cls, trust_remote_code: bool = False, **kwargs: object
    ) -> dict[str, object]:
        """Pass on what was found in a folder: this class reads the files itself."""
        del trust_remote_code  # nothing of a folder is run, trusted or not
        return kwargs

    def get_command(self, token: str) -> int:
        """Look up a special token; also by the names of the original code, such as "sop".

        Raises:
            KeyError: No such special token.
        """
        name = _ALIASES.get(token, token)
        accepted = (UNKNOWN, _BEGIN, END, *special_tokens(self.family))
        if name not in accepted:
            raise KeyError(f"{token!r} is no special token; there are {', '.join(accepted)}")
        return cast("int", self.backend_tokenizer.token_to_id(name))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to a text; bytes that are no UTF-8 become one U+FFFD each."""
        added = set(self.added_tokens_encoder)
        texts = [token if token in added else _plain_text(token) for token in tokens]
        # The tokens of a text begin with a space that is not the text's own.
        if texts and tokens[0] not in added and tokens[0].startswith(SPACE):
            texts[0] = texts[0][1:]
        # Lone surrogates stand for bytes; neighbours may together be UTF-8.
        text = "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        return _BAD_BYTE.sub("\ufffd", text)

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: object,
    ) -> str:
        """Decode ids; those without a token, as of the padding rows of an embedding, add nothing.

        The tokenizers library's own decoder gives up on a whole run of bytes where one of them is
        no UTF-8, and a good line end among them is lost.
        """
        del clean_up_tokenization_spaces  # wrong for every byte-pair tokenizer
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped: set[int] = set()
        if skip_special_tokens:
            skipped = {*self.all_special_ids, self.get_command(_BEGIN)}
        id_to_token = self.backend_tokenizer.id_to_token
        found = (
            id_to_token(token_id) for token_id in ids if token_id >= 0 and token_id not in skipped
        )
        return self.convert_tokens_to_string([token for token in found if token is not None])

    def _save_pretrained(
        self,
        save_directory: str | PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Save `tokenizer.json` and, so that original code can read the folder, the original."""
        names: tuple[str, ...] = super()._save_pretrained(
            save_directory, file_names, legacy_format, filename_prefix
        )
        if self.vocab_file is None or not Path(self.vocab_file).is_file():
            return names
        return names + tuple(self.save_vocabulary(str(save_directory), filename_prefix))


def _later_tokens(core: Tokenizer, listed: object) -> dict[int, AddedToken]:
    """Keep the tokens that a user added; the config of ChatGLM3 also lists its own, as "sop"."""
    tokens = cast("Mapping[int, AddedToken]", listed or {})
    first = core.get_vocab_size()
    return {i: token for i, token in tokens.items() if i >= first and str(token) not in _OWN_NAMES}


def _check_later_tokens(core: Tokenizer, tokens: Mapping[int, AddedToken], where: str) -> None:
    for index, token in tokens.items():
        if core.token_to_id(str(token)) != index:
            raise tokenizer_error(
                where,
                f"can't give {str(token)!r} the id {index}: others have to come before it",
                "correct added_tokens_decoder in tokenizer_config.json",
            )


def _options(
    kwargs: Mapping[str, object], family: Family, config: Mapping[str, object]
) -> dict[str, object]:
    """Complete the settings of a tokenizer_config.json, which in an original folder has few."""
    options = dict(kwargs)
    options.pop("auto_map", None)  # names the code of the original folder, which is not saved
    for key, token in {"unk_token": UNKNOWN, "pad_token": UNKNOWN, "eos_token": END}.items():
        options[key] = options.get(key) or token
    own = special_tokens(family)
    listed = options.pop("additional_special_tokens", None) or options.get("extra_special_tokens")
    others = cast("Sequence[object]", listed or ())
    options["extra_special_tokens"] = [*own, *(t for t in others if str(t) not in _OWN_NAMES)]
    options.setdefault("padding_side", "left")
    length = options.get("model_max_length")
    if not isinstance(length, int) or length >= VERY_LARGE_INTEGER:
        options["model_max_length"] = number_in(config, "seq_length", "max_position_embeddings")
    options["chat_template"] = _chat_template(options.get("chat_template"), family)
    return options


def _chat_template(given: object, family: Family) -> object:
    """Keep a template of the user's, not the one of ChatGLM3's config, which spells "sop"."""
    is_ours = given in CHAT_TEMPLATES.values()
    is_original = isinstance(given, str) and "[gMASK]sop" in given
    return CHAT_TEMPLATES[family] if not given or is_ours or is_original else given


def _plain_text(token: str) -> str:
    """Spell a piece; a byte as what `surrogateescape` makes of it."""
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
    return token.replace(SPACE, " ")


class _NameOnly(PreTrainedConfig):
    """Stands for no model: on the true config, `trust_remote_code` would prefer a folder's code."""

    model_type = "chatglm-tokenizer"


AutoTokenizer.register(_NameOnly, tokenizer_class=ChatGLMTokenizer, exist_ok=True)
