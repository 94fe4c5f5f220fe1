"""Rules about pretraining: a new model or a checkpoint, texts as a stream, what is hidden."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from sft_kit.config.merging import COMMAND_LINE
from sft_kit.config.view import Rule, View
from sft_kit.errors import Problem

DEFAULT_FRACTIONS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"mlm": (0.8, 0.1), "wwm": (0.8, 0.1), "spell": (0.1, 0.1)}
)
"""Shares of mask tokens and of random tokens that null stands for, by objective."""


def _one_model(view: View) -> Iterator[Problem]:
    """A checkpoint brings its tokenizer and its architecture along."""
    if view.get("model.checkpoint") is not None:
        for key in ("model.tokenizer", "model.architecture"):
            if view.get(key) is not None:
                found = f"found {view.get(key)} together with model.checkpoint, which has its own"
                todo = f"add {key}=null, or model.checkpoint=null for a new model"
                yield view.problem(key, found, todo)
    elif view.get("model.tokenizer") is None:
        found = "found neither model.checkpoint nor model.tokenizer, accepts one of them"
        todo = "name a checkpoint to go on with, or the tokenizer of a new model"
        key = "model.tokenizer" if view.is_given("model.tokenizer") else "model.checkpoint"
        yield view.problem(key, found, todo)


def _of_a_checkpoint(key: str, without: str | None, todo: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        value = view.get(key)
        if view.get("model.checkpoint") is None and value != without:
            found = f"found {value} without model.checkpoint, which it belongs to"
            yield view.problem(key, found, todo)

    return rule


def _streaming_has_no_end(view: View) -> Iterator[Problem]:
    if view.get("data.streaming") is True and view.number("train.max_steps") <= 0:
        found = f"found {view.get('train.max_steps')} with data.streaming, whose rows never end"
        yield view.problem("train.max_steps", found, "set the number of steps to train")


def _nothing_held_out_of_a_stream(view: View) -> Iterator[Problem]:
    if view.get("data.streaming") is not True or view.get("data.eval_path") is not None:
        return
    key, strategy = "data.eval_fraction", view.get("train.eval_strategy")
    if view.is_given(key) and view.number(key) > 0:
        found = f"found {view.get(key)} with data.streaming: nothing is held out of a stream"
        todo = "set it to 0, and data.eval_path to a file of held-out texts"
        yield view.problem(key, found, todo)
    elif strategy != "no" and view.number(key) > 0:
        found = f"found {strategy} with data.streaming and without data.eval_path"
        todo = "set data.eval_path to a file of held-out texts, or train.eval_strategy: no"
        yield view.problem("train.eval_strategy", f"{found}: nothing is held out", todo)


def _hold_out_has_effect(view: View) -> Iterator[Problem]:
    key = "data.hold_out"
    if not view.is_given(key):
        return
    for other, is_set in (
        ("data.eval_path", view.get("data.eval_path") is not None),
        ("data.streaming", view.get("data.streaming") is True),
    ):
        if is_set:
            found = f"found {view.get(key)} together with {other}, which leaves nothing to hold out"
            yield view.problem(key, found, "remove it")
            return


def _buffer_of_a_stream(view: View) -> Iterator[Problem]:
    key = "data.shuffle_buffer"
    if view.is_given(key) and view.get("data.streaming") is not True:
        found = f"found {view.get(key)} without data.streaming: all rows are shuffled"
        yield view.problem(key, found, "remove it, or set data.streaming to true")


def _fractions(view: View) -> Iterator[Problem]:
    by_mask, at_random = DEFAULT_FRACTIONS[str(view.get("pretrain.objective"))]
    keys = ("pretrain.mask_token_fraction", "pretrain.random_token_fraction")
    if view.get(keys[0]) is not None:
        by_mask = view.number(keys[0])
    if view.get(keys[1]) is not None:
        at_random = view.number(keys[1])
    if by_mask + at_random > 1:
        key = next(key for key in keys if view.get(key) is not None)
        found = f"found {by_mask:g} of mask tokens and {at_random:g} of random tokens"
        message = f"{found}, accepts 1 in all at most"
        yield view.problem(key, message, f"lower {' or '.join(keys)}")


def _confusions(view: View) -> Iterator[Problem]:
    key = "pretrain.confusions"
    name = view.get(key)
    if name is None:
        return
    if view.get("pretrain.objective") != "spell":
        found = f"found {name} with pretrain.objective={view.get('pretrain.objective')}"
        yield view.problem(key, f"{found}: only spell confuses characters", "remove it")
    elif not Path(str(name)).expanduser().is_file():
        found = f"found {name!r}, and there is no such file"
        yield view.problem(key, found, f"paths are looked up from {Path.cwd()}")


def _document_mask(view: View) -> Iterator[Problem]:
    if view.get("pretrain.document_mask") is True and view.get("data.pack") is False:
        found = "found true with data.pack=false, where each example has one document"
        yield view.problem("pretrain.document_mask", found, "remove one of them")


def _columns_stay(view: View) -> Iterator[Problem]:
    if view.get("train.remove_unused_columns") is not False:
        found = f"found {str(view.get('train.remove_unused_columns')).lower()}"
        reason = "rows carry more than a model's own inputs, such as the place of a prefix"
        yield view.problem("train.remove_unused_columns", f"{found}: {reason}", "set it to false")


def _workers_end(view: View) -> Iterator[Problem]:
    if view.get("train.dataloader_persistent_workers") is True:
        found = "found true: such workers would hide the same tokens in every epoch"
        yield view.problem("train.dataloader_persistent_workers", found, "set it to false")


def _nothing_hidden(view: View) -> Iterator[Problem]:
    """`causal` hides nothing; in a file the share may stand for the other objectives."""
    key = "pretrain.mask_fraction"
    if view.get("pretrain.objective") == "causal" and view.origins.get(key) == COMMAND_LINE:
        found = f"found {view.get(key)} with pretrain.objective=causal, which hides nothing"
        yield view.problem(key, found, "remove it, or choose another pretrain.objective")


def _each_process_reads(view: View) -> Iterator[Problem]:
    if view.get("data.streaming") is not True:
        return
    config = view.get("train.accelerator_config")
    if not isinstance(config, dict) or config.get("dispatch_batches") is not False:
        found = "found no dispatch_batches: false with data.streaming, accepts it only"
        reason = "else accelerate joins the batches of all processes, whose lengths differ"
        todo = "write accelerator_config: {dispatch_batches: false}"
        yield view.problem("train.accelerator_config", f"{found}: {reason}", todo)


def _of_infilling(key: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        objective = view.get("pretrain.objective")
        if view.is_given(key) and objective != "infill":
            found = (
                f"found {view.get(key)} with pretrain.objective={objective}, which has no blanks"
            )
            yield view.problem(key, found, "remove it, or set pretrain.objective to infill")

    return rule


TEXT_RULES: Mapping[tuple[str, ...], Rule] = MappingProxyType(
    {
        ("model.checkpoint", "model.tokenizer", "model.architecture"): _one_model,
        ("model.checkpoint", "model.tokenizer", "model.revision"): _of_a_checkpoint(
            "model.revision", None, "remove it: a new model has no revision"
        ),
        ("model.checkpoint", "model.tokenizer", "model.quantization"): _of_a_checkpoint(
            "model.quantization", "none", "set it to none: a new model is trained as it is"
        ),
        ("data.streaming", "train.max_steps"): _streaming_has_no_end,
        (
            "data.streaming",
            "data.eval_path",
            "data.eval_fraction",
            "train.eval_strategy",
        ): _nothing_held_out_of_a_stream,
        ("data.hold_out", "data.eval_path", "data.streaming"): _hold_out_has_effect,
        ("data.shuffle_buffer", "data.streaming"): _buffer_of_a_stream,
        (
            "pretrain.objective",
            "pretrain.mask_token_fraction",
            "pretrain.random_token_fraction",
        ): _fractions,
        ("pretrain.objective", "pretrain.confusions"): _confusions,
        ("pretrain.document_mask", "data.pack"): _document_mask,
        ("data.unit", "train.remove_unused_columns"): _columns_stay,
        ("data.unit", "train.dataloader_persistent_workers"): _workers_end,
        ("pretrain.objective", "pretrain.mask_fraction"): _nothing_hidden,
        ("data.streaming", "train.accelerator_config"): _each_process_reads,
        ("pretrain.objective", "pretrain.mean_span_length"): _of_infilling(
            "pretrain.mean_span_length"
        ),
        ("pretrain.objective", "pretrain.max_span_length"): _of_infilling(
            "pretrain.max_span_length"
        ),
    }
)
"""Rule by the keys it looks at, as in `sft_kit.config.rules`."""
