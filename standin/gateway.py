"""The gateway in front of an endpoint's services: keys, traffic, admission, timeouts and Azure's statuses."""

import hmac
import http.client
import random
import re
import threading
import uuid
from pathlib import Path
from urllib.parse import urlencode

from .online import Deployment, Endpoint
from .wire import ApiError, Request, Response, Routes, Server

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
CHUNK_BYTES = 64 * 1024
POSTED_PATHS = ("/score", "/v1/chat/completions", "/chat/completions", "/v1/completions")
MAX_CLIENT_ID = 40


class Gateway:
    """The server at an endpoint's scoring URI. It runs until `stop`."""

    def __init__(self, endpoint: Endpoint, certificate: Path, key: Path) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()  # guards the deployments' in_flight
        routes = Routes()
        for path in POSTED_PATHS:
            routes.add("POST", path, self._score)
            routes.add("OPTIONS", path, self._score)
        for path in ("/swagger.json", "/v1/models", "/info"):
            routes.add("GET", path, self._score)
        routes.add("GET", "/v1/models/{name}", lambda request, name: self._score(request))
        self._server = Server(routes, certificate, key, port=0)
        self.url = self._server.url
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _score(self, request: Request) -> Response:
        _check_key(request, self._endpoint)
        deployment, name = _choose_deployment(request, self._endpoint)
        with self._lock:
            if deployment.in_flight >= deployment.max_in_flight:
                message = f"{deployment.in_flight} requests are in flight"
                raise ApiError(429, "TooManyRequests", message, {"Retry-After": "1"})
            deployment.in_flight += 1
        try:
            return self._forward(request, deployment, name)
        except BaseException:
            self._release(deployment)
            raise

    def _release(self, deployment: Deployment) -> None:
        with self._lock:
            deployment.in_flight -= 1

    def _forward(self, request: Request, deployment: Deployment, name: str) -> Response:
        if deployment.container is None:
            raise ApiError(503, "ServiceUnavailable", f"{name} has not started")
        connection = http.client.HTTPConnection("127.0.0.1", deployment.container.port, timeout=deployment.timeout)
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        try:
            connection.request(request.method, path, request.body, _forwarded_headers(request))
            response = connection.getresponse()
        except TimeoutError:
            connection.close()
            raise ApiError(408, "RequestTimeout", "upstream request timeout") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ApiError(
                424, "FailedDependency", f"the container did not answer ({error})",
                {"ms-azureml-model-error-statuscode": "502", "ms-azureml-model-error-reason": "connection"},
            ) from None  # fmt: skip
        headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
        headers["azureml-model-deployment"] = name
        status = response.status
        if status >= 400:
            reason = f"model_error {response.reason}"
            headers |= {"ms-azureml-model-error-statuscode": str(status), "ms-azureml-model-error-reason": reason}
            status = 424

        def close() -> None:
            connection.close()
            self._release(deployment)

        return Response(status, iter(lambda: response.read1(CHUNK_BYTES), b""), headers, close)


def _forwarded_headers(request: Request) -> dict[str, str]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    headers = {name: value for name, value in headers.items() if name not in HOP_BY_HOP | {"host"}}
    headers |= {"x-request-id": str(uuid.uuid4()), "content-length": str(len(request.body))}
    if "x-ms-client-request-id" in headers:
        headers["x-ms-client-request-id"] = re.sub(r"[^\w-]", "", headers["x-ms-client-request-id"])[:MAX_CLIENT_ID]
    return headers


def _check_key(request: Request, endpoint: Endpoint) -> None:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if endpoint.document["properties"]["authMode"].lower() == "aadtoken" and scheme == "Bearer" and key:
        return  # the stand-in takes any token
    if scheme != "Bearer" or not any(
        hmac.compare_digest(key.encode(), valid_key.encode()) for valid_key in endpoint.keys.values()
    ):
        raise ApiError(401, "key_auth_access_denied", "the key is missing or wrong")


def _choose_deployment(request: Request, endpoint: Endpoint) -> tuple[Deployment, str]:
    """Returns the deployment that the request names, or else a random one by its share of the traffic."""
    name = request.headers.get("azureml-model-deployment")
    if name is None:
        shares = {name: share for name, share in endpoint.traffic.items() if share}
        if not shares:
            raise ApiError(404, "NotFound", "no deployment of the endpoint has traffic")
        name = random.choices(list(shares), list(shares.values()))[0]
    if name not in endpoint.deployments:
        raise ApiError(404, "NotFound", f"the endpoint has no deployment {name}")
    return endpoint.deployments[name], name
