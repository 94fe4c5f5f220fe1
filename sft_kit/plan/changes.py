"""Changes that make a run fit into a memory, the cheapest first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_kit.errors import SftKitError
from sft_kit.plan.costs import Estimate
from sft_kit.plan.forecast import Change, Forecast, forecast
from sft_kit.plan.measurement import Measurement

Sections = Mapping[str, Mapping[str, object] | None]
Measure = Callable[[tuple[str, ...]], Measurement]

_MICRO_BATCH = "train.per_device_train_batch_size"
_EVAL_BATCH = "train.per_device_eval_batch_size"
_ACCUMULATION = "train.gradient_accumulation_steps"
_CHECKPOINTING = "train.activation_checkpointing=true"
_NF4 = "model.quantization=nf4"
_MAX_TRIED = 3
_SAME = "same batches, same result"
_ROUNDED = "the frozen weights are rounded to 4 bits"
_SHARES = (0.75, 0.5, 0.375, 0.25)
"""Of the longest row, to which rows may be cut."""


@dataclass(frozen=True, slots=True)
class Option:
    """A change of the settings, and what the run takes with it.

    Attributes:
        words: Overrides, as on the command line.
        price: What it costs beside time.
        forecast: Of the run.
        rank: The lower the cheaper; among equals the faster one comes first.
        is_measured: These very settings were tried.
    """

    words: tuple[str, ...]
    price: str
    forecast: Forecast
    rank: int
    is_measured: bool


@dataclass(frozen=True, slots=True)
class _Variant:
    words: tuple[str, ...]
    price: str
    rank: int
    found: Measurement


def find_options(
    base: Measurement, sections: Sections, limit: float, measure: Measure
) -> list[Option]:
    """Look for changes with which a run fits.

    Smaller micro-batches and shorter rows are worked out from what was measured; checkpointing and
    quantization are tried, and so is the change that comes out cheapest.

    Args:
        base: The run as it is.
        sections: Its settings.
        limit: Bytes that the peak, its error included, must stay within.
        measure: Measures the recipe with overrides.

    Returns:
        The cheapest first; empty where nothing helps.
    """
    variants = [_Variant((), _SAME, 0, base)]
    train, model = sections.get("train") or {}, sections.get("model") or {}
    can_checkpoint = not train.get("activation_checkpointing")
    can_quantize = model.get("quantization") == "none" and sections.get("adapter") is not None
    if can_checkpoint:
        variants += _tried((_CHECKPOINTING,), _SAME, 1, base, measure)
    if can_quantize:
        variants += _tried((_NF4,), _ROUNDED, 2, base, measure)
    options = [option for variant in variants for option in _with_parts(variant, limit, measure)]
    if not options and can_checkpoint and can_quantize:
        variants += _tried((_NF4, _CHECKPOINTING), _ROUNDED, 3, base, measure)
        options = list(_with_parts(variants[-1], limit, measure))
    if not options:
        unsure = [option for variant in variants for option in _with_single_rows(variant)]
        tried = _confirmed(unsure, base, limit, measure)
        options = [option for option in tried if option.is_measured]
    if not options and "max_length" in (sections.get("data") or {}):
        options = [one for variant in variants for one in _with_shorter_rows(variant, limit)]
    return _confirmed(options, base, limit, measure)


def smallest_memory(base: Measurement, measure: Measure) -> Estimate:
    """Bytes of a run with one row in a micro-batch, below which smaller ones can't bring it."""
    if not base.rollouts:
        for tried in _tried(_accumulated(base, 1), _SAME, 0, base, measure):
            return forecast(tried.found).memory
    return forecast(base).memory


def _tried(
    words: tuple[str, ...], price: str, rank: int, base: Measurement, measure: Measure
) -> Iterator[_Variant]:
    """Measure a variant; nothing where the recipe refuses it."""
    try:
        found = measure(words)
    except SftKitError:
        return
    if found.micro_steps or found.rollouts:
        yield _Variant(words, price, rank, replace(found, end_seconds=base.end_seconds))


