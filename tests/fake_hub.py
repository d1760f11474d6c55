"""A Hugging Face hub on the loopback interface: as much of its HTTP protocol as downloading a model takes.

`with FakeHub() as hub:` starts it, `hub.push("org/name", folder)` gives it something to serve, and a process with
HF_ENDPOINT set to `hub.url` takes it for the hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+)|/tree/(?P<tree>[^/]+))?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class FakeHub:
    """Serves what was pushed, from a thread, until the `with` block ends.

    `requests` lists (method, path, Range header) in order of arrival. A path in `cut` loses its connection after that
    many bytes, once. A repository in `gated` shows what it holds and refuses its files with that status: 401 to
    someone not logged in, 403 to an account without access. While `down` is set, every answer is that status.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, Files]] = {}  # repository -> commit -> files
        self.refs: dict[tuple[str, str], str] = {}  # (repository, branch or tag) -> commit
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.gated: dict[str, int] = {}
        self.down: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, repo: str, folder: Path, ref: str = "main") -> str:
        """Make the folder's present content a commit of `repo` and point the branch or tag `ref` at it."""
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        summary = "".join(f"{path} {hashlib.sha1(data).hexdigest()}\n" for path, data in sorted(files.items()))
        commit = hashlib.sha1(summary.encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.refs[repo, ref] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers["Range"]))
        if self.hub.down:
            return self.refuse(self.hub.down, "", "")
        match = RESOLVE.fullmatch(path) or API.fullmatch(path)
        if match is None or match["repo"] not in self.hub.repos:
            # What the real hub tells someone who is not logged in; a private repository looks the same.
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        asked = match.groupdict()
        repo = asked["repo"]
        ref = unquote(asked.get("revision") or asked.get("tree") or "main")
        commit = self.hub.refs.get((repo, ref), ref)
        if commit not in self.hub.repos[repo]:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {ref}")
        files = self.hub.repos[repo][commit]
        if "path" in asked:
            self.resolve(repo, commit, files, unquote(asked["path"]))
        elif asked["tree"]:
            self.answer([{"type": "file", "path": path, **entry(data)} for path, data in files.items()])
        else:
            self.answer({"id": repo, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def resolve(self, repo: str, commit: str, files: Files, path: str) -> None:
        """Send one file, or the part of it from the Range header's first byte on."""
        if repo in self.hub.gated:
            return self.refuse(self.hub.gated[repo], "GatedRepo", f"Access to model {repo} is restricted.")
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        data, start = files[path], 0
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(ranged[1])
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{entry(data)["oid"]}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            end = self.hub.cut.pop(path, len(data))
            self.wfile.write(data[start:end])
            self.close_connection = end < len(data)

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def entry(data: bytes) -> dict[str, object]:
    """A file as the hub's listing describes it; the object id is git's."""
    return {"size": len(data), "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
