"""An intake for a loaded model."""

from ..cpu_cores import available_cores
from ..inputs.image import ImageLimits
from ..intake.intake import Intake, default_num_processes
from ..intake.request_reader import IntakeConfig
from ..settings import Settings
from ..weights.loader import LoadedModel


def build_intake(loaded: LoadedModel, settings: Settings) -> Intake:
    """Returns an intake with the settings' limits. Its input processes start at once, and answer a second later."""
    config = IntakeConfig(
        template=loaded.template,
        preprocessor=loaded.preprocessor,
        image_limits=ImageLimits(settings.max_image_bytes, settings.max_image_pixels),
        image_url_hosts=settings.image_url_hosts,
        image_url_timeout_seconds=settings.image_url_timeout_seconds,
        max_sequences=settings.max_sequences,
        max_images=settings.max_images,
        max_body_bytes=settings.max_body_bytes,
        max_prompt_characters=loaded.context_length * loaded.tokenizer.longest_token,
    )
    return Intake(config, settings.input_processes or default_num_processes(available_cores()))
