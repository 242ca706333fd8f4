"""Stage 2, the vision tower: a small CLIP trained to classify what its images show, without language.

CLIP learned from captions. This tower learns from labels, through heads that are not stored. As in LLaVA, the features
are the input of the last layer without CLS, so the last layer keeps its initial weights.
"""

import math
import random
from pathlib import Path

import easyvqa
import numpy as np
import torch
from dialogues import IGNORE, NUM_PATCHES
from optimizers import Optimizers
from progress import Progress
from scenes import COLORS, SHAPES, SceneObject
from torch import Tensor, nn
from torch.nn import functional
from training_images import SIZE, Content, ImagePool, clip_normalize, load_pool
from transformers import CLIPVisionConfig, CLIPVisionModel

WIDTH, LAYERS, PATCH = 128, 5, 16
GRID = SIZE // PATCH
STEPS = 5_000
LEARNING_RATE = 4e-3
BATCH = 48
NO_SHAPE_WEIGHT = 1 / 3  # most patches of a scene show no shape
PATCH_CENTERS = (np.arange(GRID) + 0.5) * PATCH
HEADS = {
    "shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "digit": 11, "position": NUM_PATCHES,
    "easy shape": len(easyvqa.SHAPES), "easy color": len(easyvqa.COLORS),
}  # fmt: skip
LOSS_WEIGHTS = {"shape": 2.0, "color": 1.0, "digit": 1.0, "position": 0.3, "easy shape": 0.5, "easy color": 0.5}
IMAGE_LABELS = ("digit", "easy shape", "easy color")  # the mean of the patches is classified by these too


def build_tower() -> CLIPVisionModel:
    """Returns a CLIP with a million parameters for 64 x 64 pixels."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPVisionModel(config)


def features(model: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Returns (n, patches, width), the input of LLaVA's projector."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    return hidden[-2][:, 1:].float()


class Heads(nn.ModuleDict):
    """Linear classifiers of each patch, one for each of HEADS."""

    def __init__(self) -> None:
        super().__init__({name: nn.Linear(WIDTH, size) for name, size in HEADS.items()})

    def loss(self, features: Tensor, labels: dict[str, Tensor]) -> Tensor:
        total = features.new_zeros(())
        for name, head in self.items():
            target = labels[name]
            weight = torch.ones(HEADS[name])
            if name == "shape":
                weight[-1] = NO_SHAPE_WEIGHT
            loss = _cross_entropy(head(features).flatten(0, 1), target.flatten(), weight)
            if name in IMAGE_LABELS:
                loss = loss + _cross_entropy(head(features.mean(1)), target[:, 0], weight)
            total = total + LOSS_WEIGHTS[name] * loss
        return total


def train_vision(work: Path) -> Path:
    """Trains for STEPS steps and returns the path of the tower's state dict, `vision.pt` in the work folder.

    Trains nothing if the file exists.
    """
    path = work / "vision.pt"
    if path.exists():
        return path
    pool = load_pool(work)
    image_labels = [_labels(content) for content in pool.contents]
    labels = {name: torch.stack([label[name] for label in image_labels]) for name in HEADS}
    torch.manual_seed(2)
    rng = random.Random(2)
    model, heads = build_tower(), Heads()
    initialize(model)
    unused = (f"layers.{LAYERS - 1}.", "post_layernorm")
    named = [(name, p) for name, p in model.named_parameters() if not any(part in name for part in unused)]
    optimizers = Optimizers([*named, *heads.named_parameters(prefix="heads")], LEARNING_RATE, STEPS)
    progress = Progress("vision", STEPS)
    for _ in range(STEPS):
        indices = rng.sample(range(len(pool.contents)), BATCH)
        tower_features = features(model, clip_normalize(pool.pixels[indices]))
        loss = heads.loss(tower_features, {name: label[indices] for name, label in labels.items()})
        optimizers.step(loss)
        progress.report(loss)
    torch.save(model.state_dict(), path)
    return path


@torch.no_grad()
def pool_features(model: CLIPVisionModel, pool: ImagePool) -> Tensor:
    """Returns the tower's features of every image: (n, patches, width), bfloat16."""
    batches = range(0, len(pool.contents), 200)
    return torch.cat([features(model, clip_normalize(pool.pixels[i : i + 200])).bfloat16() for i in batches])


def initialize(model: CLIPVisionModel) -> None:
    """Sets sine and cosine positions, and queries equal to keys, so that each patch first attends to similar patches.

    Source: Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("patch_embedding.weight"):
                nn.init.trunc_normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
            elif parameter.dim() == 2 and "layers." in name:
                nn.init.trunc_normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            elif name.endswith("position_embedding.weight"):
                parameter.zero_()
                parameter[1:] = 0.25 * _positions()
        for name, parameter in parameters.items():
            if name.endswith("q_proj.weight"):
                parameter.mul_(0.7)
                parameters[name.replace("q_proj", "k_proj")].copy_(parameter)
            elif name.endswith("out_proj.weight"):
                parameter.mul_(0.5)


def _positions() -> Tensor:
    frequencies = 100.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = torch.arange(GRID)[:, None] * frequencies
    encoding = torch.cat([angles.sin(), angles.cos()], dim=1)
    row, column = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.cat([encoding[row.flatten()], encoding[column.flatten()]], dim=1)


def _labels(content: Content) -> dict[str, Tensor]:
    """Returns a label for each head and patch, and IGNORE for unknown labels."""
    labels = {name: torch.full((NUM_PATCHES,), IGNORE) for name in HEADS}
    labels["position"] = torch.arange(NUM_PATCHES)
    labels["digit"][:] = 10
    if isinstance(content, list):
        labels["shape"][:] = len(SHAPES)
        labels["color"][:] = len(COLORS)
        for item in content:
            covered = _covered_patches(item)
            labels["shape"][covered] = SHAPES.index(item.shape)
            labels["color"][covered] = list(COLORS).index(item.color)
        return labels
    kind, number = content
    if kind == "digit":
        labels["digit"][:] = number
        return labels
    shape, color = easyvqa.labels(easyvqa.questions("train")[number])
    if shape:
        labels["easy shape"][:] = easyvqa.SHAPES.index(shape)
    if color:
        labels["easy color"][:] = easyvqa.COLORS.index(color)
    return labels


def _covered_patches(item: SceneObject) -> Tensor:
    """Returns a mask of the patches whose center is in the square around the object."""
    reach = item.radius + 1.5
    rows, columns = (torch.from_numpy(np.abs(PATCH_CENTERS - center) < reach) for center in (item.y, item.x))
    return (rows[:, None] & columns[None]).flatten()


def _cross_entropy(scores: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the cross-entropy, or 0 instead of NaN for a batch without labels."""
    if bool((target == IGNORE).all()):
        return scores.sum() * 0
    return functional.cross_entropy(scores, target, weight, ignore_index=IGNORE, label_smoothing=0.02)
