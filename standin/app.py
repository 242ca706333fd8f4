"""The whole stand-in: which part answers what."""

from collections.abc import Callable
from pathlib import Path

from .batch import BatchEndpoints
from .certificate import write_certificate
from .gateway import Gateway
from .online import OnlineEndpoints
from .operations import Operations
from .storage import Storage
from .wire import Answer, Request, Routes, Server
from .workspace import Workspace


class StandIn:
    """Everything it keeps lies below `folder`."""

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
        # The workspace last: its paths are the most general.
        for part in (operations, self._online, self._batch, workspace):
            part.routes(routes)
        self.server = Server(_by_host(routes, storage), self.certificate, key, port)

    def stop(self) -> None:
        """Every service and job; from another thread than the one that serves, or after it."""
        self._online.stop()
        self._batch.stop()


def _by_host(routes: Routes, storage: Storage) -> Callable[[Request], Answer]:
    return lambda request: storage.handle(request) if ".blob." in request.host else routes(request)


def _metadata(request: Request) -> Answer:
    """Where a cloud's services are: the SDK asks for it by ARM_CLOUD_METADATA_URL."""
    cloud = {
        "name": "StandIn",
        "portal": request.base,
        "resourceManager": request.base,
        "authentication": {"loginEndpoint": request.base, "audiences": [request.base]},
        "suffixes": {"storage": request.base.partition("//")[2]},
    }
    return Answer(200, [cloud])
