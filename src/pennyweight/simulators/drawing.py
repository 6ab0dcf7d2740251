"""Drawings (SVG): the comparison of the cache's policies as a table of bars, and curves over time.

Whatever tells things apart does so without colour as well: by words beside it, dashes or place.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from typing import NamedTuple

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
    parts = [
        *_head(title, width, height, ' fill="#222222"'),
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


def _head(title: str, width: int, height: int, more: str = "") -> list[str]:
    """Begin a drawing of this size."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}',
        f' font-family="sans-serif" font-size="12"{more}>',
        f"<title>{escape(title)}</title>",
    ]


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


# ── curves over time ──────────────────────────────────────────────────────────────

CURVES_MAX = 8
"""More curves than this could not be told apart."""

_WIDE, _LEFT, _RIGHT = 960, 120, 170
_PANEL, _GAP, _LANE, _LABEL = 290, 30, 20, 15
_PLOT = _WIDE - _LEFT - _RIGHT
_DASHES = ("", "9 4", "3 3", "12 3 3 3", "6 2", "1 4", "16 5", "8 3 1 3 1 3")
_LIGHT = (
    "#555555",
    "#0b62a4",
    "#b8480c",
    "#00785a",
    "#8a3f7a",
    "#7a5c00",
    "#3b3bb0",
    "#a0223c",
)
_DARK = (
    "#b8b8b8",
    "#6db3f2",
    "#ff9a5c",
    "#4fd1a5",
    "#e29bd0",
    "#e0c050",
    "#a5a5ff",
    "#ff8fa3",
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS, _MINUTES = 3 * 86_400_000_000, 3 * 60_000_000


class Curve(NamedTuple):
    """A line through (moment, value before, value after); its number says how it looks."""

    number: int
    name: str
    steps: Sequence[tuple[int, float, float]]


class Bound(NamedTuple):
    """A level that is worth a line across."""

    name: str
    value: float


class Panel(NamedTuple):
    """Curves on one scale, which begins at 0."""

    title: str
    curves: Sequence[Curve]
    bounds: Sequence[Bound] = ()


class Lane(NamedTuple):
    """A row of marks below the curves, of what has the same number there."""

    number: int
    name: str
    moments: Sequence[int]


def chart(title: str, panels: Sequence[Panel], lanes: Sequence[Lane] = ()) -> str:
    """Draw panels of curves below one another, and lanes of marks, on a ground that is light or dark."""
    moments = [step[0] for panel in panels for curve in panel.curves for step in curve.steps]
    scale = _Scale(min(moments), max(moments))
    bottom = 44 + (_PANEL + _GAP) * len(panels)
    height = bottom + (_LANE * len(lanes) + 34 if lanes else 0)
    parts = [
        *_head(title, _WIDE, height),
        _style(),
        f'<rect class="ground" width="{_WIDE}" height="{height}"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, 64 + (_PANEL + _GAP) * number, scale)
    if lanes:
        parts.append(f'<text x="12" y="{bottom + 12}" font-weight="bold">trades</text>')
    for row, lane in enumerate(lanes):
        parts += _lane(lane, bottom + 22 + _LANE * row, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Scale:
    """Where a moment is, from left to right, and how moments are written."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._span = last - first

    def x(self, at: int) -> float:
        """Return the place of a moment; a single one is in the middle."""
        if not self._span:
            return _LEFT + _PLOT / 2
        return _LEFT + _PLOT * (at - self._first) / self._span

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield places and their words."""
        form = "%H:%M:%S" if self._span < _MINUTES else "%m-%d %H:%M"
        if self._span >= _DAYS:
            form = "%Y-%m-%d"
        for number in range(6 if self._span else 1):
            at = self._first + self._span * number // 5
            moment = _EPOCH + timedelta(microseconds=at)
            yield self.x(at), moment.strftime(form)


def _style() -> str:
    """Say how all looks, by day and by night."""
    rules = [
        ".ground{fill:#ffffff}text{fill:#222222}.grid{stroke:#dddddd}.axis{stroke:#777777}",
        ".bound{stroke:#222222;stroke-dasharray:2 4}.curve{fill:none;stroke-width:1.6}",
        ".c0{stroke-width:2.6}",
        *(f".c{n}{{stroke:{colour}}}" for n, colour in enumerate(_LIGHT)),
        *(f".c{n}{{stroke-dasharray:{dash}}}" for n, dash in enumerate(_DASHES) if dash),
        ".mark{stroke-dasharray:none;stroke-width:1.6}",
        ".halo{paint-order:stroke;stroke:#ffffff;stroke-width:4}",
    ]
    night = [
        ".ground{fill:#16181c}text{fill:#e6e6e6}.grid{stroke:#33373d}.axis{stroke:#888888}",
        ".bound{stroke:#e6e6e6}.halo{stroke:#16181c}",
        *(f".c{n}{{stroke:{colour}}}" for n, colour in enumerate(_DARK)),
    ]
    dark = "".join(night)
    return f"<style>{''.join(rules)}@media (prefers-color-scheme:dark){{{dark}}}</style>"


def _panel(panel: Panel, top: int, scale: _Scale) -> list[str]:
    """Draw one panel: grid, bounds, curves, and at their right ends what they are."""
    values = [value for curve in panel.curves for step in curve.steps for value in step[1:]]
    step, most = _steps(max([*values, *(bound.value for bound in panel.bounds)]))
    base = top + _PANEL - 34
    height = base - top - 12

    def y(value: float) -> float:
        return base - height * value / most

    end = _LEFT + _PLOT
    parts = [f'<text x="12" y="{top}" font-weight="bold">{escape(panel.title)}</text>']
    for number in range(round(most / step) + 1):
        level = y(step * number)
        kind = "grid" if number else "axis"
        parts += [
            f'<line class="{kind}" x1="{_LEFT}" y1="{level:.1f}" x2="{end}" y2="{level:.1f}"/>',
            f'<text x="{_LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{step * number:g}</text>',
        ]
    for x, words in scale.ticks():
        parts.append(
            f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}"/>'
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{words}</text>'
        )
    for curve in panel.curves:
        path = _path([(scale.x(at), y(v)) for at, *both in curve.steps for v in both])
        parts.append(f'<path class="curve c{curve.number}" d="{path}"/>')
    for bound in panel.bounds:
        level = y(bound.value)
        words = escape(_short(bound.name))
        parts += [
            f'<line class="bound" x1="{_LEFT}" y1="{level:.1f}" x2="{end}" y2="{level:.1f}"/>',
            f'<text class="halo" x="{_LEFT + 4}" y="{level - 4:.1f}" font-size="11">{words}</text>',
        ]
    ends = [(y(curve.steps[-1][2]), curve) for curve in panel.curves]
    for (at, curve), place in zip(
        sorted(ends), _spread(sorted(found[0] for found in ends), base), strict=True
    ):
        parts += [
            f'<line class="axis" x1="{end}" y1="{at:.1f}" x2="{end + 8}" y2="{place:.1f}"/>',
            _sample(curve.number, end + 10, place),
            f'<text x="{end + 42}" y="{place + 4:.1f}">{escape(_short(curve.name))}</text>',
        ]
    return parts


def _lane(lane: Lane, y: int, scale: _Scale) -> list[str]:
    """Draw one row of marks; those that would lie upon one another are one."""
    places = sorted({round(scale.x(at)) for at in lane.moments})
    marks = "".join(f"M{x} {y - 6}V{y + 6}" for x in places)
    count = f"{len(lane.moments)} time{'' if len(lane.moments) == 1 else 's'}"
    parts = [
        f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(_short(lane.name))}</text>',
        f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_LEFT + _PLOT}" y2="{y}"/>',
        f'<text x="{_LEFT + _PLOT + 10}" y="{y + 4}">{count}</text>',
    ]
    if marks:
        parts.append(f'<path class="mark c{lane.number}" d="{marks}"/>')
    return parts


