import math
from typing import Any

import pytest
import torch

from sft_kit.errors import ConfigError
from sft_kit.settings import ScoreSettings
from sft_kit.training.ppo.experience import completion_text
from sft_kit.training.ppo.scores import (
    MODEL,
    Scorer,
    Scores,
    finish_scores,
    load_scorer,
    score_completions,
)

from .tiny import STOP, episode, tiny_collector, tiny_llama, tiny_prompts, tiny_roles

EPISODES = [episode(0, [5], [4, 4, STOP]), episode(1, [6], [7]), episode(2, [8], [9, STOP])]
TEXTS = ["4 4", "7", "9"]
PROMPTS = tiny_prompts(3)


def lengths(completions: list[str], **_: object) -> list[float]:
    return [float(len(text)) for text in completions]


def per_token(completion_ids: list[list[int]], **_: object) -> list[list[float]]:
    return [[token / 10 for token in ids] for ids in completion_ids]


def score(functions: dict[str, Any], weights: dict[str, float], **fields: Any) -> Scores:
    given = {name: fields.pop(name) for name in ("from_role", "model", "gold") if name in fields}
    settings = ScoreSettings(functions=weights, **fields)
    scorer = Scorer(settings, functions, model=given.get("model"), gold=given.get("gold"))
    return score_completions(scorer, PROMPTS, EPISODES, TEXTS, from_role=given.get("from_role"))


def finish(at_end: list[float], stopped: list[bool], **fields: Any) -> list[float]:
    dense = fields.pop("per_token", None)
    scale = fields.pop("scale", (0.0, 1.0))
    settings = ScoreSettings(**({"clip": None} | fields))
    raw = torch.tensor(at_end)
    scores = Scores({}, raw, raw, dense, None)
    final, _ = finish_scores(Scorer(settings, scale=scale), scores, torch.tensor(stopped))
    assert torch.equal(scores.at_end, torch.tensor(at_end))  # what was asked is left as it is
    return final.tolist()


# --- sources -------------------------------------------------------------------------------------


def test_a_score_is_the_weighted_sum_of_its_sources() -> None:
    found = score(
        {"long": lengths, "sevens": lambda completion_ids, **_: [len(x) for x in completion_ids]},
        {"long": 0.5, "sevens": -2.0}, from_role=torch.tensor([1.0, 2.0, 3.0]), model_weight=3.0,
    )  # fmt: skip
    assert found.parts["long"].tolist() == [3.0, 1.0, 1.0]
    assert found.parts["sevens"].tolist() == [3.0, 1.0, 2.0]
    assert found.parts[MODEL].tolist() == [1.0, 2.0, 3.0]
    expected = [0.5 * 3 - 2 * 3 + 3, 0.5 - 2 + 6, 0.5 - 4 + 9]
    assert found.total.tolist() == pytest.approx(expected)
    assert torch.equal(found.at_end, found.total)
    assert found.per_token is None
    assert found.gold is None


def test_what_a_function_gives_per_token_is_given_there_and_not_again_at_the_end() -> None:
    found = score({"each": per_token, "long": lengths}, {"each": 2.0, "long": 1.0})
    assert found.per_token is not None
    expected = [[0.8, 0.8, 0.4], [1.4, 0, 0], [1.8, 0.4, 0]]
    torch.testing.assert_close(found.per_token, torch.tensor(expected))
    assert found.at_end.tolist() == [3.0, 1.0, 1.0]
    assert found.total.tolist() == pytest.approx([5.0, 2.4, 3.2])
    assert found.parts["each"].tolist() == pytest.approx([1.0, 0.7, 1.1])


def test_the_gold_score_is_watched_and_enters_nothing() -> None:
    plain = score({"long": lengths}, {"long": 1.0})
    watched = score(
        {"long": lengths}, {"long": 1.0},
        gold=lambda completions, **_: [100.0 * len(text) for text in completions],
    )  # fmt: skip
    assert torch.equal(watched.total, plain.total)
    assert watched.gold is not None
    assert watched.gold.tolist() == [300.0, 100.0, 100.0]
    assert set(watched.parts) == {"long"}


def test_functions_get_what_belongs_to_each_completion() -> None:
    seen: dict[str, Any] = {}

    def look(prompts: Any, completions: Any, completion_ids: Any, row: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, row=row)
        return [0.0] * len(prompts)

    score({"look": look}, {"look": 1.0})
    assert seen == {
        "prompts": ["prompt 0", "prompt 1", "prompt 2"], "completions": TEXTS,
        "ids": [[4, 4, STOP], [7], [9, STOP]], "row": [0, 1, 2],
    }  # fmt: skip


def test_a_reward_model_of_its_own_is_asked_for_texts() -> None:
    asked: list[Any] = []

    def model(prompts: Any, texts: Any) -> torch.Tensor:
        asked.append((list(prompts), list(texts)))
        return torch.tensor([1.0, -1.0, 2.0])

    found = score({}, {}, model=model, model_weight=0.5)
    assert asked == [(PROMPTS, TEXTS)]
    assert found.total.tolist() == [0.5, -0.5, 1.0]


