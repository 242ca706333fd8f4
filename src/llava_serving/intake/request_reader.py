"""Parses requests and decodes their pictures. The service's process and the input processes each have a reader."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..api.request_parser import RequestParser
from ..api.score_request import ScoreRequest
from ..errors import BadRequest, ContextExceeded
from ..inputs.clip_preprocessor import ClipPreprocessor, Pixels
from ..inputs.image import ImageLimits, ImageReader, OpenedImage
from ..inputs.image_url import AllowListFetcher
from ..inputs.prompt import ConversationTemplate, ImageSource


@dataclass(frozen=True)
class IntakeConfig:
    """What a reader needs. It can be sent to another process.

    `max_prompt_characters` is more than any prompt has that fits into the model's context.
    """

    template: ConversationTemplate
    preprocessor: ClipPreprocessor
    image_limits: ImageLimits
    image_url_hosts: tuple[str, ...]
    image_url_timeout_seconds: float
    max_sequences: int
    max_images: int
    max_body_bytes: int
    max_prompt_characters: int


@dataclass(frozen=True)
class ReadRequest:
    """A request without the bytes of its images, and the pixels of each image by its path: (3, size, size) float32."""

    request: ScoreRequest
    pixels: dict[str, Pixels]


class RequestReader:
    """Reads requests for one model, from any number of threads."""

    def __init__(self, config: IntakeConfig) -> None:
        self._config = config
        self._parser = RequestParser(config.template)
        hosts = config.image_url_hosts
        fetch = AllowListFetcher(hosts, config.image_url_timeout_seconds) if hosts else None
        self._images = ImageReader(config.image_limits, fetch)

    def read(self, body: bytes, accepts_stream: bool, path: str) -> ReadRequest:
        """Returns the request with all of its pictures. Raises RequestError."""
        request = self.parse(body, accepts_stream, path)
        del body  # before pictures are decoded
        self._check_text_length(request)
        pixels = {source.path: self.image(source) for source in request.images}
        return ReadRequest(request.without_image_data(), pixels)

    def parse(self, body: bytes, accepts_stream: bool, path: str) -> ScoreRequest:
        """Returns the request in a body, without looking into its pictures. Raises RequestError."""
        request = self._parser.parse(body, accepts_stream, path)
        _check_num_sequences(request, self._config.max_sequences)
        _check_num_images(request, self._config.max_images)
        return request

    def image(self, source: ImageSource) -> Pixels:
        """Returns the pixels of an image. Raises RequestError."""
        return self.file_pixels(self.image_file(source), source)

    def image_file(self, source: ImageSource) -> bytes:
        """Returns the bytes of an image's file, decoded or fetched. Raises RequestError."""
        return self._images.file_of(source)

    def file_pixels(self, file: bytes, source: ImageSource) -> Pixels:
        """Returns the pixels of an image from the bytes of its file. Raises RequestError."""
        return self._images.process(file, source, self._opened_pixels)

    def small_pixels(self, file: bytes, source: ImageSource, max_pixels: int) -> Pixels | None:
        """Returns the pixels of an image, None if it has more than `max_pixels`. Raises RequestError."""
        return self._images.process(
            file, source, lambda opened: self._opened_pixels(opened) if opened.num_pixels <= max_pixels else None
        )

    def _opened_pixels(self, opened: OpenedImage) -> Pixels:
        self._config.preprocessor.check_size(*opened.image.size, self._config.image_limits.max_pixels)
        return self._config.preprocessor(opened.decode())

    def _check_text_length(self, request: ScoreRequest) -> None:
        """Refuses a text that cannot fit, so that it is not sent on to the service's process."""
        for prompt in request.prompts:
            num_characters = _count_characters(prompt.segments)
            if num_characters > self._config.max_prompt_characters:
                raise ContextExceeded(
                    "context_length_exceeded",
                    f"the prompt has {num_characters:,} characters, and the model's context holds at most "
                    f"{self._config.max_prompt_characters:,}",
                    prompt.path,
                )


def _count_characters(segments: Iterable[object]) -> int:
    return sum(len(segment) for segment in segments if isinstance(segment, str))


def _check_num_sequences(request: ScoreRequest, max_sequences: int) -> None:
    if request.num_sequences > max_sequences:
        path_of_prompts = request.prompts[0].path.rpartition("[")[0]
        raise BadRequest(
            "too_many_sequences",
            f"the request asks for {request.num_sequences} sequences (prompts x n); at most {max_sequences} are "
            "accepted",
            request.parameter_path("n") if request.parameters.n > 1 else path_of_prompts,
        )


def _check_num_images(request: ScoreRequest, max_images: int) -> None:
    images = request.images
    if len(images) > max_images:
        raise BadRequest(
            "too_many_images",
            f"the request holds {len(images)} images; at most {max_images} are accepted",
            images[max_images].path,
        )
