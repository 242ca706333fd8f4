"""What a model directory holds: one merged checkpoint, or the trio base/, delta/ and vision/."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import StartupError

PARTS = ("base", "delta", "vision")
NESTING = 2  # Azure mounts a registered model one or two folders deep
DEMO = Path(__file__).resolve().parents[3] / "demo"
LOOKED_FOR = (
    "looked, here and up to two folders deep, for one merged LLaVA checkpoint in Hugging Face layout (config.json with "
    '"model_type": "llava" and a vision_config) or a folder with base/ (LLaMA in Hugging Face layout), delta/ and '
    "vision/ (CLIP)"
)


@dataclass(frozen=True)
class MergedCheckpoint:
    """A folder that transformers loads as LlavaForConditionalGeneration."""

    directory: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that hold weights."""
        return (self.directory,)


@dataclass(frozen=True)
class ModelParts:
    """The folder whose base/, delta/ and vision/ are merged while loading."""

    directory: Path

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def delta(self) -> Path:
        return self.directory / "delta"

    @property
    def vision(self) -> Path:
        return self.directory / "vision"

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that hold weights."""
        return self.base, self.delta, self.vision


def find_model(azureml_model_dir: str | None) -> MergedCheckpoint | ModelParts:
    """The model under AZUREML_MODEL_DIR, or the embedded demo model when that is unset.

    Raises StartupError that says what was looked for and what was found.
    """
    if not azureml_model_dir:
        return ModelParts(DEMO)
    top = Path(azureml_model_dir)
    if not top.is_dir():
        raise StartupError(f"AZUREML_MODEL_DIR is {top}, which is not a folder; {LOOKED_FOR}")
    folders = list(_folders(top, NESTING))
    found = [model for folder in folders if (model := _model_in(folder))]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(str(model.directory) for model in found)
        raise StartupError(f"AZUREML_MODEL_DIR={top} holds more than one model ({places}); point it at one of them")
    raise StartupError(f"no model in AZUREML_MODEL_DIR={top}: {LOOKED_FOR}; found {_describe(folders)}")


def _folders(top: Path, depth: int) -> list[Path]:
    children = sorted(child for child in top.iterdir() if child.is_dir()) if depth else []
    return [top, *(folder for child in children for folder in _folders(child, depth - 1))]


def _model_in(folder: Path) -> MergedCheckpoint | ModelParts | None:
    if all((folder / part).is_dir() for part in PARTS):
        return ModelParts(folder)
    config = _config(folder)
    if config.get("model_type") == "llava" and "vision_config" in config:
        return MergedCheckpoint(folder)
    return None


def _describe(folders: list[Path]) -> str:
    """The wrong model, by name, where it is one that people bring."""
    for folder in folders:
        present = [part for part in PARTS if (folder / part).is_dir()]
        if present:
            missing = [part for part in PARTS if part not in present]
            return f"{folder} with {'/, '.join(present)}/ but without {'/, '.join(missing)}/" + _why_base(missing)
        if _is_llava_v0(folder):
            return (
                f"{folder}, a LLaVA v0 checkpoint in its authors' layout: a delta, or a merged model without its "
                f"CLIP{_why_base(['base'])}"
            )
        if _config(folder).get("model_type") == "llama":
            return f"{folder}, a LLaMA checkpoint alone; put it in base/ beside delta/ and vision/"
    names = sorted(path.name for path in folders[0].iterdir())
    return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "an empty folder"


def _why_base(missing: list[str]) -> str:
    if "base" not in missing:
        return ""
    return "; a delta cannot be used directly: served without its base it babbles. Put the original LLaMA in base/"


def _is_llava_v0(folder: Path) -> bool:
    """The authors' layout has mm_* keys in a LLaMA config."""
    return any(key.startswith("mm_") for key in _config(folder))


def _config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
