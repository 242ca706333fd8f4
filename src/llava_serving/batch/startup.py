"""A batch run on the model of this process's environment."""

import hashlib
import json
import os
from functools import partial
from pathlib import Path

from ..service.startup import start
from ..settings import Settings
from ..weights.loader import LoadedModel
from ..weights.model_dir import find_model
from ..weights.storage.fingerprint import fingerprint, texts_beside
from .row_reader import Defaults
from .run import Batch
from .saved_answers import SavedAnswers


def start_batch(kept: Path | None) -> Batch:
    """Loads the model, as a service does; `kept` is where answers are left as they come. Raises StartupError."""
    settings = Settings.from_environment(os.environ)
    scorer = start()
    return Batch(
        scorer.answer,
        settings.max_live_seqs,
        Defaults(settings.batch_prompt, settings.batch_parameters, settings.max_body_bytes),
        None if kept is None else SavedAnswers(kept / _identity(scorer.model, settings)),
        partial(scorer.drain, 0.0),
    )


def _identity(model: LoadedModel, settings: Settings) -> str:
    """Of what answers: weights, configs, tokenizer, numbers and settings. Under it alone are answers used again."""
    folders = find_model(os.environ.get("AZUREML_MODEL_DIR")).folders
    files = [[fingerprint(folder), texts_beside(folder)] for folder in folders]
    asked = (model.template.name, str(model.model.dtype), settings.quantization, settings.default_max_new_tokens)
    return hashlib.sha256(json.dumps([files, asked]).encode()).hexdigest()[:16]
