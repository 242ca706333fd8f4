"""report.html: one file without any other, with the figures, the plot and all questions.

What models wrote is hostile text: every value is escaped, and a content security policy forbids everything from
outside.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..coco.files import PictureContext
from ..coco.judged_question import JudgedQuestion
from ..coco.summary import judge_line
from .plot import score_plot
from .questions import VERDICTS, question_card, verdict_of
from .script import SCRIPT
from .style import STYLE
from .thumbnails import thumbnail_uri

REPORT = "report.html"
COLUMNS = {
    "category": "Category", "count": "Questions", "unparsable": "Without scores", "mean_reference": "Reference",
    "mean_candidate": "Answer", "relative_score": "Relative", "relative_score_interval": "95 % interval",
    "relative_score_as_published": "Relative as published",
}  # fmt: skip


def report_page(
    rows: Sequence[JudgedQuestion],
    summary: Mapping[str, Any],
    pictures: Mapping[str, Path],
    contexts: Mapping[str, PictureContext],
) -> str:
    """Returns the page. `pictures` has the file of each question's picture, `contexts` captions by picture."""
    files = {row.question.image: pictures[row.question.id] for row in rows if row.question.id in pictures}
    thumbnails = {name: thumbnail_uri(path) for name, path in files.items()}
    cards = "".join(question_card(row, index, contexts) for index, row in enumerate(rows))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>Evaluation of {escape(str(summary['model']))}</title><style>{STYLE}</style></head><body><main>"
        f"{_head(summary)}{_figures(summary)}{_filters(rows)}<div id='questions'>{cards}</div></main>"
        f'<script type="application/json" id="pictures">{_script_json(thumbnails)}</script>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_json(value: object) -> str:
    """Returns JSON that cannot end the script element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")


def _head(summary: Mapping[str, Any]) -> str:
    parameters = ", ".join(f"{name} {value}" for name, value in summary["parameters"].items())
    parts = [
        "<h1>Answers about pictures, judged</h1>",
        f'<p>{escape(str(summary["model"]))}<br><span class="soft">{escape(str(summary["date"])[:10])}'
        f"{escape(', ' + parameters) if parameters else ''}</span></p>",
    ]
    if "categories" in summary:
        parts.append(f'<p class="note">{escape(summary["note"])}</p>')
    else:
        parts.append('<p class="note">These answers are not judged yet: run the command again with --judge-url.</p>')
    return "".join(parts)


def _figures(summary: Mapping[str, Any]) -> str:
    if "categories" not in summary:
        return ""
    table = summary["categories"]
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    body = "".join(f"<tr>{_cells({'category': name, **row})}</tr>" for name, row in table.items())
    lines = [judge_line(summary)]
    if "orders" in summary:
        lines.append(
            f"The order decides the winner in {summary['winner_depends_on_order']} of "
            f"{summary['judged_in_both_orders']} questions."
        )
    facts = "".join(f'<p class="soft">{escape(line[:1].upper() + line[1:])}</p>' for line in lines)
    return (
        f'<section class="card"><h2>Relative score</h2>{score_plot(table)}'
        f'<div class="wide" tabindex="0" role="region" aria-label="Figures by category"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>{facts}</section>"
    )


def _cells(row: Mapping[str, Any]) -> str:
    return "".join(f"<td>{_cell(row[name])}</td>" for name in COLUMNS)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{value[0]:.1f} to {value[1]:.1f}"
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value))


def _filters(rows: Sequence[JudgedQuestion]) -> str:
    categories = {row.question.category: row.question.category for row in rows}
    present = {verdict_of(row) for row in rows}
    verdicts = {name: title for name, title in VERDICTS.items() if name in present}
    orders = {"id": "in order", "worst": "worst first", "best": "best first"}
    return (
        '<div class="filters">'
        f"{_select('category', 'Category', {'': 'all', **categories})}"
        f"{_select('verdict', 'Verdict', {'': 'all', **verdicts})}{_select('sort', 'Sorted', orders)}"
        '<label>Words<input type="search" id="words" placeholder="in question, answers, verdicts"></label>'
        '<label class="check"><input type="checkbox" id="show-boxes">Boxes</label>'
        '<output id="shown" aria-live="polite"></output></div>'
    )


def _select(name: str, title: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{title}<select id="{name}">{items}</select></label>'
