"""Builds the batch runner of this process from its environment."""

import os
from functools import partial
from pathlib import Path

from ..service.startup import start
from ..settings import Settings
from ..weights.loader import LoadedModel
from ..weights.model_folder import find_model
from ..weights.storage.fingerprint import folders_digest
from .input_row import RowDefaults
from .runner import BatchRunner
from .saved_answers import SAVED_ANSWERS_FOLDER, SavedAnswers


def start_batch_runner(output: Path | None) -> BatchRunner:
    """Loads the model as the service does. Saves answers below `output`, or nowhere if it is None.

    Raises StartupError.
    """
    settings = Settings.from_environment(os.environ)
    scorer = start()
    saved_answers = None
    if output is not None:
        saved_answers = SavedAnswers(output / SAVED_ANSWERS_FOLDER / _model_id(scorer.model, settings))
    return BatchRunner(
        scorer.answer,
        settings.max_live_seqs,
        RowDefaults(settings.batch_prompt, settings.batch_parameters, settings.max_body_bytes),
        saved_answers,
        partial(scorer.drain, 0.0),
    )


def _model_id(model: LoadedModel, settings: Settings) -> str:
    """Returns a digest of all that an answer depends on, except the request.

    These are the weights, configs, tokenizer, dtype and settings. A run uses only answers saved under its own digest.
    """
    folders = find_model(os.environ.get("AZUREML_MODEL_DIR")).folders
    options = (model.template.name, str(model.model.dtype), settings.quantization, settings.default_max_new_tokens)
    return folders_digest(folders, *options)
