"""The ids of an image, checked against the model: they differ from checkpoint to checkpoint."""

from pathlib import Path

from ..errors import StartupError
from ..inputs.tokenizer import ADDED_TOKEN_FILES, IMAGE_END, IMAGE_PATCH, IMAGE_START, ImageTokens


def image_patch_token(delta: Path, added: dict[str, int]) -> int:
    """Returns the id that the delta adds for one patch. Raises StartupError if there is none."""
    if IMAGE_PATCH not in added:
        raise StartupError(
            f"{delta} lists no {IMAGE_PATCH} among its added tokens (added_tokens.json): it is not a LLaVA v0 delta"
        )
    return added[IMAGE_PATCH]


def image_token_text(added: dict[str, int], image_token: int) -> str:
    """Returns the text of the config's image token, which `build_image_tokens` has checked."""
    return next(text for text, token_id in added.items() if token_id == image_token)


def build_image_tokens(
    directory: Path, added: dict[str, int], patch: int, num_features: int, vocab_size: int
) -> ImageTokens:
    """Returns the ids of an image with `num_features` features.

    `patch` is the config's image token, and `vocab_size` the number of rows of the embedding. Raises StartupError if
    the tokenizer files of `directory` do not match them.
    """
    if patch not in added.values() or added.get(IMAGE_PATCH, patch) != patch:
        raise StartupError(
            f"config.json says that the image token is {patch}, but the added tokens of {directory} "
            f"({', '.join(ADDED_TOKEN_FILES)}) are {added or 'none'}"
        )
    image = ImageTokens(patch, num_features, added.get(IMAGE_START), added.get(IMAGE_END))
    if without_row := [token for token in image.ids if token >= vocab_size]:
        raise StartupError(
            f"the added token {without_row[0]} of {directory} has no row in the embedding, which has {vocab_size}: its "
            "tokenizer files are another checkpoint's"
        )
    return image
