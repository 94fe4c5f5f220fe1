"""Confusion matrices as PNG."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from sft_kit.data.token_text import readable
from sft_kit.evaluation.classification import ClassificationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry, FontProperties

_MAX_NAME_CHARACTERS = 24
_MAX_CLASSES_WITH_NUMBERS = 20
_MAX_PANELS = 24
_PANELS_PER_ROW = 6
_DPI = 120
_FONT_WORDS = ("CJK SC", "CJK", "Han Sans", "WenQuanYi", "YaHei", "PingFang", "SimHei", "Unicode")
"""Parts of the names of fonts with many characters; earlier ones first."""


def confusion_picture(report: ClassificationReport) -> bytes:
    """Draw the counts, coloured by the share of each true class; one small matrix a label.

    Class names are written in an installed font that has all of their characters; without one,
    class ids stand in their place. With several labels a text the 24 commonest labels are drawn.

    Returns:
        PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, font = _drawable_names(report.label_names)
    figure = Figure(dpi=_DPI, layout="constrained" if report.multi_label else None)
    FigureCanvasAgg(figure)
    if report.multi_label:
        _draw_labels(figure, report, names, font)
    else:
        side = 3.2 + min(0.55 * len(names), 16.0)
        figure.set_size_inches(side + 1.0, side)
        _draw_matrix(figure, figure.subplots(), np.asarray(report.confusion), names, font)
    picture = BytesIO()
    # Long names stand outside of a lone matrix: the picture grows to hold them.
    figure.savefig(picture, format="png", bbox_inches=None if report.multi_label else "tight")
    return picture.getvalue()


def _draw_matrix(
    figure: "Figure",
    axes: "Axes",
    counts: np.ndarray,
    names: Sequence[str],
    font: "FontProperties | None",
) -> None:
    shares = _row_shares(counts)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    _write_names(axes, names, font)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the true class's rows")
    if len(names) <= _MAX_CLASSES_WITH_NUMBERS:
        _write_counts(axes, counts, shares)


def _draw_labels(
    figure: "Figure",
    report: ClassificationReport,
    names: Sequence[str],
    font: "FontProperties | None",
) -> None:
    support = [one.support for one in report.per_class]
    shown = sorted(range(len(names)), key=lambda index: (-support[index], index))[:_MAX_PANELS]
    columns = min(_PANELS_PER_ROW, len(shown))
    rows = -(-len(shown) // columns)
    figure.set_size_inches(2.4 * columns + 0.8, 2.5 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, index in zip(grid, sorted(shown), strict=False):
        counts = np.asarray(report.label_confusions[index])
        shares = _row_shares(counts)
        axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        _write_names(axes, ("no", "yes"), None)
        axes.set_title(names[index], fontproperties=font, fontsize=9, parse_math=False)
        _write_counts(axes, counts, shares)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true", fontsize=9)


def _row_shares(counts: np.ndarray) -> np.ndarray:
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(counts / np.maximum(totals, 1))


def _write_names(axes: "Axes", names: Sequence[str], font: "FontProperties | None") -> None:
    size = 9 if len(names) <= _MAX_CLASSES_WITH_NUMBERS else 6
    axes.set_xticks(range(len(names)))
    axes.set_yticks(range(len(names)))
    columns = axes.set_xticklabels(names, parse_math=False)
    for label in [*columns, *axes.set_yticklabels(names, parse_math=False)]:
        label.set_fontproperties(font)
        label.set_fontsize(size)
    if max(map(len, names)) > 4:
        for label in columns:
            label.set(rotation=45, ha="right", rotation_mode="anchor")


def _write_counts(axes: "Axes", counts: np.ndarray, shares: np.ndarray) -> None:
    size = 9 if len(counts) <= 8 else 6
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count:,}\n{share:.0%}" if count else "0"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _drawable_names(names: Sequence[str]) -> tuple[list[str], "FontProperties | None"]:
    """Shorten names to fit a picture, with a font for them; class ids where no font will do."""
    one_line = [readable(name).replace("\n", "") for name in names]
    shown = [
        name if len(name) <= _MAX_NAME_CHARACTERS else f"{name[: _MAX_NAME_CHARACTERS - 1]}…"
        for name in one_line
    ]
    found, font = _font_with({ord(character) for name in shown for character in name})
    return (shown, font) if found else ([str(index) for index in range(len(names))], None)


def _font_with(characters: set[int]) -> tuple[bool, "FontProperties | None"]:
    """Find an installed font with all of these characters; None is matplotlib's own."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    if _has(findfont(FontProperties()), characters):
        return True, None
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal"]
    for entry in sorted(upright, key=_unfitness):
        if _has(entry.fname, characters):
            return True, FontProperties(fname=entry.fname)
    return False, None


def _unfitness(entry: "FontEntry") -> tuple[int, int, str]:
    """Order fonts: known for many characters first, then by how far from regular weight."""
    from matplotlib.font_manager import weight_dict

    words = (rank for rank, word in enumerate(_FONT_WORDS) if word in entry.name)
    weight = weight_dict.get(str(entry.weight), entry.weight)
    distance = abs(int(weight) - weight_dict["regular"])
    return next(words, len(_FONT_WORDS)), distance, entry.fname


def _has(path: str, characters: set[int]) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        return characters <= FT2Font(path).get_charmap().keys()
    except (OSError, RuntimeError):  # a font that was uninstalled, or that FreeType can't read
        return False
