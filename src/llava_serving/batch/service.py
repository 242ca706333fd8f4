"""A batch run on the model of this process's environment."""

import os
from pathlib import Path

from ..settings import Settings
from ..startup import start
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
        None if kept is None else Kept(kept),
    )
