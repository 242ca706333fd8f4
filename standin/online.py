"""Online endpoints and their deployments in the control plane."""

import secrets
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .container import Container, copy_into, environment, mount_model
from .operations import Operations
from .rules import check_assets, check_name, check_traffic, seconds, startup_seconds
from .wire import ApiError, Request, Response, Routes
from .workspace import LOCATION, WORKSPACE, Document, Workspace

ENDPOINT = WORKSPACE + "/onlineEndpoints/{name}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
IN_PROGRESS_STATES = ("Creating", "Updating")


class Listener(Protocol):
    """The server at an endpoint's address."""

    url: str

    def stop(self) -> None: ...


@dataclass
class Deployment:
    """A deployment: the document that the SDK sent, and its running container."""

    document: Document
    container: Container | None = None
    in_flight: int = 0

    @property
    def properties(self) -> dict[str, Any]:
        properties: dict[str, Any] = self.document["properties"]
        return properties

    @property
    def max_in_flight(self) -> int:
        """Returns the number of requests in flight before 429: by Azure's documentation, twice the concurrency."""
        settings = self.properties.get("requestSettings") or {}
        instances = (self.document.get("sku") or {}).get("capacity") or 1
        return int(2 * settings.get("maxConcurrentRequestsPerInstance", 1) * instances)

    @property
    def timeout(self) -> float:
        """Returns the timeout of a request in seconds."""
        return seconds((self.properties.get("requestSettings") or {}).get("requestTimeout", "PT5S"))


@dataclass
class Endpoint:
    """An endpoint: the document that the SDK sent, its keys, its deployments and the server at its address."""

    document: Document
    keys: dict[str, str]
    deployments: dict[str, Deployment] = field(default_factory=dict)
    gateway: Listener | None = None

    @property
    def traffic(self) -> dict[str, int]:
        traffic: dict[str, int] = self.document["properties"].setdefault("traffic", {})
        return traffic


