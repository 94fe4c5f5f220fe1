"""ChatGLM's tokenizer, built from its `tokenizer.model` on the tokenizers library.

The ids are those of the original code. Three things differ, as is the habit of transformers: "sop"
and "eop" are written `<sop>` and `<eop>` (as plain words they would be found inside "sophisticated"
and "develop"), special tokens spelled in a text become special tokens (`split_special_tokens=True`
encodes them as text, as the original always does), and `decode` shows special tokens unless told
to skip them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.family import Family, detect_family
from sft_kit.models.chatglm.prompts import CHAT_TEMPLATES
from sft_kit.models.chatglm.sentencepiece_model import SPACE, Piece, bpe_merges, read_pieces

MODEL_FILE = "tokenizer.model"
BACKEND_FILE = "tokenizer.json"
FIRST_GENERATION_FILE = "ice_text.model"

_SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"sop": "<sop>", "eop": "<eop>", "<bos>": "<s>", "<eos>": "</s>", "<pad>": "<unk>"}
)
_OWN_NAMES = frozenset({*_SPECIAL_TOKENS, *_ROLE_TOKENS, *_ALIASES})
_UNKNOWN, _BEGIN, _END = "<unk>", "<s>", "</s>"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_BAD_BYTE = re.compile("[\udc80-\udcff]")
_MAX_SPARE_ROWS = 1024
"""Rows of an embedding that may have no token; the checkpoints have 226 and 230."""


def special_tokens(family: Family) -> tuple[str, ...]:
    """List the tokens whose ids follow those of the pieces, in this order."""
    return _SPECIAL_TOKENS + (_ROLE_TOKENS if family == "chatglm3" else ())


def build_backend(pieces: Sequence[Piece], family: Family) -> Tokenizer:
    """Make a tokenizer that encodes as SentencePiece does with these pieces.

    Args:
        pieces: From `read_pieces`.
        family: Decides on the tokens of the roles.

    Returns:
        A byte-pair tokenizer that puts `[gMASK]<sop>` before a text.
    """
    core = Tokenizer(
        models.BPE(
            vocab={piece.text: i for i, piece in enumerate(pieces)},
            merges=bpe_merges(pieces),
            unk_token=_UNKNOWN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # Not Metaspace: it puts no space before a text that begins with one.
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    # Near enough for stock transformers, which reads tokenizer.json; `_decode` is exact.
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = (_UNKNOWN, _END, *special_tokens(family))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    prefix = ("[gMASK]", "<sop>")
    ends = [(name, core.token_to_id(name)) for name in (*prefix, _END)]
    core.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A"], pair=[*prefix, "$A", "$B", _END], special_tokens=ends
    )
    return core


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
        files = _find_files(vocab_file, tokenizer_file, str(kwargs.get("name_or_path") or ""))
        self.family: Family = detect_family(files.folder, files.name, family)
        self.tokenizer_model_sha256 = _sha256(files.model) or tokenizer_model_sha256
        self._tokenizer = _backend(files, self.family, tokenizer_model_sha256)
        config = _read_config(files.folder)
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
        _check_size(len(self), config, where)

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
        accepted = (_UNKNOWN, _BEGIN, _END, *special_tokens(self.family))
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


# --- from files to a backend ---------------------------------------------------------------------


class _Files(NamedTuple):
    """What there is to load from; `name` is that of a repository, not of a folder."""

    model: Path | None
    backend: Path | None
    folder: Path | None
    name: str


def _find_files(vocab_file: str | None, tokenizer_file: str | None, name: str) -> _Files:
    is_folder = bool(name) and Path(name).is_dir()
    model = Path(vocab_file) if vocab_file else None
    if model is None and is_folder and (Path(name) / MODEL_FILE).is_file():
        model = Path(name) / MODEL_FILE  # transformers is misled by a tokenizer.model.old beside it
    backend = Path(tokenizer_file) if tokenizer_file else None
    file = model or backend
    folder = Path(name) if is_folder else file.parent if file else None
    if file is None:
        where = str(folder or name or MODEL_FILE)
        if folder is not None and (folder / FIRST_GENERATION_FILE).is_file():
            message = f"has {FIRST_GENERATION_FILE}: it is ChatGLM-6B of the first generation"
        else:
            message = f"has no {MODEL_FILE}"
        raise _error(where, message, "choose a checkpoint of ChatGLM2 or ChatGLM3")
    return _Files(model, backend, folder, "" if is_folder else name)


def _backend(files: _Files, family: Family, saved_sha256: str | None) -> Tokenizer:
    """Load `tokenizer.json` where it was made from the `tokenizer.model` there is, else make it."""
    if files.backend is not None and (files.model is None or saved_sha256 is not None):
        if files.model is not None and _sha256(files.model) != saved_sha256:
            raise _error(
                str(files.backend),
                f"was made from another {MODEL_FILE} than the one beside it",
                f"delete {BACKEND_FILE} to use {MODEL_FILE}",
            )
        core = _load_backend(files.backend)
        if _family_of(core) == family:
            return core
        if files.model is None:
            message = f"has not the special tokens of {family}"
            raise _error(str(files.backend), message, f"put the {MODEL_FILE} beside it")
    return build_backend(read_pieces(cast("Path", files.model)), family)


def _load_backend(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library knows no other
        todo = f"delete it, it is made anew from {MODEL_FILE}"
        raise _error(str(file), f"can't be read: {error}", todo) from error


def _family_of(core: Tokenizer) -> Family | None:
    num_pieces = core.get_vocab_size(with_added_tokens=False)
    families: tuple[Family, ...] = ("chatglm3", "chatglm2")
    for family in families:
        ids = [core.token_to_id(token) for token in special_tokens(family)]
        if ids == list(range(num_pieces, num_pieces + len(ids))):
            return family
    return None


def _later_tokens(core: Tokenizer, listed: object) -> dict[int, AddedToken]:
    """Keep the tokens that a user added; the config of ChatGLM3 also lists its own, as "sop"."""
    tokens = cast("Mapping[int, AddedToken]", listed or {})
    first = core.get_vocab_size()
    return {i: token for i, token in tokens.items() if i >= first and str(token) not in _OWN_NAMES}


def _check_later_tokens(core: Tokenizer, tokens: Mapping[int, AddedToken], where: str) -> None:
    for index, token in tokens.items():
        if core.token_to_id(str(token)) != index:
            raise _error(
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
    for key, token in {"unk_token": _UNKNOWN, "pad_token": _UNKNOWN, "eos_token": _END}.items():
        options[key] = options.get(key) or token
    own = special_tokens(family)
    listed = options.pop("additional_special_tokens", None) or options.get("extra_special_tokens")
    others = cast("Sequence[object]", listed or ())
    options["extra_special_tokens"] = [*own, *(t for t in others if str(t) not in _OWN_NAMES)]
    options.setdefault("padding_side", "left")
    length = options.get("model_max_length")
    if not isinstance(length, int) or length >= VERY_LARGE_INTEGER:
        options["model_max_length"] = _number(config, "seq_length", "max_position_embeddings")
    options["chat_template"] = _chat_template(options.get("chat_template"), family)
    return options


def _chat_template(given: object, family: Family) -> object:
    """Keep a template of the user's, not the one of ChatGLM3's config, which spells "sop"."""
    is_ours = given in CHAT_TEMPLATES.values()
    is_original = isinstance(given, str) and "[gMASK]sop" in given
    return CHAT_TEMPLATES[family] if not given or is_ours or is_original else given


def _check_size(num_tokens: int, config: Mapping[str, object], where: str) -> None:
    num_rows = _number(config, "padded_vocab_size", "vocab_size")
    if num_rows is None or num_tokens <= num_rows < num_tokens + _MAX_SPARE_ROWS:
        return
    raise _error(
        where,
        f"has {num_tokens} tokens, the model beside it {num_rows} (padded_vocab_size in "
        "config.json): they don't belong together",
        f"copy {MODEL_FILE} from the checkpoint that config.json comes from",
    )


def _read_config(folder: Path | None) -> Mapping[str, object]:
    # Whoever loads the model reads the file again and says what is wrong with it.
    try:
        content = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _number(config: Mapping[str, object], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _sha256(file: Path | None) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file else None
    except OSError:
        return None  # reading it says why


def _plain_text(token: str) -> str:
    """Spell a piece; a byte as what `surrogateescape` makes of it."""
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
    return token.replace(SPACE, " ")


def _error(where: str, message: str, todo: str) -> CheckpointError:
    return CheckpointError("the tokenizer can't be loaded", [Problem(where, "", message, todo)])


class _NameOnly(PreTrainedConfig):
    """Stands for no model: on the true config, `trust_remote_code` would prefer a folder's code."""

    model_type = "chatglm-tokenizer"


AutoTokenizer.register(_NameOnly, tokenizer_class=ChatGLMTokenizer, exist_ok=True)
