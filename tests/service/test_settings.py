"""Settings from environment variables."""

import pytest

from llava_serving.errors import StartupError
from llava_serving.settings import Settings


def test_an_environment_without_llava_variables_gives_the_defaults() -> None:
    assert Settings.from_environment({"PATH": "/bin", "OTHER_LLAVA_X": "1"}) == Settings()


def test_variables_set_fields() -> None:
    settings = Settings.from_environment(
        {"LLAVA_DTYPE": "bfloat16", "LLAVA_MAX_IMAGES": "3", "LLAVA_SELF_CHECK": "off", "LLAVA_DEVICE": "cuda:1",
         "LLAVA_IMAGE_URL_HOSTS": "Example.com, images.example.org"}
    )  # fmt: skip
    assert (settings.dtype, settings.max_images, settings.self_check) == ("bfloat16", 3, False)
    assert settings.device == "cuda:1"
    assert settings.image_url_hosts == ("example.com", "images.example.org")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLAVA_DTYP", "float16"),
        ("LLAVA_DTYPE", "int8"),
        ("LLAVA_DEVICE", "gpu"),
        ("LLAVA_MAX_IMAGES", "many"),
        ("LLAVA_MAX_IMAGES", "0"),
        ("LLAVA_SELF_CHECK", "perhaps"),
        ("LLAVA_IMAGE_URL_TIMEOUT_SECONDS", "-1"),
        ("LLAVA_IMAGE_URL_HOSTS", "https://example.com/"),
        ("LLAVA_IMAGE_URL_HOSTS", "example.com:443"),
        ("LLAVA_IMAGE_URL_HOSTS", "good.example.com,*.example.com"),
    ],
)
def test_an_unknown_name_or_an_invalid_value_raises_startup_error_with_the_name(name: str, value: str) -> None:
    with pytest.raises(StartupError, match=rf"\b{name}\b"):
        Settings.from_environment({name: value})


def test_the_error_about_an_unknown_name_lists_the_settings() -> None:
    with pytest.raises(StartupError, match="LLAVA_DTYPE"):
        Settings.from_environment({"LLAVA_DTYP": "float16"})
