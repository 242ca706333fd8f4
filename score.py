"""What Azure's inference server runs: init() once, run() for every request to /score."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # Azure mounts this folder, it does not install it

from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import g

from llava_serving.api.body import HttpRequest
from llava_serving.api.connection import Connection
from llava_serving.service.startup import start


def init() -> None:
    global scorer
    # The logger that the server prints and, where it is enabled, sends to Application Insights.
    logging.getLogger("llava_serving").parent = logging.getLogger("azmlinfsrv.print")
    scorer = start()


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    headers = {name.lower(): value for name, value in request.headers.items()}
    headers.setdefault("x-request-id", g.request_id)  # which the server makes up and sends back
    connection = Connection(request.environ.get("gunicorn.socket"))
    reply = scorer.score(HttpRequest(request.method, headers, request.stream, connection))
    return AMLResponse(reply.body, reply.status, reply.headers)
