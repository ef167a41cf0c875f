"""A Hub of one gated data set on 127.0.0.1, for the real client code (HF_ENDPOINT), with faults on demand.

It answers as huggingface.co does what datasets and huggingface_hub ask for when they read a data set: the repository's
information, listings, files with HEAD and Range. It is no Hub for writing.
"""

import hashlib
import json
import re
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackSecretToken"


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`.

    kind: a status (401, 403, 404, 429, 500, 503), or "reset" (the connection breaks before the answer), "stall" (it
        takes `seconds`), "truncated" (the body ends before its Content-Length), "short" (a well-formed 206 of fewer
        bytes than asked for), "no_range" (200 with the whole file), "lost" (it is done, and the connection breaks
        before the answer), "half" (half of the body, and the rest after `seconds`), "garbled" (one byte of the body is
        another one).
    times: how many requests it hits; None: all. after: requests that match and go well before.
    """

    kind: int | str
    path: str = ""
    method: str = "GET"
    times: int | None = None
    after: int = 0
    seconds: float = 3.0
    retry_after: int = 0
    hits: int = 0


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    sent: int = 0


@dataclass
class LoopbackHub:
    """Serves the folders of `commits` (sha -> folder); `main` is the sha that the branch points to.

    Use as a context manager; `url` is for HF_ENDPOINT.
    """

    repo: str
    commits: dict[str, Path]
    main: str
    token: str = TOKEN
    has_access: bool = True
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> "LoopbackHub":
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def reset(self, main: str) -> None:
        """As at the start, for the next test: no faults, no requests, access, and the branch at `main`."""
        self.faults, self.main, self.has_access = [], main, True
        self.requests.clear()

    def handler(self) -> type["Handler"]:
        return Handler

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method != method or fault.path not in path:
                    continue
                fault.hits += 1
                if fault.hits > fault.after and (fault.times is None or fault.hits <= fault.after + fault.times):
                    return fault
        return None

    def folder_of(self, revision: str) -> tuple[str | None, Path | None]:
        sha = self.main if revision == "main" else revision
        return (sha, self.commits[sha]) if sha in self.commits else (None, None)


class Handler(BaseHTTPRequestHandler):
    """Faults, and what all requests have in common; `route` is what the Hub does."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, as it may after a stall
            self.close_connection = True

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: LoopbackHub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.request_seen = Request(self.command, path, self.headers.get("Range"))
        with hub.lock:
            hub.requests.append(self.request_seen)
        self.fault = hub.fault_of(self.command, path)
        kind = self.fault.kind if self.fault else None
        if kind == "reset":
            return self._reset()
        if kind == "stall":
            time.sleep(self.fault.seconds)
        if isinstance(kind, int):
            return self._refuse(kind)
        self.route(path, body)

    def _reset(self) -> None:
        # Closing with unsent data thrown away makes the kernel send RST.
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def route(self, path: str, body: bytes) -> None:
        hub = self.server.hub
        if self.headers.get("Authorization") is None:
            return self._refuse(401, "GatedRepo", "Access to this data set is restricted")
        if self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        route = re.fullmatch(
            r"/(api/)?datasets/([^/]+/[^/]+)(?:/(resolve|revision|tree|paths-info)/([^/]+)/?(.*))?", path
        )
        if route is None or route[2] != hub.repo:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        is_api, _, action, revision, name = route.groups()
        sha, folder = hub.folder_of(revision or "main")
        if sha is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not is_api and action == "resolve":
            if not hub.has_access:
                return self._refuse(403, "GatedRepo", "Access to this data set is restricted")
            return self._file(sha, folder / name)
        if action == "tree":
            return self._tree(folder, name)
        if action == "paths-info":
            paths = json.loads(body)["paths"] if body[:1] == b"{" else [unquote(body.decode()).split("=", 1)[-1]]
            return self._json([_entry(folder, folder / each) for each in paths if (folder / each).exists()])
        siblings = [
            {"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()
        ]
        self._json({"_id": "0", "id": hub.repo, "sha": sha, "private": False, "gated": "auto", "siblings": siblings})

    def _tree(self, folder: Path, name: str) -> None:
        if not (folder / name).is_dir():
            return self._refuse(404, "EntryNotFound", f"{name} does not exist")
        pattern = "**/*" if "recursive=true" in self.path.lower() else "*"
        self._json([_entry(folder, path) for path in sorted((folder / name).glob(pattern))])

    def _file(self, sha: str, path: Path) -> None:
        common = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found", common)
        content = path.read_bytes()
        size = len(content)
        common |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(size)}
        kind = self.fault.kind if self.fault else None
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None or kind == "no_range":
            return self._send(200, content, common)
        start = int(span[1])
        stop = min(int(span[2]) + 1, size) if span[2] else size
        if start >= size:
            return self._refuse(416, None, "Range Not Satisfiable", {**common, "Content-Range": f"bytes */{size}"})
        if kind == "short":
            stop = max(start + 1, stop - max(1, (stop - start) // 3))
        self._send(206, content[start:stop], {**common, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None = None, text: str = "", headers: dict | None = None) -> None:
        codes = {403: "GatedRepo", 404: "EntryNotFound"}
        code = code or (codes.get(status) if self.fault else None)
        headers = {**(headers or {}), "X-Error-Message": text or f"status {status}"}
        if code:
            headers["X-Error-Code"] = code
        if status == 429 and self.fault:
            headers["Retry-After"] = str(self.fault.retry_after)
        self._send(status, json.dumps({"error": headers["X-Error-Message"]}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.fault and self.fault.kind == "lost":
            return self._reset()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.kind == "truncated":
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.fault and self.fault.kind == "garbled":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.fault and self.fault.kind == "half":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(self.fault.seconds)
            self.wfile.write(body[len(body) // 2 :])
        else:
            self.wfile.write(body)
        self.request_seen.sent = len(body)


def _entry(folder: Path, path: Path) -> dict:
    name = str(path.relative_to(folder))
    oid = hashlib.sha1(name.encode()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    entry = {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}
    if path.suffix == ".parquet":
        entry["lfs"] = {"oid": hashlib.sha256(name.encode()).hexdigest(), "size": entry["size"], "pointerSize": 130}
    return entry
