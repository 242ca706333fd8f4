"""The entry script of Azure's inference server: it calls init() once, and run() for every request."""

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # Azure mounts this folder, it does not install it

from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import g

from llava_serving.api.connection import Connection
from llava_serving.api.http import BEGAN, HttpRequest
from llava_serving.service.server_routes import add_openai_routes
from llava_serving.service.startup import start


def init() -> None:
    global scorer
    # The server prints this logger and sends it to Application Insights, if that is enabled.
    logging.getLogger("llava_serving").parent = logging.getLogger("azmlinfsrv.print")
    scorer = start()
    add_openai_routes()


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    headers = {name.lower(): value for name, value in request.headers.items()}
    headers.setdefault("x-request-id", g.request_id)  # the server generates the id and returns it
    connection = Connection(request.environ.get("gunicorn.socket"))
    began = request.environ.get(BEGAN, time.monotonic())
    path = request.path.rstrip("/")
    response = scorer.score(HttpRequest(request.method, headers, request.stream, connection, path, began))
    return AMLResponse(response.body, response.status, response.headers)
