"""A Hub of models on 127.0.0.1 that can be written to, for the real client code (HF_ENDPOINT), with faults on demand.

It answers as huggingface.co does what huggingface_hub asks for when it creates a repository or a branch, uploads a
folder and downloads a model. Large files go by LFS, verified by size and SHA-256, and come by a redirection to another
host, which takes no token. A commit is complete or absent, and only on an existing branch.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field

from tests.loopback_hub import Handler, LoopbackHub

LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other")
LFS_ENDINGS = (".safetensors", ".png", ".bin", ".pt", ".pth")


def oid_of(path: str, data: bytes) -> str:
    """By which the Hub knows a file: SHA-256 of a large one, Git's SHA-1 of another."""
    if path.endswith(LFS_ENDINGS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """commits: sha -> path -> content. branches: name -> sha."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        sha = hashlib.sha1(json.dumps([content, len(self.messages)]).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class ModelHub(LoopbackHub):
    """users: token -> (name, may write). Everyone may read what is not private; a user writes below the own name."""

    repo: str = ""
    commits: dict = field(default_factory=dict)
    main: str = ""
    users: dict[str, tuple[str, bool]] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def handler(self) -> type[Handler]:
        return ModelHandler


class ModelHandler(Handler):
    def route(self, path: str, body: bytes) -> None:
        hub: ModelHub = self.server.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and path.startswith(("/blob/", "/stored/")):
            return self._refuse(400, None, "storage takes signed addresses, and no token")
        if token and token not in hub.users:
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        self.user, self.may_write = hub.users.get(token, (None, False))
        for pattern, answer in (
            (r"/api/whoami-v2", self.whoami),
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate),
            (r"/blob/([0-9a-f]{64})", self.store),
            (r"/stored/([0-9a-f]{64})", self.stored),
            (r"/api/models/([^/]+/[^/]+)/auth-check(/write)?", self.check_access),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.create_branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self.preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.large_files),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self.commit),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.list_files),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.describe),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if match := re.fullmatch(pattern, path):
                return answer(body, *match.groups())
        return self._refuse(404, None, f"no such address: {path}")

    def whoami(self, _) -> None:
        if self.user is None:
            return self._refuse(401, None, "Invalid user token")
        self._json({"type": "user", "name": self.user, "orgs": []})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        if self.user is None:
            return self._refuse(401, None, "Invalid user token")
        owner = wanted.get("organization") or self.user
        name = f"{owner}/{wanted['name']}"
        if owner != self.user or not self.may_write:
            return self._refuse(403, None, f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.server.hub.repositories:
            return self._send(409, json.dumps({"url": f"{self.server.hub.url}/{name}"}).encode(), {})
        repository = self.server.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json({"url": f"{self.server.hub.url}/{name}", "name": name})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        named = re.search(r"(?m)^license: (.*)$", content)
        if named and named[1] not in LICENCES:
            errors.append({"message": f'"license" must be one of [{", ".join(LICENCES)}]'})
        self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode(), {})

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """None, with the refusal sent, where this user may not see it, or write to it."""
        repository = self.server.hub.repositories.get(name)
        owner = name.partition("/")[0]
        if repository is None or (repository.private and owner != self.user):
            self._refuse(401 if self.user is None else 404, "RepoNotFound", "Repository not found")
            return None
        if write and (owner != self.user or not self.may_write):
            self._refuse(403, None, f"Forbidden: you must have write access to {name}")
            return None
        return repository

    def check_access(self, _, name: str, write: str | None) -> None:
        if self.repository(name, write=bool(write)):
            self._json({})

    def branch(self, name: str, branch: str) -> Repository | None:
        """A repository with a branch that this user may write to; None, with the refusal sent, where it is not."""
        repository = self.repository(name, write=True)
        if repository is not None and branch not in repository.branches:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            return None
        return repository

    def create_branch(self, _, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if repository is None:
            return
        if branch in repository.branches:
            return self._refuse(409, None, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def preupload(self, body: bytes, name: str, branch: str) -> None:
        if (repository := self.branch(name, branch)) is None:
            return
        there = repository.files(branch)
        answers = []
        for path in (file["path"] for file in json.loads(body)["files"]):
            mode = "lfs" if path.endswith(LFS_ENDINGS) else "regular"
            oid = oid_of(path, there[path]) if path in there else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def large_files(self, body: bytes, name: str) -> None:
        if self.repository(name, write=True) is None:
            return
        hub, answers = self.server.hub, []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in hub.blobs:
                answer["actions"] = {"upload": {"href": f"{hub.url}/blob/{wanted['oid']}", "header": {}}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._refuse(400, None, "the content is not what was announced")
        self.server.hub.blobs[oid] = body
        self._json({})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        if (repository := self.branch(name, branch)) is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        files = dict(repository.files(branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if len(self.server.hub.blobs.get(value["oid"], ())) != value["size"]:
                    return self._refuse(400, None, f"{value['path']}: its content did not arrive")
                files[value["path"]] = self.server.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(branch, files, header["summary"])
        address = f"{self.server.hub.url}/{name}/commit/{sha}"
        self._json({"success": True, "commitUrl": address, "commitOid": sha, "hookOutput": ""})

    def found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repository(name)
        if repository is None:
            return None
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha, repository.commits[sha]

    def describe(self, _, name: str, revision: str | None) -> None:
        if found := self.found(name, revision or "main"):
            sha, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            private = self.server.hub.repositories[name].private
            self._json({"_id": "0", "id": name, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def list_files(self, _, name: str, revision: str, folder: str | None) -> None:
        if (found := self.found(name, revision)) is None:
            return
        within = f"{folder}/" if folder else ""
        inside = {path: data for path, data in sorted(found[1].items()) if path.startswith(within)}
        if not inside:
            return self._refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries = {}
        for path, data in inside.items():
            parts = path.removeprefix(within).split("/")
            if len(parts) > 1 and "recursive=true" not in self.path.lower():
                name = within + parts[0]
                entries[name] = {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "path": name}
                continue
            entry = {"type": "file", "oid": oid_of(path, data), "size": len(data), "path": path}
            if path.endswith(LFS_ENDINGS):
                entry["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 130}
            entries[path] = entry
        self._json(list(entries.values()))

    def resolve(self, _, name: str, revision: str, path: str) -> None:
        if (found := self.found(name, revision)) is None:
            return
        sha, files = found
        common = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", common)
        content, oid = files[path], oid_of(path, files[path])
        if not path.endswith(LFS_ENDINGS):
            return self._content(content, {**common, "ETag": f'"{oid}"'})
        self.server.hub.blobs[oid] = content  # of a commit that was not pushed, too
        address = self.server.hub.url.replace("127.0.0.1", "localhost")
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{oid}"'}
        self._send(302, b"", {**common, **linked, "Location": f"{address}/stored/{oid}?signature=1"})

    def stored(self, _, oid: str) -> None:
        self._content(self.server.hub.blobs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span is None:
            return self._send(200, content, headers)
        start, stop = int(span[1]), min(int(span[2]) + 1, len(content)) if span[2] else len(content)
        if start >= len(content):
            return self._refuse(416, None, "Range Not Satisfiable", {"Content-Range": f"bytes */{len(content)}"})
        self._send(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})
