"""gunicorn's threaded worker with another front: a thread gets a request once all of it has arrived.

gunicorn's own worker gives a thread to each connection that has sent a byte, so as many half-open connections as there
are threads silence it, the probe included. Replaced here are accepting, receiving, and the end of a connection. What a
thread does with a request is gunicorn's (gunicorn 27.0.1, workers/gthread.py).
"""

import contextlib
import errno
import os
import resource
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

from gunicorn.http import get_parser
from gunicorn.workers.gthread import TConn, ThreadWorker

from ..api.http import BEGAN
from ..errors import StartupError
from ..settings import Settings
from .client_connection import ClientConnection
from .incoming_request import IncomingRequest
from .malformed_request import answer_malformed
from .receiver import ReceiveLimits, Receiver

# Files and pipes that are no connections: weights, logs, the processes that read pictures.
SPARE_FILES = 256
# A stopping worker keeps connections without a request open for this long: the client may be sending its next one.
STOP_IDLE_SECONDS = 2.0
CHECK_SECONDS = 0.5  # between two looks at the time limits of all connections
MAX_ACCEPTS = 64  # in a row, before other connections have their turn
# The threads of requests without a body: the probes wait for no answer and for no client that reads slowly.
NUM_PROBE_THREADS = 2


class Worker(ThreadWorker):  # type: ignore[misc]
    """Accepts connections and receives requests in the main thread, and answers each request in a thread of a pool."""

    wsgi: Any

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl:
            raise RuntimeError("this server does no TLS; Azure's front end, or a proxy, ends TLS before it")

    def init_process(self) -> None:
        settings = _settings()
        self._write_seconds = settings.write_timeout_seconds
        self._limits = ReceiveLimits(
            max_connections=_allow_files(settings.max_connections),
            max_body_bytes=settings.max_body_bytes,
            max_held_bytes=settings.max_received_bytes,
            read_seconds=settings.read_timeout_seconds,
            receive_seconds=settings.receive_timeout_seconds,
            idle_seconds=self.cfg.keepalive,
        )
        self._thread = threading.local()  # the request of this thread
        self._probe_pool = ThreadPoolExecutor(NUM_PROBE_THREADS, thread_name_prefix="probe")
        super().init_process()

    def run(self) -> None:
        """Serves until gunicorn's signal handlers say stop, then ends what is under way."""
        self._receiver = Receiver(self._limits, self.poller, self._deliver)
        self._next_check = 0.0
        self.poller.register(self.method_queue.fileno(), 1, self.method_queue.run_callbacks)
        self.set_accept_enabled(True)
        while self.alive and self.is_parent_alive():
            self._serve_once(CHECK_SECONDS)
        self._refuse_connections()
        stopped = time.monotonic()
        while self._receiver.num_connections and time.monotonic() - stopped < self.cfg.graceful_timeout:
            self._serve_once(0.1)
            if time.monotonic() - stopped > STOP_IDLE_SECONDS:
                self._receiver.close_idle()
        self._receiver.close_all()
        self._probe_pool.shutdown(wait=False)
        self.tpool.shutdown(wait=False)

    def accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, client = listener.accept()
            except OSError as error:  # none is waiting, the client has left, or the process has no more files
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._receiver.close_oldest():
                    continue
                return
            self._receiver.accept(sock, client, listener.getsockname())

    def load_wsgi(self) -> None:
        """Loads the application, and tells it about each request what only the front knows."""
        super().load_wsgi()
        application = self.wsgi

        def with_facts(environ: dict[str, Any], start_response: Any) -> Any:
            incoming: IncomingRequest = self._thread.incoming
            environ[BEGAN] = incoming.began
            if incoming.framing.body_size > self._limits.max_body_bytes:  # of chunks, which the application would read
                environ.setdefault("CONTENT_LENGTH", str(incoming.framing.body_size))
            return application(environ, start_response)

        self.wsgi = with_facts

    def handle_request(self, req: Any, conn: TConn) -> Any:
        incoming: IncomingRequest = conn.incoming
        self._thread.incoming = incoming
        if not incoming.is_whole:
            req.force_close()  # where the next request begins is not known
        conn.sock.settimeout(self._write_seconds)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            self.log.warning("a client did not read its answer for %.0f s", self._write_seconds)
            return False

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        if not answer_malformed(client, exc):
            super().handle_error(req, client, addr, exc)

    def enqueue_req(self, conn: TConn) -> None:
        is_probe = conn.incoming.framing.head.startswith((b"GET ", b"HEAD "))
        future = (self._probe_pool if is_probe else self.tpool).submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def finish_request(self, conn: TConn, fs: "Future[Any]") -> None:
        """Ends or keeps a connection whose answer is sent. Runs in the main thread."""
        connection: ClientConnection = conn.connection
        keep_alive = not fs.cancelled() and fs.exception() is None and fs.result()
        if keep_alive and conn.incoming.is_whole:
            self._receiver.keep_alive(connection)
        else:
            self._receiver.finish(connection)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the process now: answers under way are cut off, as the second signal of a stop asks."""
        os._exit(0)

    def _serve_once(self, seconds: float) -> None:
        self.notify()
        self.wait_for_and_dispatch_events(seconds)
        if time.monotonic() >= self._next_check:
            self._next_check = time.monotonic() + CHECK_SECONDS
            self._receiver.check_times()

    def _deliver(self, connection: ClientConnection, incoming: IncomingRequest) -> None:
        incoming.deliver(lambda num_bytes: self.method_queue.defer(self._receiver.consumed, num_bytes))
        conn = TConn(self.cfg, connection.sock, connection.client, connection.server)
        conn.connection, conn.incoming = connection, incoming
        conn.parser, conn.initialized = get_parser(self.cfg, incoming, connection.client), True
        self.enqueue_req(conn)

    def _refuse_connections(self) -> None:
        """Closes the listening sockets, so that new connections are refused at once and go to another instance."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            with contextlib.suppress(OSError):
                listener.close()


def _settings() -> Settings:
    try:
        return Settings.from_environment(os.environ)
    except StartupError:
        return Settings()  # init() refuses the settings, with the reason


def _allow_files(max_connections: int) -> int:
    """Raises the process's limit of open files, and returns how many connections it then allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses more than its own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max_connections if soft == resource.RLIM_INFINITY else max(1, min(max_connections, soft - SPARE_FILES))
