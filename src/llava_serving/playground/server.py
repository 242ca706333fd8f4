"""The web server of the page. It listens on this machine only."""

import os
import tempfile
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..client.endpoint import Endpoint
from .code_samples import Target
from .examples import IMAGES
from .handlers import Handlers
from .page import CSS, HEAD, build_page, theme

HOST = "127.0.0.1"
# The page loads nothing from elsewhere, whatever a model's answer asks for. gradio compiles its templates at run time.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'"
)


class SecurityHeaders:
    """Adds headers that keep the page from loading or being loaded elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "referrer-policy": "no-referrer"}
                added = [(name.encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


class OwnOrigin:
    """Refuses requests that a browser sends for a page of another site, such as uploads, which need no permission."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if headers.get("origin") not in (None, f"http://{headers.get('host')}"):
                await PlainTextResponse("a page of another site may not call the playground", 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def serve(endpoint: Endpoint, target: Target, port: int) -> None:
    """Serves the page until the process is told to end."""
    with tempfile.TemporaryDirectory(prefix="llava-playground-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploaded images end together with this process
        app = FastAPI(openapi_url=None)
        app.add_middleware(SecurityHeaders)
        app.add_middleware(OwnOrigin)
        # Another site's name that resolves to 127.0.0.1 gets no answer, so that no other page can spend the key.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        app = gr.mount_gradio_app(
            app,
            build_page(Handlers(endpoint, target, Path(folder))),
            path="",
            server_name=HOST,
            server_port=port,
            footer_links=[],
            run_history=False,
            allowed_paths=[str(IMAGES)],
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            theme=theme(),
            css=CSS,
            head=HEAD,
        )
        config = uvicorn.Config(app, host=HOST, port=port, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run()
