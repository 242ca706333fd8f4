"""An SVG of three plots: tokens per second and TTFT by callers, and tokens per second of one caller by bits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from .report_figures import Result, bandwidth, bits, figures

# One colour for each family, and one dash for each of its precisions.
COLOURS = {
    "here": "#1f5f99", "OpenVINO": "#d08c3f", "transformers": "#8a8a8a", "vLLM": "#5a9a4a", "llama.cpp": "#a0559a",
}  # fmt: skip
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP = 300, 260, 52, 56, 60
LEGEND_LINE, FOOT = 18, 58
LEGEND_COLUMNS = 3
NICE_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Line:
    """An engine's points, in the units of the axes."""

    engine: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One plot. `limit` is a curve drawn thin and red, such as what the bandwidth allows."""

    title: str
    x_name: str
    ticks: list[float]
    lines: list[Line]
    limit: list[tuple[float, float]]


def plot(result: Result) -> str:
    """Returns the SVG."""
    measured = figures(result)
    callers = sorted({number for by_callers in measured.values() for number in by_callers})
    ticks = [float(number) for number in callers]
    rates = [Line(name, [(n, f.tokens_per_second) for n, f in by.items()]) for name, by in measured.items()]
    waits = [Line(name, [(n, f.ttft) for n, f in by.items()]) for name, by in measured.items()]
    speeds = [Line(name, [(bits(result, name), 1 / by[min(by)].tpot)]) for name, by in measured.items()]
    panels = [
        Panel("Tokens per second", "callers", ticks, rates, []),
        Panel("Mean time to first token, s", "callers", ticks, waits, []),
        Panel("Tokens per second, one caller", "bits of a weight", [4, 8, 16, 32], speeds, _bandwidth_curve(result)),
    ]
    styles = _styles(result, list(measured))
    width = len(panels) * (PANEL_WIDTH + GAP) + LEFT - GAP + 16
    legend_top = TOP + PANEL_HEIGHT + FOOT
    height = legend_top + LEGEND_LINE * (math.ceil(len(styles) / LEGEND_COLUMNS) + 1)
    parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for index, panel in enumerate(panels):
        parts += _panel(panel, LEFT + index * (PANEL_WIDTH + GAP), styles)
    parts += _legend(styles, width / LEGEND_COLUMNS, legend_top)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">\n{body}\n</svg>\n'
    )


def _bandwidth_curve(result: Result) -> list[tuple[float, float]]:
    """Returns the tokens per second that the bandwidth allows, from 4 to 32 bits."""
    parameters = result["matrix_parameters"]
    return [(step / 2, bandwidth(result) / (parameters * step / 16)) for step in range(8, 65)]


def _styles(result: Result, engines: list[str]) -> dict[str, tuple[str, str]]:
    """Returns the colour and the dash of each engine."""
    counts: dict[str, int] = {}
    styles = {}
    for engine in engines:
        family = result["engines"][engine]["family"]
        styles[engine] = (COLOURS[family], DASHES[counts.get(family, 0) % len(DASHES)])
        counts[family] = counts.get(family, 0) + 1
    return styles


def _panel(panel: Panel, left: float, styles: dict[str, tuple[str, str]]) -> Iterator[str]:
    values = [y for line in panel.lines for _, y in line.points]
    step = _nice_step(max(values, default=1.0))
    top_value = step * math.ceil(max(values, default=1.0) / step)
    bottom = TOP + PANEL_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        low, high = math.log2(panel.ticks[0]), math.log2(panel.ticks[-1])
        share = (math.log2(x) - low) / (high - low) if high > low else 0.5
        return left + 12 + share * (PANEL_WIDTH - 24), bottom - y / top_value * PANEL_HEIGHT

    yield _text(left, TOP - 20, panel.title, "start", 'font-size="14"')
    for index in range(round(top_value / step) + 1):
        y = place(panel.ticks[0], index * step)[1]
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + PANEL_WIDTH}" y2="{y:.1f}" stroke="#e4e4e4"/>'
        yield _text(left - 6, y + 4, f"{index * step:g}", "end")
    for tick in panel.ticks:
        yield _text(place(tick, 0)[0], bottom + 18, f"{tick:g}")
    yield _text(left + PANEL_WIDTH / 2, bottom + 34, panel.x_name)
    inside = [place(x, y) for x, y in panel.limit if y <= top_value]
    yield _polyline(inside, "#b03030", "", 1)
    for line in panel.lines:
        colour, dash = styles[line.engine]
        points = [place(x, y) for x, y in line.points]
        yield _polyline(points, colour, dash, 2)
        for x, y in points:
            name = f"<title>{escape(line.engine)}</title>"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{name}</circle>'


def _nice_step(largest: float) -> float:
    """Returns a round step that divides an axis up to `largest` into about five parts."""
    magnitude = 10 ** math.floor(math.log10(largest / 5)) if largest > 0 else 1.0
    return float(next(step * magnitude for step in NICE_STEPS if step * magnitude * 5 >= largest))


def _legend(styles: dict[str, tuple[str, str]], column: float, top: float) -> Iterator[str]:
    entries = [*styles.items(), ("what the bandwidth allows", ("#b03030", ""))]
    for index, (name, (colour, dash)) in enumerate(entries):
        x, y = 16 + index % LEGEND_COLUMNS * column, top + index // LEGEND_COLUMNS * LEGEND_LINE
        yield _polyline([(x, y), (x + 30, y)], colour, dash, 1 if colour == "#b03030" else 2)
        yield _text(x + 38, y + 4, name, "start")


def _polyline(points: list[tuple[float, float]], colour: str, dash: str, width: int) -> str:
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'
