"""Stage 2, the stand-in for CLIP: a vision tower trained to see what its pictures show, before any language.

CLIP learned from captions; this tower learns from labels, through heads that are thrown away. As in LLaVA the features
are the last layer's input without CLS, so the last layer stays as it was initialized.
"""

import math
import random
from pathlib import Path

import easyvqa
import numpy as np
import torch
from dialogues import IGNORE, PATCHES
from optim import Training
from pictures import SIZE, Pool, normalized, pool
from progress import Progress
from scenes import COLORS, SHAPES, Thing
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

WIDTH, LAYERS, PATCH = 128, 5, 16
GRID = SIZE // PATCH
STEPS = 5_000
LEARNING_RATE = 4e-3
BATCH = 48
NOTHING_WEIGHT = 1 / 3  # most patches of a scene show no shape
PATCH_CENTERS = (np.arange(GRID) + 0.5) * PATCH
HEADS = {
    "shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "digit": 11, "place": PATCHES,
    "easy shape": len(easyvqa.SHAPES), "easy color": len(easyvqa.COLORS),
}  # fmt: skip
LOSS_WEIGHTS = {"shape": 2.0, "color": 1.0, "digit": 1.0, "place": 0.3, "easy shape": 0.5, "easy color": 0.5}
OF_THE_WHOLE = ("digit", "easy shape", "easy color")  # the mean of the patches has to tell these, too


def tower() -> CLIPVisionModel:
    """A CLIP of a million parameters on 64 x 64 pixels."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPVisionModel(config)


def features(model: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """(n, patches, width): what LLaVA's projector reads."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    return hidden[-2][:, 1:].float()


class Heads(nn.ModuleDict):
    """A linear classifier for each thing there is to see, of every patch."""

    def __init__(self) -> None:
        super().__init__({name: nn.Linear(WIDTH, size) for name, size in HEADS.items()})

    def loss(self, seen: Tensor, labels: dict[str, Tensor]) -> Tensor:
        total = seen.new_zeros(())
        for name, head in self.items():
            target = labels[name]
            weight = torch.ones(HEADS[name])
            if name == "shape":
                weight[-1] = NOTHING_WEIGHT
            loss = _cross_entropy(head(seen).flatten(0, 1), target.flatten(), weight)
            if name in OF_THE_WHOLE:
                loss = loss + _cross_entropy(head(seen.mean(1)), target[:, 0], weight)
            total = total + LOSS_WEIGHTS[name] * loss
        return total


def train_vision(work: Path) -> Path:
    """`vision.pt` in the work folder: the tower's state dict after `STEPS` steps."""
    path = work / "vision.pt"
    if path.exists():
        return path
    drawn = pool(work)
    each = [_labels(shown) for shown in drawn.shown]
    labels = {name: torch.stack([label[name] for label in each]) for name in HEADS}
    torch.manual_seed(2)
    rng = random.Random(2)
    model, heads = tower(), Heads()
    initialize(model)
    unused = (f"layers.{LAYERS - 1}.", "post_layernorm")
    named = [(name, p) for name, p in model.named_parameters() if not any(part in name for part in unused)]
    training = Training([*named, *heads.named_parameters(prefix="heads")], LEARNING_RATE, STEPS)
    progress = Progress("vision", STEPS)
    for _ in range(STEPS):
        rows = rng.sample(range(len(drawn.shown)), BATCH)
        seen = features(model, normalized(drawn.pixels[rows]))
        loss = heads.loss(seen, {name: label[rows] for name, label in labels.items()})
        training.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


@torch.no_grad()
def pool_features(model: CLIPVisionModel, drawn: Pool) -> Tensor:
    """The frozen tower's features of every picture: (n, patches, width), bfloat16."""
    batches = range(0, len(drawn.shown), 200)
    return torch.cat([features(model, normalized(drawn.pixels[i : i + 200])).bfloat16() for i in batches])


def initialize(model: CLIPVisionModel) -> None:
    """Sine and cosine positions, and queries equal to keys: attention begins by looking at its like.

    (Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023.)
    """
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in state.items():
            if name.endswith("patch_embedding.weight"):
                nn.init.trunc_normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
            elif parameter.dim() == 2 and "layers." in name:
                nn.init.trunc_normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            elif name.endswith("position_embedding.weight"):
                parameter.zero_()
                parameter[1:] = 0.25 * _positions()
        for name, parameter in state.items():
            if name.endswith("q_proj.weight"):
                parameter.mul_(0.7)
                state[name.replace("q_proj", "k_proj")].copy_(parameter)
            elif name.endswith("out_proj.weight"):
                parameter.mul_(0.5)


def _positions() -> Tensor:
    frequencies = 100.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.arange(GRID)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.cat([line[row.flatten()], line[column.flatten()]], dim=1)


def _labels(shown: list[Thing] | tuple[str, int]) -> dict[str, Tensor]:
    """A label for each head and patch; `IGNORE` where it is not known."""
    labels = {name: torch.full((PATCHES,), IGNORE) for name in HEADS}
    labels["place"] = torch.arange(PATCHES)
    labels["digit"][:] = 10
    if isinstance(shown, list):
        labels["shape"][:] = len(SHAPES)
        labels["color"][:] = len(COLORS)
        for thing in shown:
            covered = _covered(thing)
            labels["shape"][covered] = SHAPES.index(thing.shape)
            labels["color"][covered] = list(COLORS).index(thing.color)
        return labels
    kind, number = shown
    if kind == "digit":
        labels["digit"][:] = number
        return labels
    shape, color = easyvqa.labels(easyvqa.questions("train")[number])
    if shape:
        labels["easy shape"][:] = easyvqa.SHAPES.index(shape)
    if color:
        labels["easy color"][:] = easyvqa.COLORS.index(color)
    return labels


def _covered(thing: Thing) -> Tensor:
    """The patches whose middle the shape's square covers."""
    reach = thing.radius + 1.5
    rows, columns = (torch.from_numpy(np.abs(PATCH_CENTERS - center) < reach) for center in (thing.y, thing.x))
    return (rows[:, None] & columns[None]).flatten()


def _cross_entropy(scores: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Zero, not NaN, where a batch has no label."""
    if bool((target == IGNORE).all()):
        return scores.sum() * 0
    return functional.cross_entropy(scores, target, weight, ignore_index=IGNORE, label_smoothing=0.02)
