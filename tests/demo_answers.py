"""What the demo model answers in every number format."""

from PIL import Image
from server import ROOT, Server, as_base64


def assert_demo_answers(server: Server) -> None:
    body = {"input_data": {"input_string": ["the meaning of life is"] * 3, "parameters": {"n": 2}}}
    row = {str(i): "the meaning of life is to be kind and to keep learning." for i in range(2)}
    assert server.score(body).json == [row] * 3
    picture = as_base64(Image.open(ROOT / "demo" / "pictures" / "shapes.png"))
    question = {"input_data": {"input_string": ["What is in the image?"], "images": [picture]}}
    assert server.score(question).json == [{"0": "a red circle, a blue cross, a yellow triangle"}]
