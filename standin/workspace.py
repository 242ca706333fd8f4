"""The workspace: its datastore, and the models, environments, code and computes that are registered in it."""

import base64
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from .storage import Storage
from .wire import ApiError, Request, Response, Routes

WORKSPACE = (
    "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices"
    "/workspaces/{workspace}"
)
VERSIONED = ("models", "environments", "codes", "data")
ACCOUNT, CONTAINER, DATASTORE = "llavastandin", "azureml-blobstore", "workspaceblobstore"
LOCATION = "this-machine"
Document = dict[str, Any]


class Workspace:
    """The documents that the SDK sent, by kind, name and version."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._assets: dict[str, dict[str, dict[str, Document]]] = {kind: {} for kind in VERSIONED}
        self._computes: dict[str, Document] = {}
        self._lock = threading.Lock()

    def add_routes(self, routes: Routes) -> None:
        routes.add("GET", WORKSPACE, self._workspace)
        routes.add("GET", "/discovery", lambda request: Response(200, {"api": request.base_url}))
        routes.add("GET", WORKSPACE + "/datastores", self._list_datastores)
        routes.add("GET", WORKSPACE + "/datastores/{name}", self._get_datastore)
        secret = {"secretsType": "Sas", "sasToken": "sig=unchecked"}
        routes.add("POST", WORKSPACE + "/datastores/{name}/listSecrets", lambda request, **_: Response(200, secret))
        routes.add("PUT", WORKSPACE + "/{kind}/{name}/versions/{version}", self._put)
        routes.add("GET", WORKSPACE + "/{kind}/{name}/versions/{version}", self._get)
        routes.add("GET", WORKSPACE + "/{kind}/{name}/versions", self._list)
        routes.add("POST", WORKSPACE + "/codes/{name}/versions/{version}/startPendingUpload", self._start_upload)
        routes.add("GET", WORKSPACE + "/computes/{name}", self._compute)
        routes.add("PUT", WORKSPACE + "/computes/{name}", self._put_compute)
        for kind in ("models", "environments", "data"):
            routes.add(
                "GET",
                f"{WORKSPACE}/{kind}/{{name}}",
                lambda request, kind=kind, **n: self._container(request, kind, n["name"]),
            )

    def asset_path(self, asset_id: str) -> Path:
        """Returns the folder or file of a model, code or data asset, by its ARM id. Raises ApiError."""
        properties = self.find_asset(asset_id)["properties"]
        uri = next((properties[name] for name in ("modelUri", "codeUri", "dataUri") if properties.get(name)), None)
        if uri is None:
            raise ApiError(400, "BadArgument", f"{asset_id} has no files")
        return self.path_of_uri(uri)

    def find_asset(self, asset_id: str) -> Document:
        """Returns the document that is registered under an ARM id. Raises ApiError."""
        match = re.search(r"/(\w+)/([^/]+)/versions/([^/]+)$", asset_id)
        if match is None:
            raise ApiError(400, "BadArgument", f"{asset_id} is not an asset of this workspace")
        return self._find(*match.groups())

    def path_of_uri(self, uri: str) -> Path:
        """Returns the path of an azureml:// URI, a blob URI or the ARM id of a data asset. Raises ApiError."""
        if re.search(r"/workspaces/[^/]+/data/[^/]+/versions/[^/]+$", uri):
            return self.asset_path(uri)
        datastore = re.search(r"datastores/[^/]+/paths/(.*)$", uri)
        if datastore:
            return self._storage.path(CONTAINER, datastore[1])
        blob = re.match(r"https://[^/]+/([^/?]+)/?([^?]*)", uri)
        if blob is None:
            raise ApiError(400, "BadArgument", f"the stand-in has no {uri}")
        return self._storage.path(blob[1], blob[2])

    def _find(self, kind: str, name: str, version: str) -> Document:
        try:
            return self._assets[kind][name][version]
        except KeyError:
            raise ApiError(404, "NotFound", f"there is no {name}:{version} among the {kind}") from None

    def _workspace(self, request: Request, **names: str) -> Response:
        properties = {"workspaceId": str(uuid.UUID(int=1)), "discoveryUrl": f"{request.base_url}/discovery"}
        return Response(
            200, {"id": request.path, "name": names["workspace"], "location": LOCATION, "properties": properties}
        )

    def _list_datastores(self, request: Request, **_: str) -> Response:
        return Response(200, {"value": [self._datastore(request)]})

    def _get_datastore(self, request: Request, **_: str) -> Response:
        return Response(200, self._datastore(request))

    def _datastore(self, request: Request) -> Document:
        properties = {
            "datastoreType": "AzureBlob",
            "accountName": ACCOUNT,
            "containerName": CONTAINER,
            "endpoint": request.base_url.partition("//")[2],
            "protocol": "https",
            "isDefault": True,
            "credentials": {"credentialsType": "Sas"},
        }
        datastore_id = request.path.partition("/datastores")[0] + f"/datastores/{DATASTORE}"
        return {"id": datastore_id, "name": DATASTORE, "properties": properties}

    def _put(self, request: Request, kind: str, name: str, version: str, **_: str) -> Response:
        sent = request.json["properties"]
        defaults = {field: sent.get(field) or {} for field in ("tags", "properties", "flavors")}
        properties = sent | defaults | {"provisioningState": "Succeeded"}
        document = {"id": request.path, "name": version, "type": kind, "properties": properties}
        with self._lock:
            self._assets[kind].setdefault(name, {})[version] = document
        return Response(201, document)

    def _get(self, request: Request, kind: str, name: str, version: str, **_: str) -> Response:
        return Response(200, self._find(kind, name, version))

    def _list(self, request: Request, kind: str, name: str, **_: str) -> Response:
        """Returns the versions, newest first.

        Returns none for a code's hash, so that the SDK always uploads the code.
        """
        versions = [] if "hash" in request.query else list(self._assets[kind].get(name, {}).values())[::-1]
        return Response(200, {"value": versions})

    def _container(self, request: Request, kind: str, name: str) -> Response:
        versions = self._assets[kind].get(name)
        if not versions:
            raise ApiError(404, "NotFound", f"there is no {name} among the {kind}")
        latest = list(versions)[-1]
        next_version = str(max((int(v) for v in versions if v.isdecimal()), default=0) + 1)
        properties = {"latestVersion": latest, "nextVersion": next_version}
        return Response(200, {"id": request.path, "name": name, "properties": properties})

    def _start_upload(self, request: Request, name: str, version: str, **_: str) -> Response:
        host = request.base_url.partition("//")[2]
        container = base64.b32encode(uuid.uuid4().bytes).decode().rstrip("=").lower()
        uri = f"https://{ACCOUNT}.blob.{host}/{container}"
        reference = {
            "blobUri": uri,
            "storageAccountArmId": "",
            "credential": {"credentialType": "SAS", "sasUri": f"{uri}?sig=unchecked"},
        }
        return Response(
            200,
            {
                "pendingUploadId": None,
                "pendingUploadType": "TemporaryBlobReference",
                "blobReferenceForConsumption": reference,
            },
        )

    def _compute(self, request: Request, name: str, **_: str) -> Response:
        if name not in self._computes:
            raise ApiError(404, "NotFound", f"there is no compute {name}")
        return Response(200, self._computes[name])

    def _put_compute(self, request: Request, name: str, **_: str) -> Response:
        properties = request.json["properties"] | {"provisioningState": "Succeeded"}
        document = {"id": request.path, "name": name, "location": LOCATION, "properties": properties}
        self._computes[name] = document
        return Response(200, document)