def _with_parts(variant: _Variant, limit: float, measure: Measure) -> Iterator[Option]:
    """The largest micro-batch with which a variant fits."""
    if variant.words:
        whole = forecast(variant.found)
        if whole.memory.upper <= limit:
            yield Option(variant.words, variant.price, whole, variant.rank, is_measured=True)
            return
    if variant.found.rollouts:
        yield from _smaller_rollouts(variant, limit, measure)
        return
    size = _micro_batch(variant.found)
    for smaller in range(size - 1, 0, -1):
        if size % smaller:
            continue
        change = Change(num_parts=size // smaller)
        expected = forecast(variant.found, change)
        if expected.memory.upper <= limit:
            words = (*variant.words, *_accumulated(variant.found, smaller))
            yield Option(words, variant.price, expected, variant.rank, is_measured=False)
            return


def _with_single_rows(variant: _Variant) -> Iterator[Option]:
    """One row in a micro-batch, to be tried: what is worked out may be far too much."""
    if variant.found.rollouts or _micro_batch(variant.found) == 1:
        return
    expected = forecast(variant.found, Change(num_parts=_micro_batch(variant.found)))
    words = (*variant.words, *_accumulated(variant.found, 1))
    yield Option(words, variant.price, expected, variant.rank, is_measured=False)


def _smaller_rollouts(variant: _Variant, limit: float, measure: Measure) -> Iterator[Option]:
    """Fewer episodes in a forward; what a rollout learns stays the same."""
    size = _micro_batch(variant.found)
    for smaller in dict.fromkeys((max(1, size // 4), 1)):
        words = (*variant.words, f"{_MICRO_BATCH}={smaller}")
        for tried in _tried(words, variant.price, variant.rank, variant.found, measure):
            expected = forecast(tried.found)
            if smaller < size and expected.memory.upper <= limit:
                yield Option(words, variant.price, expected, variant.rank, is_measured=True)
                return


def _with_shorter_rows(variant: _Variant, limit: float) -> Iterator[Option]:
    """The longest rows with which a variant fits, one row in a micro-batch."""
    found = variant.found
    if found.rollouts:
        return
    lengths = [length for shape in found.shapes for length in shape.lengths]
    size = _micro_batch(found)
    for share in _SHARES:
        max_length = int(max(lengths) * share)
        expected = forecast(found, Change(size, max_length))
        if expected.memory.upper > limit:
            continue
        num_long = sum(length > max_length for length in lengths)
        words = (*variant.words, *_accumulated(found, 1), f"data.max_length={max_length}")
        price = f"{num_long / len(lengths):.1%} of the rows are cut or left out"
        yield Option(words, price, expected, 4 + variant.rank, is_measured=False)
        return


def _accumulated(found: Measurement, smaller: int) -> tuple[str, ...]:
    """Overrides for a smaller micro-batch and the same global batch."""
    size, accumulation = _micro_batch(found), int(found.run["accumulation"])
    if smaller == size:
        return ()
    words = [f"{_MICRO_BATCH}={smaller}", f"{_ACCUMULATION}={accumulation * size // smaller}"]
    if found.run["eval_batch"] > smaller:  # evaluations must not take what the steps save
        words.append(f"{_EVAL_BATCH}={smaller}")
    return tuple(words)


def _micro_batch(found: Measurement) -> int:
    return int(found.run["micro_batch"])


def _confirmed(
    options: Sequence[Option], base: Measurement, limit: float, measure: Measure
) -> list[Option]:
    """Measure the cheapest options until one of them fits as it was worked out."""
    kept = sorted(options, key=lambda one: (one.rank, one.forecast.seconds.value))
    for option in kept[:_MAX_TRIED]:
        if option.is_measured:
            break
        found = next(_tried(option.words, option.price, option.rank, base, measure), None)
        place = kept.index(option)
        expected = None if found is None else forecast(found.found)
        if expected is not None and expected.memory.upper <= limit:
            kept[place] = replace(option, forecast=expected, is_measured=True)
            break
        kept.pop(place)
    return kept
