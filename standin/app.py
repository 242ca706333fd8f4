"""The whole stand-in: its parts, and which part answers which request."""

from collections.abc import Callable
from pathlib import Path

from .batch import BatchEndpoints
from .certificate import write_certificate
from .gateway import Gateway
from .online import OnlineEndpoints
from .operations import Operations
from .storage import Storage
from .wire import Request, Response, Routes, Server
from .workspace import Workspace


class StandIn:
    """A stand-in whose files are all below `folder`."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.certificate, key = write_certificate(folder)
        storage, operations = Storage(folder / "storage"), Operations()
        workspace = Workspace(storage)
        self._online = OnlineEndpoints(
            folder / "online", workspace, operations, lambda endpoint: Gateway(endpoint, self.certificate, key)
        )
        self._batch = BatchEndpoints(folder / "batch", workspace, storage)
        routes = Routes()
        routes.add("GET", "/metadata/endpoints", _metadata)
        # The workspace comes last because its paths are the most general.
        for part in (operations, self._online, self._batch, workspace):
            part.add_routes(routes)
        self.server = Server(_by_host(routes, storage), self.certificate, key, port)

    def stop(self) -> None:
        """Stops every service and job. Must not run in the thread of `serve_forever` while that serves."""
        self._online.stop()
        self._batch.stop()


def _by_host(routes: Routes, storage: Storage) -> Callable[[Request], Response]:
    return lambda request: storage.handle(request) if ".blob." in request.host else routes(request)


def _metadata(request: Request) -> Response:
    """Returns the addresses of a cloud's services. ARM_CLOUD_METADATA_URL makes the SDK ask for them here."""
    cloud = {
        "name": "StandIn",
        "portal": request.base_url,
        "resourceManager": request.base_url,
        "authentication": {"loginEndpoint": request.base_url, "audiences": [request.base_url]},
        "suffixes": {"storage": request.base_url.partition("//")[2]},
    }
    return Response(200, [cloud])
