from pathlib import Path

import pytest
from PIL import Image
from reference import Reference
from server import as_base64
from server_requests import QUESTION

SHAPES = Path(__file__).resolve().parents[2] / "demo" / "pictures" / "shapes.png"


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    return Image.open(SHAPES).convert("RGB")


@pytest.fixture(scope="session")
def encoded_picture(picture: Image.Image) -> str:
    return as_base64(picture)


@pytest.fixture(scope="session")
def expected_answer(demo_reference: Reference, picture: Image.Image) -> str:
    """Returns the answer of stock transformers to QUESTION about the picture."""
    return demo_reference.answer(QUESTION, picture)
