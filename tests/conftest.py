"""Shared by all tests: tiny models made on the spot, no network, fixed random numbers.

Libraries are imported inside the fixtures, so that tests which need no torch don't wait for it.
"""

import copy
import ipaddress
import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 1234
REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCHER_PREFIXES = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_")
LAUNCHER_NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "How are you today? I am well, thank you.",
    "Water boils at one hundred degrees; ice melts at zero.",
    "Human: What is two plus two?\nAssistant: Two plus two is four.",
    "Below is an instruction. Write a response.\n\n### Instruction:\n\n### Response:\n",
    "今天天气很好，我们去公园散步。",
    "请用一句话回答：什么是水？水是一种液体。",
)


def pytest_configure(config: pytest.Config) -> None:
    """Set what libraries read from the environment once, while they are imported."""
    home = tempfile.TemporaryDirectory(prefix="sft-kit-tests-")
    config.add_cleanup(home.cleanup)
    os.environ.update(
        HF_HOME=home.name,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        MPLBACKEND="Agg",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",  # a forked process waits for ever for OpenMP's other threads
    )
    # `auto` means float32 on every CPU, in child processes too; tests of bfloat16 ask for it.
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
    for name in list(os.environ):
        if name.startswith(LAUNCHER_PREFIXES) or name in LAUNCHER_NAMES or name == "HF_TOKEN":
            del os.environ[name]


# --- no network, no chance -----------------------------------------------------------------------


def _is_loopback(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return text == socket.gethostname()


def _refuse(what: str) -> NoReturn:
    # Not an OSError: libraries catch those and go on as if the network were merely down.
    pytest.fail(f"a test tried to reach the network: {what}")


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Fail every test that connects or resolves names beyond this machine."""
    original = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    getaddrinfo = socket.getaddrinfo

    def guarded(name: str) -> object:
        def call(self: socket.socket, *args: object) -> object:
            address = args[-1] if name == "sendto" else args[0]
            is_internet = self.family in (socket.AF_INET, socket.AF_INET6)
            if is_internet and not _is_loopback(address[0]):  # type: ignore[index]
                _refuse(f"{name} to {address}")
            return original[name](self, *args)

        return call

    def resolve(host: object, *args: object, **kwargs: object) -> object:
        if not _is_loopback(host):
            _refuse(f"look-up of {host!r}")
        return getaddrinfo(host, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        for name in original:
            patch.setattr(socket.socket, name, guarded(name))
        patch.setattr(socket, "getaddrinfo", resolve)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same state of every random generator that is loaded."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


# --- tiny tokenizers and models ------------------------------------------------------------------


@pytest.fixture(scope="session")
def trained_tokenizer() -> "PreTrainedTokenizerFast":
    """Byte-level BPE with 400 tokens, learnt from CORPUS; GPT-2's single special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    token = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=token, eos_token=token, unk_token=token
    )


@pytest.fixture
def tokenizer(trained_tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Tokenizer like GPT-2's: bos is eos, no pad token, no chat template. A copy per test."""
    return copy.deepcopy(trained_tokenizer)


@pytest.fixture
def llama_tokenizer(trained_tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """Tokenizer like Llama's: bos, eos and pad are three tokens of their own."""
    tokenizer = copy.deepcopy(trained_tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    return tokenizer


@pytest.fixture
def gpt2_model(tokenizer: "PreTrainedTokenizerFast") -> "GPT2LMHeadModel":
    """Random GPT-2: 2 layers, hidden size 64, context 256, no dropout, in evaluation mode."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=2, n_head=2,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def llama_model(llama_tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """Random Llama: 2 layers, hidden size 64, grouped-query attention, in evaluation mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(llama_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=llama_tokenizer.bos_token_id, eos_token_id=llama_tokenizer.eos_token_id,
        pad_token_id=llama_tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def gpt2_checkpoint(
    gpt2_model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerFast", tmp_path: Path
) -> Path:
    """Folder with the random GPT-2 and its tokenizer, as `from_pretrained` reads it."""
    return _save(tmp_path / "tiny-gpt2", gpt2_model, tokenizer)


@pytest.fixture
def llama_checkpoint(
    llama_model: "LlamaForCausalLM", llama_tokenizer: "PreTrainedTokenizerFast", tmp_path: Path
) -> Path:
    """Folder with the random Llama and its tokenizer, as `from_pretrained` reads it."""
    return _save(tmp_path / "tiny-llama", llama_model, llama_tokenizer)


def _save(
    folder: Path,
    model: "GPT2LMHeadModel | LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- real input ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets and checkpoints, where this machine has one."""
    named = os.environ.get("SFT_KIT_REAL_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; name its folder in SFT_KIT_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def chatglm_fixtures() -> Path:
    """Tiny ChatGLM checkpoints in the original format, with outputs of the original code."""
    return REPOSITORY / "tests" / "fixtures" / "chatglm"
