"""An SVG plot of decode steps: a group of bars per number of sequences, and a line at the limit of the bandwidth."""

from collections.abc import Iterator
from html import escape
from typing import Any

from .report_tables import PATHS, decimal

COLOURS = {"before": "#9a9a9a", "torch": "#d08c3f", "eager": "#6aa0c8", "graph": "#1f5f99"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 56, 16, 64, 48
BAR, GAP = 34, 6


def decode_plot(result: dict[str, Any], before: dict[int, float]) -> str:
    """Returns the SVG. `before` is milliseconds per step of an earlier engine, by number of sequences."""
    groups = _groups(result["phases"].get("decode", {}).get("rows", []), before)
    limits = _bandwidth_limits(result)
    top = max((value for group in groups.values() for value in group.values()), default=1.0) * 1.1
    step = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    parts = [*_frame(result), *_legend({path for group in groups.values() for path in group})]
    for index, (sequences, group) in enumerate(groups.items()):
        middle = LEFT + (index + 0.5) * step
        parts += _group(middle, sequences, group, limits.get(sequences), top)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n{body}\n</svg>\n'
    )


def _groups(rows: list[dict[str, Any]], before: dict[int, float]) -> dict[int, dict[str, float]]:
    """Returns milliseconds by number of sequences and by path, in the order of COLOURS."""
    measured = {(row["sequences"], row["path"]): row["milliseconds"] for row in rows}
    measured |= {(sequences, "before"): milliseconds for sequences, milliseconds in before.items()}
    batches = dict.fromkeys(row["sequences"] for row in rows)
    return {
        sequences: {path: measured[sequences, path] for path in COLOURS if (sequences, path) in measured}
        for sequences in batches
    }


def _bandwidth_limits(result: dict[str, Any]) -> dict[int, float]:
    """Returns the milliseconds that the measured bandwidth takes for weights and cache, by number of sequences."""
    read = result["phases"].get("bandwidth", {}).get("read")
    rows = result["phases"].get("decode", {}).get("rows", []) if read else []
    bytes_read = {r["sequences"]: r["weight_bytes"] + r["kv_bytes"] for r in rows if r["path"] == "graph"}
    return {sequences: count / read["tb_per_second"] / 1e9 for sequences, count in bytes_read.items()}


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _frame(result: dict[str, Any]) -> Iterator[str]:
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield _text(LEFT, 22, f"Milliseconds of a decode step, {result['device']}", "start", 'font-size="15"')
    bottom = HEIGHT - BOTTOM
    yield f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}" stroke="#444444"/>'


def _legend(paths: set[str]) -> Iterator[str]:
    x = float(LEFT)
    for path, colour in COLOURS.items():
        if path in paths:
            yield f'<rect x="{x:.1f}" y="34" width="12" height="12" fill="{colour}"/>'
            yield _text(x + 17, 44, PATHS[path], "start")
            x += 40 + 7 * len(PATHS[path])
    yield f'<line x1="{x:.1f}" y1="40" x2="{x + 16:.1f}" y2="40" stroke="#b03030" stroke-width="2"/>'
    yield _text(x + 21, 44, "reading weights and cache", "start")


def _group(middle: float, sequences: int, group: dict[str, float], limit: float | None, top: float) -> Iterator[str]:
    bottom, scale = HEIGHT - BOTTOM, (HEIGHT - TOP - BOTTOM) / top
    width = len(group) * (BAR + GAP) - GAP
    for index, (path, value) in enumerate(group.items()):
        x, height = middle - width / 2 + index * (BAR + GAP), value * scale
        y = bottom - height
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{BAR}" height="{height:.1f}" fill="{COLOURS[path]}"/>'
        yield _text(x + BAR / 2, y - 4, decimal(value))
    if limit is not None:
        y = bottom - limit * scale
        ends = f'x1="{middle - width / 2 - GAP:.1f}" x2="{middle + width / 2 + GAP:.1f}"'
        yield f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" stroke="#b03030" stroke-width="2"/>'
    yield _text(middle, bottom + 20, f"{sequences} sequence{'s' if sequences > 1 else ''}")
