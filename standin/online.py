"""Online endpoints and their deployments: what the control plane is asked for."""

import secrets
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .container import Container, copy, environment, mount_model
from .operations import Operations
from .rules import check_assets, check_name, check_traffic, patience, seconds
from .wire import Answer, Refused, Request, Routes
from .workspace import LOCATION, WORKSPACE, Document, Workspace

ENDPOINT = WORKSPACE + "/onlineEndpoints/{name}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
UNDER_WAY = ("Creating", "Updating")


class Listener(Protocol):
    """At an endpoint's address."""

    url: str

    def stop(self) -> None: ...


@dataclass
class Deployment:
    document: Document
    container: Container | None = None
    in_flight: int = 0

    @property
    def properties(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["properties"]
        return found

    @property
    def admitted(self) -> int:
        """Requests in flight before 429, as documented: twice the concurrency, for each instance."""
        settings = self.properties.get("requestSettings") or {}
        instances = (self.document.get("sku") or {}).get("capacity") or 1
        return int(2 * settings.get("maxConcurrentRequestsPerInstance", 1) * instances)

    @property
    def timeout(self) -> float:
        """Seconds for a request."""
        return seconds((self.properties.get("requestSettings") or {}).get("requestTimeout", "PT5S"))


@dataclass
class Endpoint:
    document: Document
    keys: dict[str, str]
    deployments: dict[str, Deployment] = field(default_factory=dict)
    gateway: Listener | None = None

    @property
    def traffic(self) -> dict[str, int]:
        found: dict[str, int] = self.document["properties"].setdefault("traffic", {})
        return found


class OnlineEndpoints:
    """Each has its own address, where what `listen` returns answers."""

    def __init__(
        self, folder: Path, workspace: Workspace, operations: Operations, listen: Callable[[Endpoint], Listener]
    ) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._containers: set[Container] = set()
        self._stopped = False
        self._lock = threading.Lock()  # for what is started, replaced and deleted at the same time
        self._listen = listen
        self._folder = folder
        self._workspace = workspace
        self._operations = operations

    def routes(self, routes: Routes) -> None:
        routes.add("GET", WORKSPACE + "/onlineEndpoints", self._list)
        routes.add("GET", ENDPOINT, lambda request, name, **_: Answer(200, self._find(name).document))
        routes.add("PUT", ENDPOINT, self._put)
        routes.add("DELETE", ENDPOINT, self._delete)
        routes.add("POST", ENDPOINT + "/listKeys", lambda request, name, **_: Answer(200, self._find(name).keys))
        routes.add("POST", ENDPOINT + "/regenerateKeys", self._regenerate)
        routes.add("GET", ENDPOINT + "/deployments", self._list_deployments)
        routes.add("GET", DEPLOYMENT, self._get_deployment)
        routes.add("PUT", DEPLOYMENT, self._put_deployment)
        routes.add("DELETE", DEPLOYMENT, self._delete_deployment)
        routes.add("POST", DEPLOYMENT + "/getLogs", self._logs)

    def _find(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            raise Refused(404, "ResourceNotFound", f"there is no online endpoint {name}")
        return self._endpoints[name]

    def stop(self) -> None:
        """Every service, those that start among them; the listeners end with the process."""
        with self._lock:
            self._stopped = True
        for container in list(self._containers):
            container.stop()

    def _list(self, request: Request, **_: str) -> Answer:
        return Answer(200, {"value": [endpoint.document for endpoint in self._endpoints.values()]})

    def _put(self, request: Request, name: str, **_: str) -> Answer:
        check_name(name)
        given = request.json
        known = self._endpoints.get(name)
        check_traffic(given["properties"].get("traffic") or {}, set(known.deployments) if known else set())
        if any((given["properties"].get("mirrorTraffic") or {}).values()):
            raise Refused(400, "BadRequest", "the stand-in mirrors no traffic")
        if given["properties"]["authMode"].lower() == "amltoken":
            raise Refused(400, "BadRequest", "the stand-in knows keys and Microsoft Entra tokens (aad_token) alone")
        if known is None:
            keys = {"primaryKey": secrets.token_urlsafe(24), "secondaryKey": secrets.token_urlsafe(24)}
            known = self._endpoints[name] = Endpoint({}, keys)
            known.gateway = self._listen(known)
        url = known.gateway.url if known.gateway else ""
        address = {"scoringUri": f"{url}/score", "swaggerUri": f"{url}/swagger.json", "provisioningState": "Succeeded"}
        known.document = {**given, "id": request.path, "name": name, "location": LOCATION, "kind": "Managed"}
        known.document["properties"] = {"traffic": {}, **given["properties"], **address}
        return Answer(200, known.document)

    def _delete(self, request: Request, name: str, **_: str) -> Answer:
        with self._lock:
            endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            return Answer(204)
        if endpoint.gateway is not None:
            endpoint.gateway.stop()
        for deployment in endpoint.deployments.values():
            self._end(deployment.container)
        return Answer(200)

    def _regenerate(self, request: Request, name: str, **_: str) -> Answer:
        which = "primaryKey" if request.json["keyType"].lower() == "primary" else "secondaryKey"
        self._find(name).keys[which] = secrets.token_urlsafe(24)  # the SDK sends the old value along
        return Answer(200, {})

    def _list_deployments(self, request: Request, name: str, **_: str) -> Answer:
        return Answer(200, {"value": [deployment.document for deployment in self._find(name).deployments.values()]})

    def _get_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        return Answer(200, self._deployment(name, deployment).document)

    def _deployment(self, name: str, deployment: str) -> Deployment:
        found = self._find(name).deployments.get(deployment)
        if found is None:
            raise Refused(404, "ResourceNotFound", f"the endpoint {name} has no deployment {deployment}")
        return found

    def _put_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        check_name(deployment)
        endpoint, given = self._find(name), request.json
        check_assets(given["properties"], self._workspace)
        before = endpoint.deployments.get(deployment)
        if before is not None and before.properties["provisioningState"] in UNDER_WAY:
            raise Refused(409, "Conflict", f"{deployment} is being created or updated")
        document = {**given, "id": request.path, "name": deployment, "location": LOCATION}
        defaults = {"endpointComputeType": "Managed", "scaleSettings": {"scaleType": "Default"}}
        state = "Creating" if before is None else "Updating"
        document["properties"] = {**defaults, **given["properties"], "provisioningState": state}
        # What there is serves until its successor is ready.
        made = Deployment(document, before.container if before else None)
        endpoint.deployments[deployment] = made
        return self._operations.begin(request, lambda: self._start(name, deployment, made), document)

    def _start(self, name: str, deployment: str, made: Deployment) -> None:
        try:
            container = self._run(name, deployment, made)
        except BaseException:
            made.properties["provisioningState"] = "Failed"
            raise
        with self._lock:
            is_wanted = self._is_current(name, deployment, made)
            over = made.container if is_wanted else container
            if is_wanted:
                made.container = container
        self._end(over)  # what served before, or what nobody wants any more
        if not is_wanted:
            raise _deleted(deployment)
        made.properties["provisioningState"] = "Succeeded"

    def _is_current(self, name: str, deployment: str, made: Deployment) -> bool:
        endpoint = self._endpoints.get(name)
        return endpoint is not None and endpoint.deployments.get(deployment) is made

    def _run(self, name: str, deployment: str, made: Deployment) -> Container:
        """The service, ready. Raises Refused."""
        properties, folder = made.properties, self._folder / name / uuid.uuid4().hex
        code = copy(self._workspace.files(properties["codeConfiguration"]["codeId"]), folder / "code")
        model = properties.get("model")
        mounted = model and mount_model(self._workspace.files(model), model, folder / "azureml-models")
        script = properties["codeConfiguration"]["scoringScript"]
        variables = environment(code, script, mounted, properties.get("environmentVariables") or {})
        with self._lock:
            if self._stopped:
                raise Refused(503, "ServiceUnavailable", "the stand-in is ending")
            container = Container(folder, script, variables)
            self._containers.add(container)

        def is_wanted() -> bool:
            return self._is_current(name, deployment, made)

        if container.wait_until_ready(patience(properties.get("readinessProbe") or {}), is_wanted):
            return container
        container.stop()
        told = container.log(100)
        if made.container is None and is_wanted():
            made.container = container  # whose log is asked for
        else:
            self._end(container)
        if not is_wanted():
            raise _deleted(deployment)
        raise Refused(400, "ResourceNotReady", f"User container has crashed or terminated:\n{told}")

    def _end(self, container: Container | None) -> None:
        if container is not None:
            container.stop()
            shutil.rmtree(container.folder, ignore_errors=True)
            self._containers.discard(container)

    def _delete_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        endpoint = self._find(name)
        if endpoint.traffic.get(deployment):
            raise Refused(400, "BadRequest", f"the deployment {deployment} has live traffic: set it to 0 first")
        with self._lock:
            gone = endpoint.deployments.pop(deployment, None)
        if gone is not None:
            self._end(gone.container)
        return Answer(204 if gone is None else 200)

    def _logs(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        container = self._deployment(name, deployment).container
        lines = (request.json or {}).get("tail") or 1000
        return Answer(200, {"content": "" if container is None else container.log(lines)})


def _deleted(deployment: str) -> Refused:
    return Refused(409, "Conflict", f"{deployment} was deleted while it started")
