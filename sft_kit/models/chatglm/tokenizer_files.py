"""ChatGLM's tokenizer files: found, checked against each other, and made into a backend."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.family import Family
from sft_kit.models.chatglm.sentencepiece_model import SPACE, Piece, bpe_merges, read_pieces

MODEL_FILE = "tokenizer.model"
BACKEND_FILE = "tokenizer.json"
FIRST_GENERATION_FILE = "ice_text.model"
UNKNOWN, END = "<unk>", "</s>"

_SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
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
            unk_token=UNKNOWN,
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
    names = (UNKNOWN, END, *special_tokens(family))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    prefix = ("[gMASK]", "<sop>")
    ends = [(name, core.token_to_id(name)) for name in (*prefix, END)]
    core.post_processor = processors.TemplateProcessing(
        single=[*prefix, "$A"], pair=[*prefix, "$A", "$B", END], special_tokens=ends
    )
    return core


class TokenizerFiles(NamedTuple):
    """What there is to load from; `name` is that of a repository, not of a folder."""

    model: Path | None
    backend: Path | None
    folder: Path | None
    name: str


def find_files(vocab_file: str | None, tokenizer_file: str | None, name: str) -> TokenizerFiles:
    """Find the files of a tokenizer.

    Args:
        vocab_file: `tokenizer.model`, if it was found already.
        tokenizer_file: `tokenizer.json`, if there is one.
        name: Folder or name of the repository that they come from; "" where it isn't known.

    Raises:
        CheckpointError: There is neither file.
    """
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
        raise tokenizer_error(where, message, "choose a checkpoint of ChatGLM2 or ChatGLM3")
    return TokenizerFiles(model, backend, folder, "" if is_folder else name)


def load_backend(files: TokenizerFiles, family: Family, saved_sha256: str | None) -> Tokenizer:
    """Load `tokenizer.json` where it was made from the `tokenizer.model` there is, else make it.

    Args:
        files: From `find_files`.
        family: Decides on the tokens of the roles.
        saved_sha256: Of the `tokenizer.model` that `tokenizer.json` was made from, as saved with
            it; None if it was not saved by this package.

    Raises:
        CheckpointError: A file is damaged, or the two don't belong to each other or the family.
    """
    if files.backend is not None and (files.model is None or saved_sha256 is not None):
        if files.model is not None and sha256_of(files.model) != saved_sha256:
            raise tokenizer_error(
                str(files.backend),
                f"was made from another {MODEL_FILE} than the one beside it",
                f"delete {BACKEND_FILE} to use {MODEL_FILE}",
            )
        core = _read_backend(files.backend)
        if _family_of(core) == family:
            return core
        if files.model is None:
            message = f"has not the special tokens of {family}"
            raise tokenizer_error(str(files.backend), message, f"put the {MODEL_FILE} beside it")
    return build_backend(read_pieces(cast("Path", files.model)), family)


def _read_backend(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library knows no other
        todo = f"delete it, it is made anew from {MODEL_FILE}"
        raise tokenizer_error(str(file), f"can't be read: {error}", todo) from error


def _family_of(core: Tokenizer) -> Family | None:
    num_pieces = core.get_vocab_size(with_added_tokens=False)
    families: tuple[Family, ...] = ("chatglm3", "chatglm2")
    for family in families:
        ids = [core.token_to_id(token) for token in special_tokens(family)]
        if ids == list(range(num_pieces, num_pieces + len(ids))):
            return family
    return None


def check_size(num_tokens: int, config: Mapping[str, object], where: str) -> None:
    """Check that the tokens fit the vocabulary of the model in the same folder.

    Args:
        num_tokens: Tokens of the tokenizer, those that a user added included.
        config: From config.json; without a size of the vocabulary everything fits.
        where: File to name.

    Raises:
        CheckpointError: There are more tokens than rows, or far fewer.
    """
    num_rows = number_in(config, "padded_vocab_size", "vocab_size")
    if num_rows is None or num_tokens <= num_rows < num_tokens + _MAX_SPARE_ROWS:
        return
    raise tokenizer_error(
        where,
        f"has {num_tokens} tokens, the model beside it {num_rows} (padded_vocab_size in "
        "config.json): they don't belong together",
        f"copy {MODEL_FILE} from the checkpoint that config.json comes from",
    )


def number_in(config: Mapping[str, object], *names: str) -> int | None:
    """Return the number that stands under the first of these names that has one."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def sha256_of(file: Path | None) -> str | None:
    """Fingerprint of a file; None without a file that can be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file else None
    except OSError:
        return None  # reading it says why


def tokenizer_error(where: str, message: str, todo: str) -> CheckpointError:
    """Make the error of a tokenizer that can't be loaded: where, what was found, what to do."""
    return CheckpointError("the tokenizer can't be loaded", [Problem(where, "", message, todo)])