def test_the_text_of_a_completion_leaves_its_stop_token_out() -> None:
    collector = tiny_collector(tiny_roles("lora shared", tiny_llama()))
    assert [completion_text(collector, one) for one in EPISODES] == TEXTS


def test_a_scorer_names_every_function_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_scorer(ScoreSettings(functions={"nowhere.at_all:score": 1.0}), ())
    with pytest.raises(ConfigError, match=r"reward\.gold"):
        load_scorer(ScoreSettings(gold="nowhere.at_all:score"), ())


# --- rule, scale, clip ---------------------------------------------------------------------------

STOPPED = [True, False, True]


def test_completions_without_stop_token_are_penalised_replaced_or_left_alone() -> None:
    at_end = [1.0, 2.0, -3.0]
    for rule, expected in (
        ("penalise", [1.0, -2.0, -3.0]),
        ("replace", [1.0, 4.0, -3.0]),
        ("mask", at_end),
        ("none", at_end),
    ):
        assert finish(at_end, STOPPED, no_stop=rule, no_stop_value=4.0) == expected


def test_the_reward_models_own_scale_is_taken_off_as_its_weight_scales_it() -> None:
    scores = torch.tensor([1.0, 2.0, -3.0])
    for weight in (1.0, 0.5, -2.0):
        found = finish(
            (weight * scores).tolist(), STOPPED, normalise="reference", scale=(0.5, 2.0),
            model_weight=weight, model="folder",
        )  # fmt: skip
        standard = (scores - 0.5) / 2.0
        assert found == pytest.approx((math.copysign(1, weight) * standard).tolist())


def test_the_running_scale_divides_by_the_spread_of_all_scores_so_far_and_shifts_nothing() -> None:
    scorer = Scorer(ScoreSettings(normalise="running", clip=None))
    everything: list[float] = []
    for batch in ([1.0, 2.0, -3.0], [10.0, 0.0, 4.0], [5.0, 5.0, 5.0]):
        raw = torch.tensor(batch)
        dense = torch.tensor([[1.0, 0.5], [-4.0, 1.0], [0.0, 0.0]])
        everything += [end + sum(row) for end, row in zip(batch, dense.tolist(), strict=True)]
        final, per_token = finish_scores(
            scorer, Scores({}, raw, raw, dense, None), torch.tensor(STOPPED)
        )
        spread = float(torch.tensor(everything, dtype=torch.float64).std(correction=0))
        assert final.tolist() == pytest.approx([value / spread for value in batch])
        assert per_token is not None
        torch.testing.assert_close(per_token, dense / spread)


def test_equal_scores_have_no_scale_to_divide_by() -> None:
    assert finish([0.7] * 3, STOPPED, normalise="running") == pytest.approx([0.7] * 3)
    found = finish([0.7] * 3, STOPPED, normalise="reference", scale=(0.2, 0.0))
    assert found == pytest.approx([0.5] * 3)


def test_the_rule_comes_before_the_scale_and_the_scale_before_the_clip() -> None:
    found = finish(
        [10.0, 10.0, -90.0], STOPPED, no_stop="penalise", no_stop_value=8.0,
        normalise="reference", scale=(0.0, 4.0), model="folder", clip=2.0,
    )  # fmt: skip
    assert found == pytest.approx([2.0, 0.5, -2.0])


def test_scores_are_clipped_on_both_sides_or_not_at_all() -> None:
    assert finish([9.0, -9.0, 1.0], STOPPED, clip=5.0) == [5.0, -5.0, 1.0]
    assert finish([9.0, -9.0, 1.0], STOPPED, clip=None) == [9.0, -9.0, 1.0]


def test_scores_per_token_keep_to_the_limit_token_by_token() -> None:
    dense = torch.tensor([[9.0, -9.0, 0.5], [0.1, -0.2, 0.0]])
    scores = Scores({}, torch.zeros(2), torch.tensor([7.0, 0.3]), dense, None)
    scorer = Scorer(ScoreSettings(clip=2.0))
    final, per_token = finish_scores(scorer, scores, torch.tensor([True, True]))
    assert final.tolist() == pytest.approx([2.0, 0.3])
    assert per_token is not None
    torch.testing.assert_close(per_token, torch.tensor([[2.0, -2.0, 0.5], [0.1, -0.2, 0.0]]))
    assert dense.abs().max() == 9  # what was asked is left as it is


@pytest.mark.parametrize("rule", ["none", "mask", "penalise", "replace"])
def test_replacing_the_score_of_an_unfinished_completion_leaves_none_at_its_tokens(
    rule: Any,
) -> None:
    dense = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    scores = Scores({}, torch.zeros(2), torch.zeros(2), dense, None)
    scorer = Scorer(ScoreSettings(no_stop=rule, no_stop_value=1.5, clip=None))
    final, per_token = finish_scores(scorer, scores, torch.tensor([True, False]))
    end = {"penalise": -1.5, "replace": 1.5}.get(rule, 0.0)
    assert final.tolist() == [0.0, end]
    assert per_token is not None
    assert per_token.tolist() == [[1.0, 2.0], [0.0, 0.0] if rule == "replace" else [3.0, 4.0]]
