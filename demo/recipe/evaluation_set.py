"""Writes demo/evaluation: a small set in the formats of LLaVA-Bench (COCO), of scenes whose contents are known.

    python demo/recipe/evaluation_set.py

The questions are of the kinds that the demo model knows. Captions, boxes and reference answers follow from the scenes.
"""

import json
import random
from pathlib import Path
from typing import Any

from layout import DEMO
from scenes import NUMBERS, UNIT, Question, SceneObject, draw_scene, scene_questions

FOLDER = DEMO / "evaluation"
SCENES = 8
SEED = 20261201
# The kinds of question of scenes.py that stand in for LLaVA's three categories.
CATEGORIES = {"conv": ("color", "at", "where"), "detail": ("describe",), "complex": ("yes/no", "count")}

# How far each shape of scenes.py reaches to the left, up, right and down, in radii.
REACHES = {
    "circle": (1, 1, 1, 1), "square": (0.88, 0.88, 0.88, 0.88), "triangle": (1, 1, 1, 0.8),
    "star": (1.046, 1.1, 1.046, 0.89), "cross": (1, 1, 1, 1),
}  # fmt: skip


def main() -> None:
    rng = random.Random(SEED)
    questions: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    contexts: list[dict[str, Any]] = []
    (FOLDER / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(SCENES):
        image, objects = draw_scene(rng)
        name = f"{number:012}.png"
        image.save(FOLDER / "pictures" / name)
        contexts.append(
            {"id": str(number), "image": name, "captions": _captions(objects), "instances": _boxes(objects)}
        )
        for category, question in _questions(rng, objects):
            row = {"question_id": len(questions), "category": category}
            questions.append({**row, "image": name, "text": question.text})
            references.append({**row, "text": question.answer})
    _write("questions", questions)
    _write("reference", references)
    _write("context", contexts)


def _questions(rng: random.Random, objects: list[SceneObject]) -> list[tuple[str, Question]]:
    """Returns one question of each category."""
    questions = scene_questions(rng, objects)
    chosen = []
    for category, kinds in CATEGORIES.items():
        fitting = [question for question in questions if question.kind.startswith(kinds)]
        chosen.append((category, fitting[0]))
    return chosen


def _captions(objects: list[SceneObject]) -> list[str]:
    """Returns five sentences about a scene, as many as COCO has."""
    names = " and ".join(item.name for item in objects)
    places = ", ".join(f"{item.name} at the {item.location}" for item in objects)
    return [
        f"A drawing of {names}.",
        f"The picture shows {NUMBERS[len(objects)]} of the shapes.",
        f"There is {places}.",
        f"A plain background with {names} on it.",
        f"Flat shapes without an outline: {names}.",
    ]


def _boxes(objects: list[SceneObject]) -> list[dict[str, Any]]:
    return [
        {"category": f"{item.color} {item.shape}", "bbox": [round(value / UNIT, 3) for value in _box(item)]}
        for item in objects
    ]


def _box(item: SceneObject) -> tuple[float, float, float, float]:
    left, top, right, bottom = (reach * item.radius for reach in REACHES[item.shape])
    return item.x - left, item.y - top, item.x + right, item.y + bottom


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    path: Path = FOLDER / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
