"""A model hub on this machine: enough of its protocol for huggingface_hub to list and download a folder."""

import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(folder, repository):
    """Yield (endpoint, list of requested paths) of a server that has `folder` as the model `repository`."""
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            requests.append(self.path)
            path = self.path.split("?")[0]
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            if path.startswith(f"/api/models/{repository}/tree/"):
                tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0"} for s in siblings]
                self.answer(json.dumps(tree).encode())
            elif path.startswith(f"/api/models/{repository}"):
                info = {"_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(info | {"tags": [], "private": False, "downloads": 0, "likes": 0}).encode())
            elif path.startswith(f"/{repository}/resolve/") and path.rsplit("/", 1)[-1] in files:
                self.answer(files[path.rsplit("/", 1)[-1]])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def answer(self, data):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"' + hashlib.sha256(data).hexdigest() + '"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
