"""A model hub on 127.0.0.1, as much of one as the real clients ask for; standard library only.

    with serve_hub() as hub:
        client = Client(hub.environment(home), folder)

What it answers is what huggingface_hub 2.4 reads. Tests look at `hub.repositories`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"token-of-ann": "ann", "token-of-bob": "bob"}
LARGE = (".safetensors", ".parquet", ".png", ".bin", ".arrow")
"""Endings of what goes to the large file storage, whatever its size."""


def git_oid(content: bytes) -> str:
    """The id that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Commit:
    """One state of a repository."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits of `main` and of branches, oldest first."""

    kind: str
    name: str
    is_private: bool = False
    is_gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches["main"] = []
        self.commit("main", "initial commit", {})

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        """Put a state on top of a branch."""
        content = json.dumps([title, len(self.branches[branch]), sorted(files)]).encode()
        content += b"".join(files[path] for path in sorted(files)) + self.name.encode()
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        self.branches[branch].append(Commit(oid, title, files))
        return self.branches[branch][-1]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch or an id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for commits in self.branches.values() for commit in commits)
        return next((commit for commit in every if commit.oid == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        """What `main` holds."""
        return self.branches["main"][-1].files


@dataclass
class Hub:
    """The state of the server; a test reads it, or breaks it to see what follows."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By kind (models, datasets, spaces) and name."""

    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their sha256; they outlive a push that failed."""

    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""

    xet_folder: Path | None = None
    """Where the client of Xet keeps large files; what it commits is looked up in `stored`."""

    broken_uploads: int = 0
    """So many uploads of large files break off in the middle."""

    url: str = ""

    def add(self, kind: str, name: str, files: dict[str, bytes], **state: bool) -> Repository:
        """Make a repository that is there already."""
        repository = self.repositories[kind, name] = Repository(kind, name, **state)
        repository.commit("main", "there already", files)
        return repository

    def clear(self) -> None:
        """Forget everything."""
        self.repositories, self.stored, self.requests = {}, {}, []
        self.broken_uploads = 0

    def environment(self, home: Path) -> dict[str, str]:
        """What sends the real clients here, without Xet."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code} if code else {}
        if message:
            self.headers["X-Error-Message"] = message


NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
PLAIN = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"


class Handler(BaseHTTPRequestHandler):
    """Looks a request up in ROUTES, and answers with JSON or the bytes of a file."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.address = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for methods, pattern, route in ROUTES:
                match = re.fullmatch(pattern, unquote(self.address.path))
                if match and self.command in methods.split():
                    return route(self, **match.groupdict())
            raise RefusedError(404, message=f"no route for {self.command} {self.path}")
        except RefusedError as refused:
            self.reply({"error": str(refused)}, status=refused.status, **refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names of http.server

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if data is content else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def user(self) -> str | None:
        """Whose token came along."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def repository(self, kind: str | None, name: str, *, reads_files: bool = False) -> Repository:
        """The one that is asked for; private ones are not even there for others."""
        repository = self.hub.repositories.get((kind or "models", name))
        owner = name.partition("/")[0]
        if repository is None or (repository.is_private and self.user != owner):
            raise RefusedError(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if repository.is_gated and reads_files and self.user != owner:
            raise RefusedError(403 if self.user else 401, "GatedRepo", "Access is restricted")
        return repository

    def writable(self, kind: str | None, name: str) -> Repository:
        repository = self.repository(kind, name)
        if self.user is None:
            raise RefusedError(401, message="Invalid username or password.")
        if self.user != name.partition("/")[0]:
            raise RefusedError(403, message="You don't have the rights to write to this repository")
        return repository

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def who(self) -> None:
        if self.user is None:
            raise RefusedError(401, message="Invalid username or password.")
        self.reply({"name": self.user, "type": "user", "orgs": [], "auth": {}})

    def create(self) -> None:
        asked = json.loads(self.body)
        if self.user is None:
            raise RefusedError(401, message="Invalid username or password.")
        owner = asked.get("organization") or self.user
        kind, name = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
        if owner != self.user:
            raise RefusedError(403, message=f"You don't have the rights to create under {owner}")
        prefix = "" if kind == "models" else f"{kind}/"
        content = {"url": f"{self.hub.url}/{prefix}{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            return self.reply(content | {"error": "You already created this repo"}, status=409)
        is_private = asked.get("visibility") == "private"
        self.hub.repositories[kind, name] = Repository(kind, name, is_private)
        return self.reply(content)

    def check_card(self) -> None:
        """Complain of metadata that is none, as the real one does of much more."""
        content = json.loads(self.body)["content"]
        metadata = re.match(r"---\n(.*?)\n---", content, flags=re.DOTALL)
        errors = []
        try:
            if metadata and not isinstance(yaml.safe_load(metadata[1]), dict):
                errors = [{"message": "metadata is no mapping"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.reply({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = self.commit_of(self.writable(kind, name), revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            is_large = asked["path"].endswith(LARGE)
            known = files.get(asked["path"])
            oid = None
            if known is not None:
                oid = hashlib.sha256(known).hexdigest() if is_large else git_oid(known)
            mode = "lfs" if is_large else "regular"
            answers.append(
                {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.reply({"files": answers})

    def large_files(self, kind: str | None, name: str) -> None:
        self.writable(kind, name)
        objects = []
        for each in json.loads(self.body)["objects"]:
            if each["oid"] not in self.hub.stored:
                href = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{each['oid']}"
                verify = f"{self.hub.url}/verify/{each['oid']}"
                each["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(each)
        self.reply({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if self.hub.broken_uploads:
            self.hub.broken_uploads -= 1
            self.close_connection = True
            self.connection.close()
            return
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, message="the content has another sha256")
        self.hub.stored[oid] = self.body
        self.reply({})

    def verify(self, oid: str) -> None:
        if len(self.hub.stored.get(oid, b"")) != json.loads(self.body)["size"]:
            raise RefusedError(404, message="not stored")
        self.reply({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        repository = self.writable(kind, name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        before = self.commit_of(repository, revision)
        if header.get("parentCommit", before.oid) != before.oid:
            raise RefusedError(412, message="A commit has happened since")
        files = dict(before.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise RefusedError(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(revision, header["summary"], files)
        url = f"{self.hub.url}/{name}/commit/{commit.oid}"
        self.reply({"success": True, "commitOid": commit.oid, "commitUrl": url})

    def xet_token(self, kind: str, name: str, revision: str) -> None:
        self.writable(kind, name)
        store = f"local://{self.hub.xet_folder}"
        self.reply({"casUrl": store, "accessToken": "any", "exp": 2**31})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self.writable(kind, name)
        if branch in repository.branches:
            raise RefusedError(409, message="Reference already exists")
        repository.branches[branch] = [repository.branches["main"][-1]]
        self.reply({})

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self.repository(kind, name)
        commit = self.commit_of(repository, revision or "main")
        self.reply(
            {
                "id": name,
                "sha": commit.oid,
                "private": repository.is_private,
                "gated": "manual" if repository.is_gated else False,
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                "tags": [],
            }
        )

    def describe(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if path.endswith(LARGE):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repository = self.repository(kind, name)
        files = self.commit_of(repository, revision).files
        start = f"{folder}/" if folder else ""
        inside = {path for path in files if path.startswith(start)}
        if folder and not inside:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        entries = [self.describe(path, files[path]) for path in sorted(inside)]
        folders = {str(parent) for path in inside for parent in Path(path).parents} - {".", folder}
        entries += [{"type": "directory", "path": each, "oid": "0" * 40} for each in folders]
        if parse_qs(self.address.query).get("recursive", ["false"])[0].lower() != "true":
            entries = [each for each in entries if "/" not in each["path"].removeprefix(start)]
        self.reply(entries)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        files = self.commit_of(self.repository(kind, name), revision).files
        asked = parse_qs(self.body.decode()).get("paths", [])
        entries = [self.describe(path, files[path]) for path in asked if path in files]
        entries += [
            {"type": "directory", "path": folder, "oid": "0" * 40}
            for folder in asked
            if any(path.startswith(f"{folder}/") for path in files)
        ]
        self.reply(entries)

    def refs(self, kind: str, name: str) -> None:
        branches = self.repository(kind, name).branches
        found = [
            {"name": each, "ref": f"refs/heads/{each}", "targetCommit": commits[-1].oid}
            for each, commits in branches.items()
        ]
        self.reply({"branches": found, "converts": [], "tags": []})

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repository = self.repository(kind, name, reads_files=True)
        commit = self.commit_of(repository, revision)
        if path not in commit.files:
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist in {name}")
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{git_oid(content)}"'}
        if not path.endswith(LARGE):
            return self.send_range(content, headers)
        sha = hashlib.sha256(content).hexdigest()
        self.hub.stored[sha] = content
        headers |= {"X-Linked-Size": len(content), "X-Linked-ETag": f'"{sha}"'}
        headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{sha}"
        return self.reply(b"", status=302, **headers)

    def fetch(self, oid: str) -> None:
        self.send_range(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def send_range(self, content: bytes, headers: dict[str, Any]) -> None:
        """Send a file, or the part of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.reply(content, **headers)
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.reply(content[first : last + 1], status=206, **headers)


ROUTES = (
    ("GET", r"/api/whoami-v2", Handler.who),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.check_card),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", Handler.commit),
    ("GET", rf"{API}/xet-write-token/(?P<revision>.+)", Handler.xet_token),
    ("POST", rf"{API}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"{API}/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("GET", rf"{API}/refs", Handler.refs),
    ("GET", rf"{API}(?:/revision/(?P<revision>.+))?", Handler.info),
    ("POST", rf"{PLAIN}\.git/info/lfs/objects/batch", Handler.large_files),
    ("PUT", r"/storage/(?P<oid>\w+)", Handler.store),
    ("GET HEAD", r"/storage/(?P<oid>\w+)", Handler.fetch),
    ("POST", r"/verify/(?P<oid>\w+)", Handler.verify),
    ("GET HEAD", rf"{PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
)
"""Methods, path and what answers."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub while a test does."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
