"""A batch run on the model of this process's environment."""

import hashlib
import json
import os
from pathlib import Path

from ..settings import Settings
from ..startup import start
from ..weights.fingerprint import fingerprint
from ..weights.model_dir import find_model
from .inputs import Defaults
from .kept import Kept
from .run import Batch


def start_batch(kept: Path | None) -> Batch:
    """Loads the model, as a service does; `kept` is where answers are left as they come. Raises StartupError."""
    settings = Settings.from_environment(os.environ)
    scorer = start()
    return Batch(
        scorer.answer,
        settings.max_live_seqs,
        Defaults(settings.batch_prompt, settings.batch_parameters, settings.max_body_bytes),
        None if kept is None else Kept(kept / _model(settings)),
    )


def _model(settings: Settings) -> str:
    """A name for what answers: other weights have another, and so have these in other numbers or asked otherwise."""
    folders = find_model(os.environ.get("AZUREML_MODEL_DIR")).folders
    weights = [fingerprint(folder) for folder in folders]
    asked = (settings.template, settings.dtype, settings.quantization, settings.default_max_new_tokens)
    return hashlib.sha256(json.dumps([weights, asked]).encode()).hexdigest()[:16]