def _sample(number: int, x: int, y: float) -> str:
    return f'<path class="curve c{number}" d="M{x} {y:.1f}h28"/>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Write a line through places. Of very many, the ends and extremes of each column are enough."""
    found = list(places)
    if len(found) > 4 * _PLOT:
        columns: dict[int, list[tuple[float, float]]] = {}
        for place in found:
            columns.setdefault(int(place[0]), []).append(place)
        found = []
        for column in columns.values():
            low, high = (
                pick(range(len(column)), key=lambda i, of=column: of[i][1])  # type: ignore[misc]
                for pick in (min, max)
            )
            found += [column[i] for i in sorted({0, low, high, len(column) - 1})]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in found)


def _spread(places: Sequence[float], lowest: float) -> list[float]:
    """Move labels, from the highest down, so that none lies upon another and none is too low."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + _LABEL) if found else place)
    room = lowest
    for number in range(len(found) - 1, -1, -1):
        found[number] = min(found[number], room)
        room = found[number] - _LABEL
    return found


def _steps(most: float) -> tuple[float, float]:
    """Return a round step for three to six lines of a scale, and where it ends."""
    size = 10.0**-6
    while size * 10 < most:
        size *= 10
    step = next((size * n for n in (0.2, 0.5, 1, 2) if size * n * 6 >= most), size * 2)
    count = max(1, -(-most // step))
    return step, step * count


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
