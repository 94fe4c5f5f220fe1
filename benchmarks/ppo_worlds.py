"""Small worlds in which the best possible policy is known, to measure PPO against.

A seeded Markov language is taught to a tiny GPT-2; its words are token ids. In an enumerated world
all completions of a few prompts are listed, so the probability of each, the expected reward, the KL
divergence and the optimum of E[R] - beta * KL are exact numbers and not estimates. The long world
has too many completions for that: figures there are means over drawn episodes.

No part of sft_kit is imported here: another implementation of PPO, in an environment of its own,
is measured in the same worlds.

Shapes: N completions of one prompt, C completion tokens, V vocabulary, B rows, T tokens.
"""

import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3
PRETRAINING_ROWS, HELD_OUT_ROWS = 32, 256
PRETRAINING_LEARNING_RATE = 3e-3
HELD_OUT_SEED = 1_000_003

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Token ids (B, T) without padding -> logits (B, T, V)."""


# --- the language, and a model that speaks it ----------------------------------------------------


@dataclass(frozen=True)
class Language:
    """A Markov chain over words, and the size of the model that is taught it.

    Attributes:
        vocabulary: V token ids: PAD, BOS, EOS and V - 3 words.
        seed: Of the transition probabilities, of the model's weights and of its lessons.
        stop_probability: Of EOS after any word.
        spread: Standard deviation of the transitions' log-probabilities before normalising.
        row_length: Tokens per row of text at most, BOS included.
        num_steps: Pretraining steps.
        num_layers: Of the GPT-2.
        hidden_size: Of the GPT-2.
    """

    vocabulary: int
    seed: int = 0
    stop_probability: float = 0.12
    spread: float = 1.0
    row_length: int = 24
    num_steps: int = 200
    num_layers: int = 2
    hidden_size: int = 64


# With this seed the word 7 is rare after all others, and most so after itself: good policies are
# far from the reference policy.
SMALL = Language(vocabulary=8, seed=68, stop_probability=0.1, spread=1.4)
LARGE = Language(vocabulary=64, stop_probability=0.04, row_length=32)
WIDE = Language(vocabulary=64, stop_probability=0.02, row_length=64, num_layers=4, hidden_size=128)


@cache
def transitions(language: Language) -> torch.Tensor:
    """Return (V, V) probabilities of the next token; rows of PAD and EOS are never used."""
    draw = torch.Generator().manual_seed(language.seed)
    num_words = language.vocabulary - FIRST_WORD
    logits = language.spread * torch.randn(language.vocabulary, num_words, generator=draw)
    table = torch.zeros(language.vocabulary, language.vocabulary)
    table[:, FIRST_WORD:] = logits.softmax(-1) * (1 - language.stop_probability)
    table[:, EOS] = language.stop_probability
    table[BOS, FIRST_WORD:] /= 1 - language.stop_probability  # a text has one word at least
    table[BOS, EOS] = 0.0
    return table


def draw_texts(language: Language, num_rows: int, seed: int) -> list[list[int]]:
    """Draw texts of the language: BOS, words, and EOS where the row has room for it."""
    draw = torch.Generator().manual_seed(seed)
    table = transitions(language)
    rows = torch.full((num_rows, 1), BOS)
    for _ in range(language.row_length - 1):
        following = torch.multinomial(table[rows[:, -1]].clamp(min=1e-30), 1, generator=draw)
        ended = rows[:, -1:] == EOS
        rows = torch.cat([rows, following.masked_fill(ended, EOS)], dim=1)
    return [cut_after_stop(row) for row in rows.tolist()]


def cut_after_stop(tokens: Sequence[int]) -> list[int]:
    """Cut what follows the first EOS."""
    tokens = list(tokens)
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def language_loss(model: torch.nn.Module, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean cross-entropy in nats over every token after BOS."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[PAD] * (width - len(text))] for text in texts])
    counts = torch.arange(width) < torch.tensor([len(text) for text in texts])[:, None]
    logits = model(input_ids=ids, attention_mask=counts.long()).logits[:, :-1].float()
    labels = ids[:, 1:].masked_fill(~counts[:, 1:], -100)
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, language: Language) -> float:
    """Loss on texts that no training has seen, nats per token."""
    texts = draw_texts(language, HELD_OUT_ROWS, language.seed + HELD_OUT_SEED)
    return float(language_loss(model, texts))


def teach(language: Language) -> GPT2LMHeadModel:
    """Train a new GPT-2 on the language."""
    torch.manual_seed(language.seed)
    config = GPT2Config(
        vocab_size=language.vocabulary, n_positions=128, n_embd=language.hidden_size,
        n_layer=language.num_layers, n_head=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LEARNING_RATE)
    for step in range(language.num_steps):
        texts = draw_texts(language, PRETRAINING_ROWS, language.seed * 10_007 + step)
        language_loss(model, texts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def words(token_ids: Sequence[int]) -> str:
    """Write token ids as the text that the checkpoint's tokenizer reads them from."""
    names = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
    return " ".join(names.get(token, f"w{token}") for token in token_ids)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word, one token; the pad token is a token of its own and can be drawn like any other."""
    table = {words([token]): token for token in range(vocabulary)}
    core = Tokenizer(models.WordLevel(table, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def checkpoint(language: Language, folder: Path | None = None) -> Path:
    """Return a folder with the taught model and its tokenizer; it is made once.

    Args:
        language: What is taught.
        folder: Where checkpoints are kept; a temporary folder of this user by default.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"ppo_worlds_{os.getuid()}"
    parameters = json.dumps([asdict(language), torch.__version__])
    # The lessons are part of the name: an edit of this file makes a new checkpoint.
    name = hashlib.sha256(parameters.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    if not (folder / name).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as stage:
            state = torch.random.get_rng_state()
            teach(language).save_pretrained(Path(stage) / name)
            torch.random.set_rng_state(state)
            word_tokenizer(language.vocabulary).save_pretrained(Path(stage) / name)
            try:
                (Path(stage) / name).rename(folder / name)
            except OSError:  # another process was faster
                if not (folder / name).is_dir():
                    raise
    return folder / name


# --- worlds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Prompts, how long a completion may be, and what it is worth.

    Attributes:
        language: What the reference policy speaks.
        prompts: Token ids of each prompt, of different lengths.
        max_new_tokens: C tokens of a completion at most, EOS included.
        reward_tokens: Each of them is worth 1 / max_new_tokens.
        stop_bonus: What ending with EOS is worth.
        scale: Factor of the whole score.
        constant: Added to every score.
    """

    language: Language
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    reward_tokens: frozenset[int]
    stop_bonus: float = 0.0
    scale: float = 1.0
    constant: float = 0.0

    def score(self, completion: Sequence[int]) -> float:
        """Return what a completion is worth; what follows its first EOS does not count."""
        tokens = cut_after_stop(completion)
        share = sum(token in self.reward_tokens for token in tokens) / self.max_new_tokens
        ended = self.stop_bonus if tokens and tokens[-1] == EOS else 0.0
        return self.scale * (share + ended) + self.constant


def enumerated_world(
    reward_token: int = 7,
    stop_bonus: float = 0.25,
    *,
    max_new_tokens: int = 4,
    scale: float = 1.0,
    constant: float = 0.0,
    language: Language = SMALL,
) -> World:
    """Return a world of two prompts whose completions can all be listed."""
    prompts = ((BOS, 4, 6), (BOS, 5, 3, 7, 4, 3))
    token = frozenset({reward_token})
    return World(language, prompts, max_new_tokens, token, stop_bonus, scale, constant)


def long_world(num_prompts: int = 128, num_reward_tokens: int = 12) -> World:
    """Return a world of 3 to 8 prompt tokens and up to 16 completion tokens."""
    rows = draw_texts(LARGE, num_prompts * 4, seed=LARGE.seed + 17)
    long_enough = [tuple(row) for row in rows if len(row) > 9]
    prompts = tuple(row[: 3 + index % 6] for index, row in enumerate(long_enough[:num_prompts]))
    draw = torch.Generator().manual_seed(LARGE.seed + 5)
    order = torch.randperm(LARGE.vocabulary - FIRST_WORD, generator=draw) + FIRST_WORD
    tokens = frozenset(order[:num_reward_tokens].tolist())
    return World(LARGE, prompts, 16, tokens)


def wide_world(num_prompts: int = 128) -> World:
    """Return the world for timing: a model of twice the size, three times the length."""
    rows = draw_texts(WIDE, num_prompts * 4, seed=WIDE.seed + 17)
    long_enough = [tuple(row) for row in rows if len(row) > 17]
    prompts = tuple(row[: 9 + index % 8] for index, row in enumerate(long_enough[:num_prompts]))
    return World(WIDE, prompts, 48, long_world().reward_tokens)


@dataclass(frozen=True)
class Task:
    """What PPO is asked to do in a world, in words that every implementation knows.

    Attributes:
        world: "enumerated", "long" or "wide".
        reward_token: Of the enumerated world.
        stop_bonus: Of the enumerated world.
        scale: Of the scores; of the enumerated world.
        constant: Added to the scores; of the enumerated world.
        max_new_tokens: Of the enumerated world.
        beta: KL coefficient, per nat.
        seed: Of the training.
        minibatches: Optimizer updates per epoch.
        episodes: Per rollout.
        updates: Rollouts.
        epochs: Per rollout.
        learning_rate: Of policy and values at the start; it falls to 0 in a straight line.
        gae_lambda: Of generalized advantage estimation.
        value: "model", "shared" or "adapter".
        lora: Train adapters on a frozen base.
        micro_batch: Episodes of one forward at most; TRL takes all of a rollout.
    """

    world: str = "enumerated"
    reward_token: int = 7
    stop_bonus: float = 0.25
    scale: float = 1.0
    constant: float = 0.0
    max_new_tokens: int = 4
    beta: float = 0.1
    seed: int = 0
    minibatches: int = 1
    episodes: int = 64
    updates: int = 40
    epochs: int = 4
    learning_rate: float = 1e-3
    gae_lambda: float = 0.95
    value: str = "model"
    lora: bool = False
    micro_batch: int = 64


def world_of(task: Task) -> World:
    """Return the world that a task names."""
    if task.world == "enumerated":
        return enumerated_world(
            task.reward_token,
            task.stop_bonus,
            max_new_tokens=task.max_new_tokens,
            scale=task.scale,
            constant=task.constant,
        )
    return {"long": long_world, "wide": wide_world}[task.world]()


# --- every completion ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Completions:
    """Every completion of a world, the same for each prompt.

    Attributes:
        tokens: (N, C), PAD after the end.
        lengths: (N,) tokens, EOS included.
        rows: (N,) which row of `prefixes` begins with all but the last token.
        prefixes: ((V-1)^(C-1), C-1) tokens without EOS.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    rows: torch.Tensor
    prefixes: torch.Tensor


@cache
def every_completion(vocabulary: int, max_new_tokens: int) -> Completions:
    """List all completions: those that end with EOS, and those that are cut at the limit."""
    others = [token for token in range(vocabulary) if token != EOS]
    prefixes = list(itertools.product(others, repeat=max_new_tokens - 1))
    place: dict[tuple[int, ...], int] = {}
    for row, prefix in enumerate(prefixes):
        for length in range(max_new_tokens):
            place.setdefault(prefix[:length], row)
    found = [
        (*prefix, last)
        for prefix in place
        for last in range(vocabulary)
        if last == EOS or len(prefix) == max_new_tokens - 1
    ]
    return Completions(
        tokens=torch.tensor([[*one, *[PAD] * (max_new_tokens - len(one))] for one in found]),
        lengths=torch.tensor([len(one) for one in found]),
        rows=torch.tensor([place[one[:-1]] for one in found]),
        prefixes=torch.tensor(prefixes, dtype=torch.long).reshape(len(prefixes), -1),
    )


@torch.no_grad()
def completion_logprobs(forward: Forward, world: World) -> torch.Tensor:
    """Return (prompts, N) log-probabilities of every completion, float64.

    A causal model gives the distributions after all beginnings of a row in one forward, so the
    rows of C - 1 tokens without EOS are all that is asked for.
    """
    completions = every_completion(world.language.vocabulary, world.max_new_tokens)
    counts = torch.arange(world.max_new_tokens) < completions.lengths[:, None]
    rows = []
    for prompt in world.prompts:
        start = torch.tensor(prompt).expand(len(completions.prefixes), -1)
        logits = forward(torch.cat([start, completions.prefixes], dim=1))
        logprobs = logits[:, len(prompt) - 1 :].double().log_softmax(-1)  # (rows, C, V)
        chosen = logprobs[completions.rows].gather(2, completions.tokens[:, :, None])[:, :, 0]
        rows.append(torch.where(counts, chosen, 0.0).sum(1))
    return torch.stack(rows)


@cache
def completion_scores(world: World) -> torch.Tensor:
    """Return (N,) what each completion is worth, float64."""
    completions = every_completion(world.language.vocabulary, world.max_new_tokens)
    lengths = completions.lengths.tolist()
    tokens = completions.tokens.tolist()
    return torch.tensor(
        [world.score(row[:length]) for row, length in zip(tokens, lengths, strict=True)],
        dtype=torch.float64,
    )


@dataclass(frozen=True)
class ExactFigures:
    """What a policy reaches in an enumerated world; means over the prompts.

    Attributes:
        norm: Share of the possible gain that is reached: 0 is the reference policy, 1 the optimum.
        expected_reward: E[R].
        kl: Divergence from the reference policy, nats per completion.
        j: E[R] - beta * kl.
        best_j: The most that any policy reaches: beta * log sum p_ref * exp(R / beta).
        reference_j: J of the reference policy.
    """

    norm: float
    expected_reward: float
    kl: float
    j: float
    best_j: float
    reference_j: float


def exact_figures(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, beta: float
) -> ExactFigures:
    """Judge a policy by the probabilities of all completions.

    Args:
        logprobs: (prompts, N) under the policy.
        ref_logprobs: (prompts, N) under the reference policy.
        scores: (N,) or (prompts, N) rewards.
        beta: Weight of the KL divergence, per nat; greater than 0.
    """
    probabilities = logprobs.exp()
    reward = float((probabilities * scores).sum(1).mean())
    kl = float((probabilities * (logprobs - ref_logprobs)).sum(1).mean())
    j, reference = reward - beta * kl, float((ref_logprobs.exp() * scores).sum(1).mean())
    best = float(beta * (ref_logprobs + scores / beta).logsumexp(1).mean())
    room = best - reference
    norm = (j - reference) / room if room > 1e-12 else math.nan
    return ExactFigures(norm, reward, kl, j, best, reference)


def best_probabilities(
    ref_logprobs: torch.Tensor, scores: torch.Tensor, beta: float
) -> torch.Tensor:
    """Return (prompts, N) probabilities of the best policy, p_ref * exp(R / beta) / Z."""
    return (ref_logprobs + scores / beta).softmax(1)


def causal_forward(model: torch.nn.Module) -> Forward:
    """Ask a Hugging Face causal language model for its logits, on the CPU."""
    device = next(model.parameters()).device

    def forward(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids.to(device)).logits
        return logits.float().cpu()

    return forward
