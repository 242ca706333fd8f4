"""Reads review files of the authors' scripts, so that their verdicts go through the same arithmetic as ours.

Rows of LLaVA's scripts have `content` and `category`, those of Vicuna's have `text`. The scores are read from the
judge's words again, and not taken from the row.
"""

from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from .json_rows import read_rows
from .score_table import ScoredRow
from .verdict import published_scores, tolerant_scores


class ReleasedReview(BaseModel):
    """A verdict. Vicuna's rows have no category and no picture: each question is a group of its own."""

    model_config = ConfigDict(frozen=True, strict=True)

    question_id: int | str
    content: str = Field(validation_alias=AliasChoices("content", "text"))
    category: str = "all"


def read_released_reviews(path: Path) -> list[ScoredRow]:
    """Returns the scored rows of a review file. Raises StartupError."""
    return [
        ScoredRow(row.category, str(row.question_id), tolerant_scores(row.content), published_scores(row.content))
        for row in read_rows(path, ReleasedReview)
    ]
