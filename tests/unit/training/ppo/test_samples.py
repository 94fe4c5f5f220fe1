"""Which episodes are shown, what their rows say, and what is kept of them on resuming."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Where
from sft_kit.training.ppo.rollout import Rollout
from sft_kit.training.ppo.samples import (
    SAMPLES_FILE,
    SampleRow,
    append_samples,
    cut_samples,
    evaluation_rows,
    sample_rows,
    show_samples_table,
)

MakeRollout = Callable[..., Rollout]
PROMPTS = [
    Prompt((1, 2), (), "What is water?", {}, Where("prompts.jsonl", 4)),
    Prompt((1, 2), (), "二加二等于几？", {}, Where("prompts.jsonl", 9)),
]
SCORES = [0.5, 3.0, -2.0, 0.25, 1.0, -1.0]


@pytest.fixture
def rollout(make_rollout: MakeRollout, tokenizer: PreTrainedTokenizerFast) -> Rollout:
    end = tokenizer.eos_token_id
    texts = ("a dog", "the fox", "ice", "water", "two", "well")
    completions = [[*tokenizer(text)["input_ids"], end] for text in texts]
    made = make_rollout(
        completions,
        scores=torch.tensor(SCORES),
        gold=torch.tensor(SCORES) * 10,
    )
    made.ref_logprobs = made.logprobs.clone()
    made.ref_logprobs[3] -= 0.5
    made.ref_logprobs[1] -= 100
    made.policy_mask[2] = False
    return made


def test_best_worst_and_farthest_episodes_are_picked_each_once(
    rollout: Rollout, tokenizer: PreTrainedTokenizerFast
):
    rows = sample_rows(rollout, PROMPTS, tokenizer, 1)
    assert [(row.why, row.score) for row in rows] == [
        ("best", 3.0),
        ("worst", -2.0),
        ("largest kl", 0.25),
    ]
    assert len(sample_rows(rollout, PROMPTS, tokenizer, 4)) == 6
    rollout.ref_logprobs = rollout.logprobs + 1e-6
    whys = [one.why for one in sample_rows(rollout, PROMPTS, tokenizer, 1)]
    assert whys == ["best", "worst"], "no episode is far where all are where they began"


def test_a_row_says_all_of_its_episode(rollout: Rollout, tokenizer: PreTrainedTokenizerFast):
    best, worst, farthest = sample_rows(rollout, PROMPTS, tokenizer, 1)
    length = len(rollout.episodes[1].completion_ids)
    assert asdict(best) == {
        "rollout": 3,
        "why": "best",
        "where": "prompts.jsonl:9",
        "prompt": "二加二等于几？",
        "completion": "the fox<|endoftext|>",
        "num_tokens": length,
        "stopped": rollout.episodes[1].stopped,
        "score": 3.0,
        "score_parts": {
            "model": pytest.approx(rollout.score_parts["model"][1].item()),
            "words.py:happy": pytest.approx(rollout.score_parts["words.py:happy"][1].item()),
        },
        "gold": 30.0,
        "final_score": pytest.approx(rollout.final_scores[1].item()),
        "kl": pytest.approx(100.0 * length, rel=1e-5),
        "value": pytest.approx(rollout.values[1, 0].item()),
        "advantage": pytest.approx(rollout.advantages[1, :length].mean().item(), rel=1e-5),
    }
    assert worst.advantage is None, "no token of it enters the policy loss"
    assert farthest.kl == pytest.approx(0.5 * farthest.num_tokens, rel=1e-5)


def test_answers_to_held_out_prompts_have_rows_of_the_same_kind(
    rollout: Rollout, tokenizer: PreTrainedTokenizerFast
):
    rows = evaluation_rows(
        20,
        "eval greedy",
        rollout.episodes[:2],
        PROMPTS,
        tokenizer,
        torch.tensor([1.0, 2.0]),
        score_parts={"model": torch.tensor([3.0, 4.0])},
    )
    assert [(row.rollout, row.why, row.prompt, row.completion) for row in rows] == [
        (20, "eval greedy", "What is water?", "a dog<|endoftext|>"),
        (20, "eval greedy", "二加二等于几？", "the fox<|endoftext|>"),
    ]
    assert [row.score_parts for row in rows] == [{"model": 3.0}, {"model": 4.0}]
    assert [(row.gold, row.kl, row.final_score) for row in rows] == [(None, None, None)] * 2


def row(rollout: int, score: float = 0.0, **fields: object) -> SampleRow:
    values = {"why": "best", "where": "p:1", "prompt": "x", "completion": "y", "num_tokens": 1}
    given = values | {"stopped": True, "score_parts": {}} | fields
    return SampleRow(rollout=rollout, score=score, **given)


def lines(folder: Path) -> list[dict[str, object]]:
    text = (folder / SAMPLES_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_are_appended_as_json_lines_that_keep_every_script(tmp_path: Path):
    first, second = row(0, prompt="二加二\n", completion="四\u2028<|end|>"), row(1, kl=0.5)
    append_samples(tmp_path, [first])
    append_samples(tmp_path, [second, row(1, prompt="half \ud83d")])
    raw = (tmp_path / SAMPLES_FILE).read_bytes()
    assert "二加二" in raw.decode("utf-8")
    found = [json.loads(line) for line in raw.decode("utf-8").split("\n")[:-1]]
    assert found[:2] == [asdict(first), asdict(second)]
    assert found[2]["prompt"] == "half \ud83d"


def test_resuming_drops_later_rows_and_a_line_that_was_cut_off(tmp_path: Path):
    rows = [row(0), row(1), row(2, why="eval drawn"), row(2), row(3, why="eval greedy"), row(3)]
    append_samples(tmp_path, rows)
    with (tmp_path / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write('{"rollout": 0, "why": "be')
    cut_samples(tmp_path, 2)
    assert [(one["rollout"], one["why"]) for one in lines(tmp_path)] == [
        (0, "best"),
        (1, "best"),
        (2, "eval drawn"),
    ]
    append_samples(tmp_path, [row(2)])
    assert len(lines(tmp_path)) == 4
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLES_FILE]


def test_there_may_be_nothing_to_drop(tmp_path: Path):
    cut_samples(tmp_path, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_the_best_score_first_and_no_escape_sequence():
    console = Console(width=160, file=io.StringIO(), color_system=None)
    low = row(0, -1.0, completion="[red]low\x1b[2J", stopped=False)
    long = row(0, 2.0, kl=12.5, completion="high<|end|>", prompt="a" * 500 + "END")
    show_samples_table(console, [low, long])
    text = console.file.getvalue()
    assert text.index("high<|end|>") < text.index("[red]low")
    assert "\x1b" not in text
    assert "U+001B" in text
    assert text.count("… (did not stop)") == 1
    assert "■" not in text, "the stop token stands there"
    assert "12.5" in text
    assert "END" in text
    assert 300 < text.count("a") < 450, "a long prompt is cut at its beginning"