class OnlineEndpoints:
    """All online endpoints. `listen` starts the server at the address of an endpoint."""

    def __init__(
        self, folder: Path, workspace: Workspace, operations: Operations, listen: Callable[[Endpoint], Listener]
    ) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._containers: set[Container] = set()
        self._stopped = False
        self._lock = threading.Lock()  # guards containers that start, are replaced and are deleted at the same time
        self._listen = listen
        self._folder = folder
        self._workspace = workspace
        self._operations = operations

    def add_routes(self, routes: Routes) -> None:
        routes.add("GET", WORKSPACE + "/onlineEndpoints", self._list)
        routes.add("GET", ENDPOINT, lambda request, name, **_: Response(200, self._find(name).document))
        routes.add("PUT", ENDPOINT, self._put)
        routes.add("DELETE", ENDPOINT, self._delete)
        routes.add("POST", ENDPOINT + "/listKeys", lambda request, name, **_: Response(200, self._find(name).keys))
        routes.add("POST", ENDPOINT + "/regenerateKeys", self._regenerate)
        routes.add("GET", ENDPOINT + "/deployments", self._list_deployments)
        routes.add("GET", DEPLOYMENT, self._get_deployment)
        routes.add("PUT", DEPLOYMENT, self._put_deployment)
        routes.add("DELETE", DEPLOYMENT, self._delete_deployment)
        routes.add("POST", DEPLOYMENT + "/getLogs", self._logs)

    def _find(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            raise ApiError(404, "ResourceNotFound", f"there is no online endpoint {name}")
        return self._endpoints[name]

    def stop(self) -> None:
        """Stops every service, also one that is starting. The listeners end with the process."""
        with self._lock:
            self._stopped = True
        for container in list(self._containers):
            container.stop()

    def _list(self, request: Request, **_: str) -> Response:
        return Response(200, {"value": [endpoint.document for endpoint in self._endpoints.values()]})

    def _put(self, request: Request, name: str, **_: str) -> Response:
        check_name(name)
        sent = request.json
        endpoint = self._endpoints.get(name)
        check_traffic(sent["properties"].get("traffic") or {}, set(endpoint.deployments) if endpoint else set())
        if any((sent["properties"].get("mirrorTraffic") or {}).values()):
            raise ApiError(400, "BadRequest", "the stand-in does not mirror traffic")
        if sent["properties"]["authMode"].lower() == "amltoken":
            raise ApiError(400, "BadRequest", "the stand-in supports only keys and Microsoft Entra tokens (aad_token)")
        if endpoint is None:
            keys = {"primaryKey": secrets.token_urlsafe(24), "secondaryKey": secrets.token_urlsafe(24)}
            endpoint = self._endpoints[name] = Endpoint({}, keys)
            endpoint.gateway = self._listen(endpoint)
        url = endpoint.gateway.url if endpoint.gateway else ""
        address = {"scoringUri": f"{url}/score", "swaggerUri": f"{url}/swagger.json", "provisioningState": "Succeeded"}
        endpoint.document = {**sent, "id": request.path, "name": name, "location": LOCATION, "kind": "Managed"}
        endpoint.document["properties"] = {"traffic": {}, **sent["properties"], **address}
        return Response(200, endpoint.document)

    def _delete(self, request: Request, name: str, **_: str) -> Response:
        with self._lock:
            endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            return Response(204)
        if endpoint.gateway is not None:
            endpoint.gateway.stop()
        for deployment in endpoint.deployments.values():
            self._remove(deployment.container)
        return Response(200)

    def _regenerate(self, request: Request, name: str, **_: str) -> Response:
        key_name = "primaryKey" if request.json["keyType"].lower() == "primary" else "secondaryKey"
        self._find(name).keys[key_name] = secrets.token_urlsafe(24)  # the request also has the old key
        return Response(200, {})

    def _list_deployments(self, request: Request, name: str, **_: str) -> Response:
        return Response(200, {"value": [deployment.document for deployment in self._find(name).deployments.values()]})

    def _get_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        return Response(200, self._find_deployment(name, deployment).document)

    def _find_deployment(self, name: str, deployment: str) -> Deployment:
        existing = self._find(name).deployments.get(deployment)
        if existing is None:
            raise ApiError(404, "ResourceNotFound", f"the endpoint {name} has no deployment {deployment}")
        return existing

    def _put_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        check_name(deployment)
        endpoint, sent = self._find(name), request.json
        check_assets(sent["properties"], self._workspace)
        previous = endpoint.deployments.get(deployment)
        if previous is not None and previous.properties["provisioningState"] in IN_PROGRESS_STATES:
            raise ApiError(409, "Conflict", f"{deployment} is being created or updated")
        document = {**sent, "id": request.path, "name": deployment, "location": LOCATION}
        defaults = {"endpointComputeType": "Managed", "scaleSettings": {"scaleType": "Default"}}
        state = "Creating" if previous is None else "Updating"
        document["properties"] = {**defaults, **sent["properties"], "provisioningState": state}
        # The previous container serves until the new one is ready.
        new = Deployment(document, previous.container if previous else None)
        endpoint.deployments[deployment] = new
        return self._operations.begin(request, lambda: self._start(name, deployment, new), document)

    def _start(self, name: str, deployment: str, new: Deployment) -> None:
        """Starts the container of `new`, and removes the previous one. Raises ApiError."""
        try:
            container = self._run(name, deployment, new)
        except BaseException:
            new.properties["provisioningState"] = "Failed"
            raise
        with self._lock:
            is_current = self._is_current(name, deployment, new)
            obsolete = new.container if is_current else container
            if is_current:
                new.container = container
        self._remove(obsolete)
        if not is_current:
            raise _deleted(deployment)
        new.properties["provisioningState"] = "Succeeded"

    def _is_current(self, name: str, deployment: str, new: Deployment) -> bool:
        """Returns whether nothing deleted or replaced `new` since its request."""
        endpoint = self._endpoints.get(name)
        return endpoint is not None and endpoint.deployments.get(deployment) is new

    def _run(self, name: str, deployment: str, new: Deployment) -> Container:
        """Returns a container that is ready. Raises ApiError."""
        properties, folder = new.properties, self._folder / name / uuid.uuid4().hex
        code = copy_into(self._workspace.asset_path(properties["codeConfiguration"]["codeId"]), folder / "code")
        model = properties.get("model")
        model_dir = model and mount_model(self._workspace.asset_path(model), model, folder / "azureml-models")
        script = properties["codeConfiguration"]["scoringScript"]
        variables = environment(code, script, model_dir, properties.get("environmentVariables") or {})
        with self._lock:
            if self._stopped:
                raise ApiError(503, "ServiceUnavailable", "the stand-in is stopping")
            container = Container(folder, script, variables)
            self._containers.add(container)

        def is_current() -> bool:
            return self._is_current(name, deployment, new)

        if container.wait_until_ready(startup_seconds(properties.get("readinessProbe") or {}), is_current):
            return container
        container.stop()
        log = container.log(100)
        if new.container is None and is_current():
            new.container = container  # the client may ask for its log
        else:
            self._remove(container)
        if not is_current():
            raise _deleted(deployment)
        raise ApiError(400, "ResourceNotReady", f"User container has crashed or terminated:\n{log}")

    def _remove(self, container: Container | None) -> None:
        if container is not None:
            container.stop()
            shutil.rmtree(container.folder, ignore_errors=True)
            self._containers.discard(container)

    def _delete_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        endpoint = self._find(name)
        if endpoint.traffic.get(deployment):
            raise ApiError(400, "BadRequest", f"the deployment {deployment} has live traffic: set it to 0 first")
        with self._lock:
            deleted = endpoint.deployments.pop(deployment, None)
        if deleted is not None:
            self._remove(deleted.container)
        return Response(204 if deleted is None else 200)

    def _logs(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        container = self._find_deployment(name, deployment).container
        lines = (request.json or {}).get("tail") or 1000
        return Response(200, {"content": "" if container is None else container.log(lines)})


def _deleted(deployment: str) -> ApiError:
    return ApiError(409, "Conflict", f"{deployment} was deleted while it started")
