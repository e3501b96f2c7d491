"""A web server over a folder, which counts what it is asked for and can be told to misbehave."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Site:
    """What a server serves, and what it saw.

    Attributes
    ----------
    requests : list of (path, bytes of the body)
    behave : callable, optional
        Takes the handler, the path, the file's bytes and how often this path was asked for before; True says that it
        has answered.
    most_at_once : int
        Requests that were under way at the same time.
    """

    def __init__(self, folder):
        self.folder = folder
        self.behave = None
        self.requests = []
        self.headers = []
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def forget(self):
        self.requests.clear()
        self.headers.clear()
        self.most_at_once = 0

    def asked(self, part):
        return [path for path, _ in self.requests if part in path]

    @property
    def nbytes(self):
        return sum(nbytes for _, nbytes in self.requests)

    @contextlib.contextmanager
    def request(self, path, headers):
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            before = len(self.asked(path))
            self.requests.append((path, 0))
            self.headers.append(headers)
            place = len(self.requests) - 1
        try:
            yield before, place
        finally:
            with self._lock:
                self._under_way -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for its head to be acknowledged
    site: Site

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        with self.site.request(self.path, dict(self.headers)) as (before, place), contextlib.suppress(OSError):
            try:
                data = (self.site.folder / path.lstrip("/")).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                data = None
            if self.site.behave is not None and self.site.behave(self, path, data, before):
                return
            self.site.requests[place] = (self.path, len(data or b""))  # before who asked can clear the list
            self.answer(data)

    def answer(self, data, *, status=200, nbytes=None, close=False):
        """Send a body; with another Content-Length than it has, if told to."""
        if data is None:
            status, data = 404, b"not here"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if nbytes is None else nbytes))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = self.close_connection or close

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder):
    """Serve a folder; gives its URL and its `Site`."""
    site = Site(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
