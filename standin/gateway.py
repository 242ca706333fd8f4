"""What stands before the services: keys, traffic, admission, time, and the statuses that Azure makes of theirs."""

import hmac
import http.client
import random
import re
import threading
import uuid
from pathlib import Path
from urllib.parse import urlencode

from .online import Deployment, Endpoint
from .wire import Answer, Refused, Request, Routes, Server

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
PIECE = 64 * 1024
MAX_CLIENT_ID = 40


class Gateway:
    """What listens at an endpoint's scoring URI, until `stop`."""

    def __init__(self, endpoint: Endpoint, certificate: Path, key: Path) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()  # for the deployments' counts
        routes = Routes()
        routes.add("POST", "/score", self._score)
        routes.add("OPTIONS", "/score", self._score)
        routes.add("GET", "/swagger.json", self._score)
        self._server = Server(routes, certificate, key, port=0)
        self.url = self._server.url
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _score(self, request: Request) -> Answer:
        _check_key(request, self._endpoint)
        deployment, chosen = _choose(request, self._endpoint)
        with self._lock:
            if deployment.in_flight >= deployment.admitted:
                message = f"{deployment.in_flight} requests are in flight"
                raise Refused(429, "TooManyRequests", message, {"Retry-After": "1"})
            deployment.in_flight += 1
        try:
            return self._forward(request, deployment, chosen)
        except BaseException:
            self._leave(deployment)
            raise

    def _leave(self, deployment: Deployment) -> None:
        with self._lock:
            deployment.in_flight -= 1

    def _forward(self, request: Request, deployment: Deployment, chosen: str) -> Answer:
        if deployment.container is None:
            raise Refused(503, "ServiceUnavailable", f"{chosen} has not started")
        connection = http.client.HTTPConnection("127.0.0.1", deployment.container.port, timeout=deployment.timeout)
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers = {name: value for name, value in headers.items() if name not in HOP_BY_HOP | {"host"}}
        headers |= {"x-request-id": str(uuid.uuid4()), "content-length": str(len(request.body))}
        if "x-ms-client-request-id" in headers:
            headers["x-ms-client-request-id"] = re.sub(r"[^\w-]", "", headers["x-ms-client-request-id"])[:MAX_CLIENT_ID]
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        try:
            connection.request(request.method, path, request.body, headers)
            response = connection.getresponse()
        except TimeoutError:
            connection.close()
            raise Refused(408, "RequestTimeout", "upstream request timeout") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Refused(
                424, "FailedDependency", f"the container did not answer ({error})",
                {"ms-azureml-model-error-statuscode": "502", "ms-azureml-model-error-reason": "connection"},
            ) from None  # fmt: skip
        told = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
        told["azureml-model-deployment"] = chosen
        status = response.status
        if status >= 400:
            reason = f"model_error {response.reason}"
            told |= {"ms-azureml-model-error-statuscode": str(status), "ms-azureml-model-error-reason": reason}
            status = 424

        def close() -> None:
            connection.close()
            self._leave(deployment)

        return Answer(status, iter(lambda: response.read1(PIECE), b""), told, close)


def _check_key(request: Request, endpoint: Endpoint) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if endpoint.document["properties"]["authMode"].lower() == "aadtoken" and scheme == "Bearer" and given:
        return  # whose it is is not asked
    if scheme != "Bearer" or not any(
        hmac.compare_digest(given.encode(), key.encode()) for key in endpoint.keys.values()
    ):
        raise Refused(401, "key_auth_access_denied", "the key is missing or wrong")


def _choose(request: Request, endpoint: Endpoint) -> tuple[Deployment, str]:
    name = request.headers.get("azureml-model-deployment")
    if name is None:
        shares = {name: share for name, share in endpoint.traffic.items() if share}
        if not shares:
            raise Refused(404, "NotFound", "no deployment of the endpoint has traffic")
        name = random.choices(list(shares), list(shares.values()))[0]
    if name not in endpoint.deployments:
        raise Refused(404, "NotFound", f"the endpoint has no deployment {name}")
    return endpoint.deployments[name], name
