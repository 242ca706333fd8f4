"""The part of Azure Blob Storage with which the SDK uploads code, models and inputs and downloads results."""

from pathlib import Path
from urllib.parse import unquote
from xml.sax.saxutils import escape

from .wire import ApiError, Request, Response

VERSION = {"x-ms-version": "2021-12-02", "ETag": '"0x1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


class Storage:
    """Blobs as files below `folder`, with a folder for each container. It does not check signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata: dict[str, dict[str, str]] = {}
        self._blocks: dict[tuple[str, str], bytes] = {}

    def path(self, container: str, blob: str = "") -> Path:
        """Returns the path of a blob or of a folder. Raises ApiError for a name that leads out of the container."""
        path = (self.folder / container / blob).resolve()
        if not path.is_relative_to(self.folder.resolve() / container):
            raise ApiError(400, "InvalidUri", "the name of the blob leads out of its container")
        return path

    def handle(self, request: Request) -> Response:
        """Answers a request to https://ACCOUNT.blob.localhost/CONTAINER/BLOB."""
        container, _, blob = unquote(request.path).lstrip("/").partition("/")
        if request.method not in ("GET", "HEAD", "PUT") or (not blob and request.method != "GET"):
            raise ApiError(405, "UnsupportedHttpVerb", "the stand-in does not create containers or delete blobs")
        if not blob:
            return self._list(container, request.query.get("prefix", ""))
        path, component = self.path(container, blob), request.query.get("comp")
        if request.method == "PUT":
            return self._put(request, path, component)
        if not path.is_file():
            raise ApiError(404, "BlobNotFound", "the specified blob does not exist")
        if request.method == "HEAD":
            metadata = {f"x-ms-meta-{name}": value for name, value in self._metadata.get(str(path), {}).items()}
            return Response(200, None, _properties(path) | metadata)
        return _content(path, request.headers.get("x-ms-range") or request.headers.get("Range"))

    def _put(self, request: Request, path: Path, component: str | None) -> Response:
        if component == "metadata":
            headers = {name.lower(): value for name, value in request.headers.items()}
            prefix = "x-ms-meta-"
            self._metadata[str(path)] = {n.removeprefix(prefix): v for n, v in headers.items() if n.startswith(prefix)}
            return Response(200, None, VERSION)
        if component == "block":
            self._blocks[str(path), request.query["blockid"]] = request.body
            return Response(201, None, VERSION)
        if component not in (None, "blocklist"):
            raise ApiError(400, "InvalidQueryParameterValue", f"the stand-in has no comp={component}")
        body = request.body
        if component == "blocklist":
            ids = [
                unquote(line) for line in body.decode().replace("<", "\n<").split("\n") if line.startswith("<Latest>")
            ]
            body = b"".join(self._blocks.pop((str(path), name.removeprefix("<Latest>"))) for name in ids)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return Response(201, None, VERSION | {"x-ms-request-server-encrypted": "true"})

    def _list(self, container: str, prefix: str) -> Response:
        root = self.path(container)
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
        names = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in files]
        blobs = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{size}</Content-Length>"
            "<BlobType>BlockBlob</BlobType></Properties><Metadata/></Blob>"
            for name, size in names
            if name.startswith(prefix)
        )
        xml = f'<?xml version="1.0"?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>'
        return Response(200, xml.encode(), VERSION | {"Content-Type": "application/xml"})


def _properties(path: Path) -> dict[str, str]:
    size = path.stat().st_size
    return VERSION | {"Content-Length": str(size), "x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes"}


def _content(path: Path, requested_range: str | None) -> Response:
    body = path.read_bytes()
    if not requested_range:
        return Response(200, body, VERSION | {"x-ms-blob-type": "BlockBlob"})
    start, _, end = requested_range.removeprefix("bytes=").partition("-")
    if int(start) >= len(body):
        raise ApiError(416, "InvalidRange", "the blob ends before the range", {"Content-Range": f"bytes */{len(body)}"})
    part = body[int(start) : int(end) + 1 if end else None]
    content_range = f"bytes {start}-{int(start) + len(part) - 1}/{len(body)}"
    return Response(206, part, VERSION | {"Content-Range": content_range, "x-ms-blob-type": "BlockBlob"})
