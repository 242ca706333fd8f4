"""The workspace: its datastore, and the models, environments, code and computers that are registered in it."""

import base64
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from .storage import Storage
from .wire import Answer, Refused, Request, Routes

WORKSPACE = (
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices"
    "/workspaces/{workspace}"
)
VERSIONED = ("models", "environments", "codes", "data")
ACCOUNT, CONTAINER, DATASTORE = "llavastandin", "azureml-blobstore", "workspaceblobstore"
LOCATION = "this-machine"
Document = dict[str, Any]


class Workspace:
    """Documents as the SDK put them, by kind, name and version."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._assets: dict[str, dict[str, dict[str, Document]]] = {kind: {} for kind in VERSIONED}
        self._computes: dict[str, Document] = {}
        self._lock = threading.Lock()

    def routes(self, routes: Routes) -> None:
        routes.add("GET", WORKSPACE, self._workspace)
        routes.add("GET", "/discovery", lambda request: Answer(200, {"api": request.base}))
        routes.add(
            "GET", WORKSPACE + "/datastores", lambda request, **_: Answer(200, {"value": [self._datastore(request)]})
        )
        routes.add("GET", WORKSPACE + "/datastores/{name}", lambda request, **_: Answer(200, self._datastore(request)))
        secret = {"secretsType": "Sas", "sasToken": "sig=unchecked"}
        routes.add("POST", WORKSPACE + "/datastores/{name}/listSecrets", lambda request, **_: Answer(200, secret))
        routes.add("PUT", WORKSPACE + "/{kind}/{name}/versions/{version}", self._put)
        routes.add("GET", WORKSPACE + "/{kind}/{name}/versions/{version}", self._get)
        routes.add("GET", WORKSPACE + "/{kind}/{name}/versions", self._list)
        routes.add("POST", WORKSPACE + "/codes/{name}/versions/{version}/startPendingUpload", self._upload)
        routes.add("GET", WORKSPACE + "/computes/{name}", self._compute)
        routes.add("PUT", WORKSPACE + "/computes/{name}", self._put_compute)
        for kind in ("models", "environments", "data"):
            routes.add(
                "GET",
                f"{WORKSPACE}/{kind}/{{name}}",
                lambda request, kind=kind, **n: self._container(request, kind, n["name"]),
            )

    def files(self, asset_id: str) -> Path:
        """The folder or file of a model, code or data asset, by its ARM id. Raises Refused."""
        properties = self.asset(asset_id)["properties"]
        uri = next((properties[name] for name in ("modelUri", "codeUri", "dataUri") if properties.get(name)), None)
        if uri is None:
            raise Refused(400, "BadArgument", f"{asset_id} has no files")
        return self.stored(uri)

    def asset(self, asset_id: str) -> Document:
        """What is registered under an ARM id. Raises Refused."""
        match = re.search(r"/(\w+)/([^/]+)/versions/([^/]+)$", asset_id)
        if match is None:
            raise Refused(400, "BadArgument", f"{asset_id} is no asset of this workspace")
        return self._find(*match.groups())

    def stored(self, uri: str) -> Path:
        """Where what an azureml:// or blob URI, or a data asset's id, names is on the disk."""
        if re.search(r"/workspaces/[^/]+/data/[^/]+/versions/[^/]+$", uri):
            return self.files(uri)
        datastore = re.search(r"datastores/[^/]+/paths/(.*)$", uri)
        if datastore:
            return self._storage.path(CONTAINER, datastore[1])
        blob = re.match(r"https://[^/]+/([^/?]+)/?([^?]*)", uri)
        if blob is None:
            raise Refused(400, "BadArgument", f"the stand-in has no {uri}")
        return self._storage.path(blob[1], blob[2])

    def _find(self, kind: str, name: str, version: str) -> Document:
        try:
            return self._assets[kind][name][version]
        except KeyError:
            raise Refused(404, "NotFound", f"there is no {name}:{version} among the {kind}") from None

    def _workspace(self, request: Request, **names: str) -> Answer:
        properties = {"workspaceId": str(uuid.UUID(int=1)), "discoveryUrl": f"{request.base}/discovery"}
        return Answer(
            200, {"id": request.path, "name": names["workspace"], "location": LOCATION, "properties": properties}
        )

    def _datastore(self, request: Request) -> Document:
        properties = {
            "datastoreType": "AzureBlob",
            "accountName": ACCOUNT,
            "containerName": CONTAINER,
            "endpoint": request.base.partition("//")[2],
            "protocol": "https",
            "isDefault": True,
            "credentials": {"credentialsType": "Sas"},
        }
        store = request.path.partition("/datastores")[0] + f"/datastores/{DATASTORE}"
        return {"id": store, "name": DATASTORE, "properties": properties}

    def _put(self, request: Request, kind: str, name: str, version: str, **_: str) -> Answer:
        given = request.json["properties"]
        filled = {part: given.get(part) or {} for part in ("tags", "properties", "flavors")}
        properties = given | filled | {"provisioningState": "Succeeded"}
        document = {"id": request.path, "name": version, "type": kind, "properties": properties}
        with self._lock:
            self._assets[kind].setdefault(name, {})[version] = document
        return Answer(201, document)

    def _get(self, request: Request, kind: str, name: str, version: str, **_: str) -> Answer:
        return Answer(200, self._find(kind, name, version))

    def _list(self, request: Request, kind: str, name: str, **_: str) -> Answer:
        """Newest first; code is asked for by its hash, and always uploaded again."""
        versions = [] if "hash" in request.query else list(self._assets[kind].get(name, {}).values())[::-1]
        return Answer(200, {"value": versions})

    def _container(self, request: Request, kind: str, name: str) -> Answer:
        versions = self._assets[kind].get(name)
        if not versions:
            raise Refused(404, "NotFound", f"there is no {name} among the {kind}")
        latest = list(versions)[-1]
        following = str(max((int(v) for v in versions if v.isdecimal()), default=0) + 1)
        properties = {"latestVersion": latest, "nextVersion": following}
        return Answer(200, {"id": request.path, "name": name, "properties": properties})

    def _upload(self, request: Request, name: str, version: str, **_: str) -> Answer:
        host = request.base.partition("//")[2]
        container = base64.b32encode(uuid.uuid4().bytes).decode().rstrip("=").lower()
        uri = f"https://{ACCOUNT}.blob.{host}/{container}"
        reference = {
            "blobUri": uri,
            "storageAccountArmId": "",
            "credential": {"credentialType": "SAS", "sasUri": f"{uri}?sig=unchecked"},
        }
        return Answer(
            200,
            {
                "pendingUploadId": None,
                "pendingUploadType": "TemporaryBlobReference",
                "blobReferenceForConsumption": reference,
            },
        )

    def _compute(self, request: Request, name: str, **_: str) -> Answer:
        if name not in self._computes:
            raise Refused(404, "NotFound", f"there is no compute {name}")
        return Answer(200, self._computes[name])

    def _put_compute(self, request: Request, name: str, **_: str) -> Answer:
        given = request.json
        properties = given["properties"] | {"provisioningState": "Succeeded"}
        document = {"id": request.path, "name": name, "location": LOCATION, "properties": properties}
        self._computes[name] = document
        return Answer(200, document)
