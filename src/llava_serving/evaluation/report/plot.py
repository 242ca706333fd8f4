"""The plot of the report: the relative score of each category with its interval, as inline SVG."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, ROW_HEIGHT, LABEL_WIDTH, RIGHT, TOP, BOTTOM = 640, 44, 110, 70, 12, 40
STEPS = (5, 10, 20, 25, 50, 100, 200, 500)


def score_plot(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns an SVG element, or "" if no category has a score. Colours come from the page's classes."""
    rows = [(name, row) for name, row in table.items() if row["relative_score"] is not None]
    if not rows:
        return ""
    top = max(100.0, *(max(row["relative_score"], *(row["relative_score_interval"] or ())) for _, row in rows))
    step = next((step for step in STEPS if top / step <= 6), top)
    limit = step * math.ceil(top / step)
    height = TOP + ROW_HEIGHT * len(rows) + BOTTOM
    marks = [_axis(limit, step, height), *(_row(name, row, index, limit) for index, (name, row) in enumerate(rows))]
    described = "; ".join(f"{name} {row['relative_score']:.1f}" for name, row in rows)
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Relative score: {escape(described)}">{"".join(marks)}</svg>'
    )


def _x(value: float, limit: float) -> float:
    return LABEL_WIDTH + (WIDTH - LABEL_WIDTH - RIGHT) * value / limit


def _axis(limit: float, step: float, height: int) -> str:
    bottom = height - BOTTOM
    parts = []
    for number in range(round(limit / step) + 1):
        x, name = _x(number * step, limit), "equal" if number * step == 100 else "grid"
        parts.append(f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{number * step:g}</text>')
    middle = (LABEL_WIDTH + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{bottom + 34}">% of the reference\'s score, 95 % interval</text>')
    return "".join(parts)


def _row(name: str, row: Mapping[str, Any], index: int, limit: float) -> str:
    y, score = TOP + ROW_HEIGHT * (index + 0.5), row["relative_score"]
    x, interval = _x(score, limit), row["relative_score_interval"]
    parts = [f'<text class="name" x="{LABEL_WIDTH - 14}" y="{y + 5}">{escape(_short(name))}</text>']
    if interval:
        low, high = (_x(value, limit) for value in interval)
        parts.append(f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
    parts.append(f'<circle class="score" cx="{x:.1f}" cy="{y}" r="6"/>')
    parts.append(f'<text class="value" x="{WIDTH - RIGHT + 16}" y="{y + 5}">{score:.1f}</text>')
    return "".join(parts)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"
