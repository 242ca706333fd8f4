"""ARM's long-running operations: begun at once, asked about until they are over."""

import threading
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from .wire import Answer, Refused, Request, Routes


class Operations:
    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}

    def routes(self, routes: Routes) -> None:
        routes.add("GET", "/operations/{name}", self._state)

    def _state(self, request: Request, name: str) -> Answer:
        if name not in self._states:
            raise Refused(404, "NotFound", f"there is no operation {name}")
        return Answer(200, self._states[name], {"Retry-After": "1"})

    def begin(self, request: Request, work: Callable[[], None], document: Any) -> Answer:
        """The answer that says it has begun; `work` fails the operation by raising."""
        name = uuid.uuid4().hex
        self._states[name] = {"status": "InProgress"}
        threading.Thread(target=self._run, args=(name, work), daemon=True).start()
        headers = {"Azure-AsyncOperation": f"{request.base}/operations/{name}", "Retry-After": "1"}
        return Answer(201, document, headers)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
            self._states[name] = {"status": "Succeeded"}
        except Refused as refused:
            self._states[name] = {"status": "Failed", "error": {"code": refused.code, "message": refused.message}}
        except Exception as error:
            traceback.print_exc()
            self._states[name] = {"status": "Failed", "error": {"code": "InternalServerError", "message": repr(error)}}
