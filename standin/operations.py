"""Long-running operations of Azure Resource Manager: the client polls the state of each until it ends."""

import threading
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from .wire import ApiError, Request, Response, Routes


class Operations:
    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}

    def add_routes(self, routes: Routes) -> None:
        routes.add("GET", "/operations/{name}", self._state)

    def _state(self, request: Request, name: str) -> Response:
        if name not in self._states:
            raise ApiError(404, "NotFound", f"there is no operation {name}")
        return Response(200, self._states[name], {"Retry-After": "1"})

    def begin(self, request: Request, work: Callable[[], None], document: Any) -> Response:
        """Runs `work` in a thread and returns the response to the request that began it.

        The operation fails if `work` raises.
        """
        name = uuid.uuid4().hex
        self._states[name] = {"status": "InProgress"}
        threading.Thread(target=self._run, args=(name, work), daemon=True).start()
        headers = {"Azure-AsyncOperation": f"{request.base_url}/operations/{name}", "Retry-After": "1"}
        return Response(201, document, headers)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
            self._states[name] = {"status": "Succeeded"}
        except ApiError as error:
            self._states[name] = {"status": "Failed", "error": {"code": error.code, "message": error.message}}
        except Exception as error:
            traceback.print_exc()
            self._states[name] = {"status": "Failed", "error": {"code": "InternalServerError", "message": repr(error)}}
