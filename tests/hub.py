"""A model hub on this machine: enough of its protocol for huggingface_hub, with faults on demand.

Weights lie, as on the real one, on another host (localhost for 127.0.0.1), to which the answer for their name refers;
their ETag is a sha256, that of the small files git's SHA-1.
"""

import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote

SMALL = (".json", ".txt", ".md")


class Hub:
    """One model with revisions. `faults` has what goes wrong, by file, or by "api" for the listing.

    A number is the status to answer with, a string the place to redirect to, and a function gets the handler and the
    body to send. `requests` has (method, path, headers) of all that was asked.
    """

    def __init__(self, repository):
        self.repository = repository
        self.revisions = {}  # branch or tag -> commit
        self.commits = {}  # commit -> {name: bytes}
        self.requests = []
        self.faults = {}
        self.error_code = ""  # the reason that goes with a number
        self.listed_digests = True  # whether the listing has them, as a mirror's may not
        self.endpoint = ""

    def publish(self, revision, folder):
        """Make `revision` a commit with the files of `folder`, and return its hash."""
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        commit = git_hash(repr(sorted(files.items())).encode())
        self.commits[commit], self.revisions[revision] = files, commit
        return commit

    def fetched(self):
        """The names of the files whose bytes were sent, each once."""
        names = {unquote(path.split("/resolve/")[1].split("/", 1)[1]) for path in self.paths("GET", "/resolve/")}
        return names | {self.name_of(path.removeprefix("/cdn/")) for path in self.paths("GET", "/cdn/")}

    def paths(self, method, part):
        return [path for asked, path, _ in self.requests if asked == method and part in path]

    def name_of(self, digest):
        """The file with that sha256."""
        files = [item for commit in self.commits.values() for item in commit.items()]
        return next(name for name, data in files if hashlib.sha256(data).hexdigest() == digest)

    def data_of(self, digest):
        files = [data for commit in self.commits.values() for data in commit.values()]
        return next(data for data in files if hashlib.sha256(data).hexdigest() == digest)


class Handler(http.server.BaseHTTPRequestHandler):
    """The protocol: /api/models/NAME[/revision/REVISION], /NAME/resolve/REVISION/FILE, /cdn/SHA256."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append((self.command, path, dict(self.headers)))
        prefix = f"/api/models/{self.hub.repository}"
        if path == prefix or path.startswith(f"{prefix}/revision/"):
            self.list_files((path.removeprefix(prefix) or "/revision/main").removeprefix("/revision/"))
        elif path.startswith(f"/{self.hub.repository}/resolve/"):
            revision, name = path.split("/resolve/")[1].split("/", 1)
            self.resolve(revision, name)
        elif path.startswith("/cdn/"):
            digest = path.removeprefix("/cdn/")
            self.send_body(self.hub.name_of(digest), self.hub.data_of(digest), {})
        else:
            self.refuse(404, "RepoNotFound")

    def list_files(self, revision):
        commit = self.hub.revisions.get(revision, revision)
        if commit not in self.hub.commits:
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for name, data in self.hub.commits[commit].items():
            sibling = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if self.hub.listed_digests and not name.endswith(SMALL):
                sibling["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            siblings.append(sibling)
        info = {"_id": "1", "id": self.hub.repository, "modelId": self.hub.repository, "sha": commit}
        info |= {"siblings": siblings, "tags": [], "private": False, "downloads": 0, "likes": 0}
        return self.send_body("api", json.dumps(info).encode(), {})

    def resolve(self, revision, name):
        commit = self.hub.revisions.get(revision, revision)
        data = self.hub.commits.get(commit, {}).get(name)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit}
        if name.endswith(SMALL):
            return self.send_body(name, data, headers | {"ETag": f'"{git_hash(data)}"'})
        if isinstance(self.hub.faults.get(name), int | str):
            return self.send_body(name, data, headers)
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "Content-Length": "0"}
        headers |= {"Location": f"http://localhost:{self.server.server_port}/cdn/{digest}"}
        return self.send_start(302, headers)

    def send_body(self, name, data, headers):
        fault = self.hub.faults.get(name)
        if isinstance(fault, int):
            return self.refuse(fault, self.hub.error_code)
        if isinstance(fault, str):
            known = {"ETag": '"' + "0" * 40 + '"', "Content-Length": "0"}
            return self.send_start(302, headers | known | {"Location": fault})
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send_start(206 if start else 200, headers | {"Content-Length": str(len(data) - start)})
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):  # the client gave up
                (fault or send_all)(self, data[start:])
        return None

    def refuse(self, status, code):
        self.send_start(status, {"X-Error-Code": code, "Content-Length": "0"})

    def send_start(self, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_):
        pass


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def send_all(handler, data):
    handler.wfile.write(data)


def send_damaged(handler, data):
    """One bit is another."""
    handler.wfile.write(data[:-1] + bytes([data[-1] ^ 1]))


def send_short(handler, data):
    """Fewer bytes than announced, however often the client asks for the rest."""
    handler.wfile.write(data[: len(data) // 2] if "Range" not in handler.headers else b"")
    handler.close_connection = True


def send_cut(handler, data):
    """The connection breaks in the middle of the first answer."""
    handler.hub.faults.clear()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def send_stalled(handler, data):
    """The bytes stop coming, and the connection stays."""
    handler.wfile.write(data[:10])
    handler.wfile.flush()
    handler.server.stopped.wait(10)
    handler.close_connection = True


@contextlib.contextmanager
def serve(repository):
    """Yield the `Hub` that a server on this machine shows, with no revision yet."""
    hub = Hub(repository)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("OneHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.stopped = threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
