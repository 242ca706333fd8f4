"""OpenAI's paths on Azure's inference server, beside its own /score, and error objects for paths that nobody has.

The server calls init() before Flask registers its blueprint, so init() can add URL rules that lead to the handler of
/score, and error handlers (azureml-inference-server-http 1.5.1, server/aml_blueprint.py `register`). Microsoft does not
document this. If another version of the server refuses, the service still starts, and answers on /score alone.
"""

import logging
import re

from flask import Response, request
from werkzeug.exceptions import HTTPException

from ..api.http import HttpResponse
from ..api.paths import CHAT_COMPLETIONS, COMPLETIONS, INFO, MODELS, SCORE
from ..api.response import error_response
from ..errors import MethodNotAllowed, NotFound
from .log_escape import ControlCharacterFilter

logger = logging.getLogger(__name__)
SERVER_LOGGER = "azmlinfsrv"
# The scorer refuses a method with an error object; the server would answer in another form.
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
RULES = (*CHAT_COMPLETIONS, *COMPLETIONS, MODELS, f"{MODELS}/<path:name>", INFO)


def add_openai_routes() -> None:
    """Adds the URL rules. Logs a warning if the server does not take them.

    One of the rules accepts any name of a model, and the server logs this name as the caller wrote it.
    """
    logging.getLogger(SERVER_LOGGER).addFilter(ControlCharacterFilter())
    try:
        # The server is imported here, because batch endpoints and commands run without it.
        from azureml_inference_server_http.server.routes import handle_score, main_blueprint

        main_blueprint.app_errorhandler(404)(_answer_unknown_path)
        main_blueprint.app_errorhandler(405)(_answer_other_method)
        for rule in RULES:
            main_blueprint.add_url_rule(
                rule,
                endpoint=re.sub(r"\W+", "_", rule),
                view_func=lambda name=None: handle_score(),
                methods=METHODS,
                strict_slashes=False,
                provide_automatic_options=False,
            )
    except Exception as error:  # whatever an unknown version of the server raises
        logger.warning("only /score answers: the server took no other paths (%s: %s)", type(error).__name__, error)


def _answer_unknown_path(error: HTTPException) -> Response:
    return _flask_response(error_response(NotFound("path_not_found", f"there is nothing at this path; use {SCORE}")))


def _answer_other_method(error: HTTPException) -> Response:
    allowed = next((name for name in getattr(error, "valid_methods", None) or [] if name in ("GET", "POST")), "POST")
    return _flask_response(error_response(MethodNotAllowed(request.method, allowed)))


def _flask_response(response: HttpResponse) -> Response:
    assert isinstance(response.body, bytes)
    return Response(response.body, response.status, response.headers)
