"""The episodes worth reading: best, worst, farthest from the reference, and held-out prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_kit.data.preference.rows import Prompt
from sft_kit.data.token_text import readable
from sft_kit.training.ppo.rollout import Episode, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES_FILE = "ppo_samples.jsonl"
_MAX_CHARACTERS_SHOWN = 400
_MIN_KL = 1e-3
"""Nats; below it two passes of the same model differ by rounding alone."""

Why = Literal["best", "worst", "largest kl", "eval greedy", "eval drawn"]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One episode for a reader.

    Attributes:
        rollout: Number of its rollout, from 0; of a held-out prompt, rollouts done.
        why: What it stands here for.
        where: The row of the prompt.
        prompt: The last user message, or the plain text.
        completion: With its special tokens.
        num_tokens: Of the completion, stop token included.
        stopped: The completion ended by itself.
        score: Weighted sum of the sources, raw.
        score_parts: Source -> score before its weight.
        gold: What the function that is only watched says.
        final_score: After the no-stop rule, normalisation and clipping.
        kl: Of the completion from the reference policy (k1), nats.
        value: What the value head expected before the first token.
        advantage: Mean over the tokens of the policy loss.
    """

    rollout: int
    why: Why
    where: str
    prompt: str
    completion: str
    num_tokens: int
    stopped: bool
    score: float
    score_parts: Mapping[str, float]
    gold: float | None = None
    final_score: float | None = None
    kl: float | None = None
    value: float | None = None
    advantage: float | None = None


def sample_rows(
    rollout: Rollout,
    prompts: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    how_many: int,
) -> list[SampleRow]:
    """Pick the episodes with the best scores, the worst, and the largest divergence.

    Args:
        rollout: Scored, with advantages.
        prompts: Those that the episodes answer.
        tokenizer: Decodes the completions.
        how_many: Episodes of each kind; none is taken twice, so a small rollout has fewer. A
            divergence that is no more than rounding, as in the first rollout, is not shown.
    """
    gap = torch.where(rollout.mask, rollout.logprobs - rollout.ref_logprobs, 0.0)
    kl = gap.double().sum(dim=1)
    farthest = kl.argsort(descending=True, stable=True)
    orders: dict[Why, torch.Tensor] = {
        "best": rollout.scores.argsort(descending=True, stable=True),
        "worst": rollout.scores.argsort(stable=True),
        "largest kl": farthest[kl[farthest] >= _MIN_KL],
    }
    picked: dict[int, Why] = {}
    for why, order in orders.items():
        left = [index for index in order.tolist() if index not in picked]
        picked |= dict.fromkeys(left[:how_many], why)
    indices = list(picked)
    rows = _rows(
        rollout.index,
        [rollout.episodes[index] for index in indices],
        prompts,
        tokenizer,
        rollout.scores[indices],
        {name: part[indices] for name, part in rollout.score_parts.items()},
        None if rollout.gold is None else rollout.gold[indices],
    )
    return [
        replace(
            row,
            why=picked[index],
            final_score=float(rollout.final_scores[index]),
            kl=float(kl[index]),
            value=float(rollout.values[index, 0]),
            advantage=_mean_advantage(rollout, index),
        )
        for index, row in zip(indices, rows, strict=True)
    ]


def evaluation_rows(
    rollout: int,
    why: Literal["eval greedy", "eval drawn"],
    episodes: Sequence[Episode],
    prompts: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    scores: torch.Tensor,
    *,
    score_parts: Mapping[str, torch.Tensor] = MappingProxyType({}),
    gold: torch.Tensor | None = None,
) -> list[SampleRow]:
    """Put held-out prompts, their completions and scores into rows.

    Args:
        rollout: Rollouts done.
        why: The likeliest tokens at temperature 0, or drawn as in training.
        episodes: B.
        prompts: Those that the episodes answer.
        tokenizer: Decodes the completions.
        scores: (B,).
        score_parts: Source -> (B,).
        gold: (B,).
    """
    rows = _rows(rollout, episodes, prompts, tokenizer, scores, score_parts, gold)
    return [replace(row, why=why) for row in rows]


def append_samples(folder: Path, rows: Sequence[SampleRow]) -> None:
    """Append rows to `ppo_samples.jsonl` of a run folder, one JSON object a line."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    # Half a surrogate pair becomes the escape that JSON has for it.
    with (folder / SAMPLES_FILE).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(lines))


def cut_samples(folder: Path, num_rollouts: int) -> None:
    """Drop what an interrupted run wrote after the checkpoint that is resumed.

    Args:
        folder: Run folder.
        num_rollouts: Rollouts of the checkpoint. Rows of later ones go, and so does a line that was
            cut off. Rows of held-out prompts stay up to and including this number.
    """
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    kept = [line + b"\n" for line in lines if _is_before(line, num_rollouts)]
    path.write_bytes(b"".join(kept))


def show_samples_table(console: Console, rows: Sequence[SampleRow]) -> None:
    """Print rows, the best score first.

    A completion that stopped by itself ends with its stop token, which is shown; others are marked.
    """
    table = Table(title="samples of the policy", show_lines=True)
    for name in ("score", "kl", "tokens"):
        table.add_column(name, justify="right")
    for name in ("why", "prompt", "completion"):
        table.add_column(name, overflow="fold")
    for row in sorted(rows, key=lambda row: row.score, reverse=True):
        ending = "" if row.stopped else " … (did not stop)"
        table.add_row(
            f"{row.score:.3g}",
            "" if row.kl is None else f"{row.kl:.3g}",
            str(row.num_tokens),
            row.why,
            Text(_shown(row.prompt, from_end=True)),
            Text(_shown(row.completion) + ending),
        )
    console.print(table)


def _rows(
    rollout: int,
    episodes: Sequence[Episode],
    prompts: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    scores: torch.Tensor,
    score_parts: Mapping[str, torch.Tensor],
    gold: torch.Tensor | None,
) -> list[SampleRow]:
    return [
        SampleRow(
            rollout=rollout,
            why="best",
            where=str(prompts[episode.prompt].where),
            prompt=prompts[episode.prompt].text,
            completion=_decode(episode.completion_ids, tokenizer),
            num_tokens=len(episode.completion_ids),
            stopped=episode.stopped,
            score=float(scores[index]),
            score_parts={name: float(part[index]) for name, part in score_parts.items()},
            gold=None if gold is None else float(gold[index]),
        )
        for index, episode in enumerate(episodes)
    ]


def _mean_advantage(rollout: Rollout, index: int) -> float | None:
    advantages = rollout.advantages[index][rollout.policy_mask[index]]
    return float(advantages.double().mean()) if len(advantages) else None


def _decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def _is_before(line: bytes, num_rollouts: int) -> bool:
    try:
        row = json.loads(line)
        last = num_rollouts if row["why"].startswith("eval") else num_rollouts - 1
        return bool(row["rollout"] <= last)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _shown(text: str, *, from_end: bool = False) -> str:
    if len(text) <= _MAX_CHARACTERS_SHOWN:
        return readable(text)
    if from_end:
        return readable(f"…{text[-_MAX_CHARACTERS_SHOWN:]}")
    return readable(f"{text[:_MAX_CHARACTERS_SHOWN]}…")
