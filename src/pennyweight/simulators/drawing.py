"""The comparison of policies as a drawing (SVG): a table whose cells are bars."""

from html import escape

from pennyweight.simulators.cachebench import OPTIMUM, OURS, Comparison

_NAMES, _CELL, _BAR, _HEAD, _ROW = 168, 96, 86, 96, 26
_OURS, _OPTIMUM, _GOOD, _BEHIND = "#0b6e4f", "#c9c9c9", "#8fb8de", "#eda56b"
_BEHIND_BY = 0.02
"""Who is behind the best that does not know the future by more has another colour."""


def drawing(comparison: Comparison) -> str:
    """Draw a row for each policy and a column for each trace, on a light ground."""
    width = _NAMES + _CELL * len(comparison.traces) + 8
    height = _HEAD + _ROW * len(comparison.hit_ratios) + 10
    title = (
        "Requests that find their user in memory, in percent: "
        f"{comparison.capacity} of {comparison.users} users"
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}',
        ' font-family="sans-serif" font-size="12" fill="#222222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<rect x="12" y="35" width="10" height="10" fill="{_BEHIND}"/>',
        '<text x="28" y="45">more than two points behind the best online policy</text>',
    ]
    for column, trace in enumerate(comparison.traces):
        for line, words in enumerate(_two_lines(trace)):
            x, y = _NAMES + _CELL * column, 70 + 15 * line
            parts.append(f'<text x="{x}" y="{y}">{escape(words)}</text>')
    best = comparison.best_online()
    for row, (name, ratios) in enumerate(comparison.hit_ratios.items()):
        y = _HEAD + _ROW * row
        weight = ' font-weight="bold"' if name == OURS else ""
        parts.append(f'<text x="12" y="{y + 15}"{weight}>{escape(name)}</text>')
        for column, ratio in enumerate(ratios):
            is_behind = ratio < max(best[column], comparison.hit_ratios[OURS][column]) - _BEHIND_BY
            colour = _colour(name, is_behind=is_behind)
            parts.append(_cell(_NAMES + _CELL * column, y, ratio, colour, weight))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _colour(name: str, *, is_behind: bool) -> str:
    if name == OPTIMUM:
        return _OPTIMUM
    if is_behind:
        return _BEHIND
    return _OURS if name == OURS else _GOOD


def _cell(x: int, y: int, ratio: float, colour: str, weight: str) -> str:
    """A bar on its full length in grey, and the figure on top: white where the bar is dark."""
    is_on_dark = colour == _OURS and ratio > 0.4
    ink = ' fill="#ffffff"' if is_on_dark else ""
    return (
        f'<rect x="{x}" y="{y}" width="{_BAR}" height="20" fill="#f1f1f1"/>'
        f'<rect x="{x}" y="{y}" width="{_BAR * ratio:.1f}" height="20" fill="{colour}"/>'
        f'<text x="{x + (4 if ratio > 0.4 else round(_BAR * ratio) + 4)}" y="{y + 14}"'
        f"{ink}{weight}>{100 * ratio:.1f}</text>"
    )


def _two_lines(words: str) -> tuple[str, str]:
    """Break a name in the middle, between words."""
    parts = words.split()
    cut = min(
        range(1, len(parts) + 1),
        key=lambda n: max(len(" ".join(parts[:n])), len(" ".join(parts[n:]))),
    )
    return " ".join(parts[:cut]), " ".join(parts[cut:])
