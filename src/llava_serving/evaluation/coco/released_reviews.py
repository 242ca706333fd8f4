"""Reads review files of the authors' scripts, so that their verdicts go through the same arithmetic as ours.

Rows of LLaVA's scripts have `content`, `tuple` and `category`, those of Vicuna's have `text` and `score`. The authors'
figure uses the scores of the row: in Vicuna's files people have read those that no rule can read. Ours come from the
judge's words.
"""

from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from ..json_rows import read_rows
from .score_table import ScoredRow
from .verdict import Scores, published_scores, tolerant_scores


class ReleasedReview(BaseModel):
    """A verdict. Vicuna's rows have no category and no picture: each question is a group of its own."""

    model_config = ConfigDict(frozen=True, strict=True)

    question_id: int | str
    content: str = Field(validation_alias=AliasChoices("content", "text"))
    stored: list[float] | None = Field(
        None, validation_alias=AliasChoices("tuple", "score"), min_length=2, max_length=2
    )
    category: str = "all"


def read_released_reviews(path: Path) -> list[ScoredRow]:
    """Returns the scored rows of a review file. Raises StartupError."""
    return [
        ScoredRow(row.category, str(row.question_id), tolerant_scores(row.content), _published(row))
        for row in read_rows(path, ReleasedReview)
    ]


def _published(row: ReleasedReview) -> Scores:
    return published_scores(row.content) if row.stored is None else (row.stored[0], row.stored[1])
