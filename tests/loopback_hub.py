"""A Hub on this machine: the endpoints of huggingface.co that huggingface_hub, transformers, datasets and evaluate use.

It keeps models, data sets and Spaces with commits, branches and tags, in memory. Files travel as with the real Hub:
small texts inside the commit, others by LFS in one part or in several, downloads by a redirect with `X-Linked-Etag`.
Xet is not supported: clients must have `HF_HUB_DISABLE_XET=1`. It follows the clients' code and the Hub's
documentation; the Hub's own server code is not public.
"""

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


USER, TOKEN = "user", "hf_loopback"
PART = 1 << 16  # bytes; larger LFS files are sent in parts of this size
LARGE = (".arrow", ".bin", ".npz", ".parquet", ".png", ".pt", ".pth", ".safetensors")


class Refused(Exception):
    """An error answer in the Hub's form: status, `X-Error-Code` and a sentence."""

    def __init__(self, status: int, code: str, message: str, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass
class Blob:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's id of the file, or of the pointer that LFS puts in its place."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        content = pointer.encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    files: dict[str, Blob]
    parent: "Commit | None" = None
    title: str = "initial commit"
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))

    @property
    def sha(self) -> str:
        facts = [self.parent and self.parent.sha, self.title, self.date, {p: b.oid for p, b in self.files.items()}]
        return hashlib.sha1(json.dumps(facts).encode()).hexdigest()


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    name: str
    private: bool
    branches: dict[str, Commit] = field(default_factory=lambda: {"main": Commit({})})
    tags: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The commit of a branch, of a tag, or with an id."""
        for refs in (self.branches, self.tags):
            if revision in refs:
                return refs[revision]
        for commit in self.history(*self.branches.values(), *self.tags.values()):
            if len(revision) >= 7 and commit.sha.startswith(revision):
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    @staticmethod
    def history(*tips: Commit) -> list[Commit]:
        seen: dict[str, Commit] = {}
        for tip in tips:
            commit: Commit | None = tip
            while commit is not None and commit.sha not in seen:
                seen[commit.sha], commit = commit, commit.parent
        return list(seen.values())


class Hub:
    """What is stored on the Hub, and the operations on it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}  # LFS files by their SHA-256
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.Lock()
        self.url = self.storage = ""  # `storage`: the address of the large files, which lie on another host

    # --- reading ----------------------------------------------------------------------------------------------------

    def repo(self, kind: str, name: str, signed_in: bool) -> Repo:
        found = self.repos.get((kind, name))
        if found is None or (found.private and not signed_in):
            raise Refused(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        return found

    def info(self, repo: Repo, commit: Commit, with_blobs: bool) -> dict[str, Any]:
        card = card_data(commit.files["README.md"].content) if "README.md" in commit.files else {}
        siblings = [
            {"rfilename": path} | (described(path, blob) if with_blobs else {}) for path, blob in commit.files.items()
        ]
        return {
            "_id": hashlib.md5(repo.name.encode()).hexdigest()[:24],
            "id": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "createdAt": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags", []),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "siblings": [
                {("blobId" if key == "oid" else key): value for key, value in each.items()} for each in siblings
            ],
        }

    def tree(self, commit: Commit, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            *above, _ = path.removeprefix(prefix).split("/")
            for depth in range(1, len(above) + 1):
                name = prefix + "/".join(above[:depth])
                if recursive or depth == 1:
                    oid = hashlib.sha1(name.encode()).hexdigest()
                    entries[name] = {"type": "directory", "oid": oid, "size": 0, "path": name}
            if recursive or not above:
                entries[path] = {"type": "file", "path": path, **described(path, blob)}
        if not entries and folder:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist", commit.sha)
        last = {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}} if expand else {}
        return [entry | last for entry in entries.values()]

    # --- changing -----------------------------------------------------------------------------------------------------

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.repos:
            raise Refused(409, "", json.dumps({"error": "You already created this repo", "url": url}))
        if kind == "spaces" and asked.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
            raise Refused(400, "", "A Space needs an sdk.")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[kind, name] = Repo(kind, name, private)
        return {"url": url, "name": name, "id": name}

    def commit(self, repo: Repo, branch: str, body: bytes) -> dict[str, Any]:
        if branch not in repo.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        before = repo.branches[branch]
        files, header = dict(before.files), {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.large:
                        raise Refused(400, "", f"{value['path']} was not uploaded")
                    files[value["path"]] = Blob(self.large[value["oid"]], is_lfs=True)
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refused(404, "EntryNotFound", "A file with this name doesn't exist", before.sha)
                case "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(folder)}
                case other:
                    raise Refused(400, "", f"The loopback Hub has no operation {other}")
        if header.get("parentCommit") not in (None, before.sha):
            raise Refused(412, "", "A commit has happened since.")
        made = repo.branches[branch] = Commit(files, before, header["summary"])
        url = f"{self.url}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.name}/commit/{made.sha}"
        return {"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""}

    def ask_for_large(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        """LFS' batch call: where to send each file, in parts if it is large, and nowhere if it is there already."""
        answers = []
        for each in objects:
            oid, size = each["oid"], each["size"]
            answer = {"oid": oid, "size": size, "authenticated": True}
            if oid not in self.large:
                href, header = f"{self.url}/lfs/{oid}", {}
                if size > PART:
                    count = -(-size // PART)
                    header = {str(n): f"{href}/{n}" for n in range(1, count + 1)} | {"chunk_size": str(PART)}
                verify = {"href": f"{href}/verify"}
                answer["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
            answers.append(answer)
        return {"transfer": "multipart", "objects": answers}

    def join_parts(self, oid: str, asked: dict[str, Any]) -> None:
        numbers = [part["partNumber"] for part in asked["parts"]]
        content = b"".join(self.parts[oid, number] for number in numbers)  # parts stay: two clients may send a file
        self.keep_large(oid, content)

    def keep_large(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "", "The content is not what was announced (SHA-256)")
        self.large[oid] = content


def described(path: str, blob: Blob) -> dict[str, Any]:
    """A file in the form of the listings."""
    size = len(blob.content)
    lfs = {"lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": size, "pointerSize": 130}} if blob.is_lfs else {}
    return {"oid": blob.oid, "size": size, **lfs}


def card_data(readme: bytes) -> dict[str, Any]:
    head = re.match(rb"^---\r?\n(.*?)\r?\n---", readme, re.S)
    found = yaml.safe_load(head[1]) if head else None
    return found if isinstance(found, dict) else {}


KINDS = "(?P<kind>models|datasets|spaces)"
REPO = "(?P<name>[^/]+/[^/]+)"
OF_REPO = f"/api/{KINDS}/{REPO}"
AT = "(?P<revision>[^/]+)"


class Handler(BaseHTTPRequestHandler):
    """Takes requests apart, asks the Hub, and puts its answers together."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        if os.environ.get("LOOPBACK_HUB_LOG"):
            print(self.command, self.path, args[1:], file=sys.stderr)

    def _handle(self) -> None:
        address = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        self.body = self._read_body()
        self.signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        try:
            for methods, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, address.path)
                if match and self.command in methods.split():
                    found = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    with self.hub.lock:
                        status, headers, content = answer(self, **found)
                    break
            else:
                raise Refused(404, "", f"The loopback Hub has no {self.command} {address.path}")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            headers |= {"X-Repo-Commit": refused.commit} if refused.commit else {}
            status, content = refused.status, json_bytes({"error": str(refused)})
            if refused.status == 409:
                content = str(refused).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("X-Length", str(len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # --- answers --------------------------------------------------------------------------------------------------------

    def _repo(self, kind: str, name: str, writing: bool = False) -> Repo:
        if writing and not self.signed_in:
            raise Refused(401, "", "Invalid username or password.")
        return self.hub.repo(kind, name, self.signed_in)

    def whoami(self):
        if not self.signed_in:
            raise Refused(401, "", "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
        return ok({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    def create(self):
        if not self.signed_in:
            raise Refused(401, "", "Invalid username or password.")
        return ok(self.hub.create(json.loads(self.body)))

    def delete(self):
        asked = json.loads(self.body)
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or USER}/{asked['name']}"
        self._repo(kind, name, writing=True)
        del self.hub.repos[kind, name]
        return ok({})

    def check_card(self):
        try:
            card_data(json.loads(self.body)["content"].encode())
        except yaml.YAMLError as error:
            return ok({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return ok({"errors": [], "warnings": []})

    def info(self, kind, name, revision="main"):
        repo = self._repo(kind, name)
        return ok(self.hub.info(repo, repo.at(revision), "blobs" in self.query))

    def refs(self, kind, name):
        repo = self._repo(kind, name)
        listed = {
            key: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": c.sha} for n, c in refs.items()]
            for key, where, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        }
        return ok({**listed, "converts": []})

    def commits(self, kind, name, revision):
        repo = self._repo(kind, name)
        listed = [
            {"id": c.sha, "title": c.title, "message": "", "date": c.date, "authors": [{"user": USER}]}
            for c in repo.history(repo.at(revision))
        ]
        return ok(listed)

    def tree(self, kind, name, revision, path=""):
        commit = self._repo(kind, name).at(revision)
        recursive, expand = (self.query.get(key, "").lower() in ("true", "1") for key in ("recursive", "expand"))
        return ok(self.hub.tree(commit, path.strip("/"), recursive, expand))

    def paths_info(self, kind, name, revision):
        commit = self._repo(kind, name).at(revision)
        text = self.body.decode()
        is_json = text.startswith("{")
        paths = json.loads(text)["paths"] if is_json else parse_qs(text).get("paths", [])
        entries = {entry["path"]: entry for entry in self.hub.tree(commit, "", True, True)}
        return ok([entries[path.strip("/")] for path in paths if path.strip("/") in entries])

    def branch(self, kind, name, ref):
        repo = self._repo(kind, name, writing=True)
        if self.command == "DELETE":
            del repo.branches[ref]
        elif ref in repo.branches:
            raise Refused(409, "", "Reference already exists")
        else:
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            repo.branches[ref] = repo.at(start)
        return ok({})

    def tag(self, kind, name, ref):
        repo = self._repo(kind, name, writing=True)
        if self.command == "DELETE":
            del repo.tags[ref]
            return ok({})
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise Refused(409, "", "Reference already exists")
        repo.tags[tag] = repo.at(ref)
        return ok({})

    def settings(self, kind, name):
        repo, asked = self._repo(kind, name, writing=True), json.loads(self.body)
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return ok({})

    def preupload(self, kind, name, revision):
        """Which files the client must send by LFS."""
        commit, answers = self._repo(kind, name, writing=True).at(revision), []
        for each in json.loads(self.body)["files"]:
            large = each["path"].endswith(LARGE) or b"\0" in base64.b64decode(each["sample"])
            there = commit.files.get(each["path"])
            answers.append(
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": there and (there.sha256 if there.is_lfs else there.oid),
                }
            )
        return ok({"files": answers})

    def commit(self, kind, name, revision):
        return ok(self.hub.commit(self._repo(kind, name, writing=True), revision, self.body))

    def ask_for_large(self, kind, name):
        self._repo((kind or "models/").rstrip("/"), name, writing=True)
        return ok(self.hub.ask_for_large(json.loads(self.body)["objects"]))

    def large(self, oid, part=""):
        hub = self.hub
        if self.command == "PUT" and part:
            hub.parts[oid, int(part)] = self.body
            return 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'}, b""
        if self.command == "PUT":
            hub.keep_large(oid, self.body)
        elif self.command == "POST" and part == "verify":
            assert len(hub.large[oid]) == json.loads(self.body)["size"]
        elif self.command == "POST":
            hub.join_parts(oid, json.loads(self.body))
        else:
            return self._content(hub.large[oid], {"ETag": f'"{oid}"'})
        return 200, {}, b""

    def resolve(self, kind, name, revision, path):
        commit = self._repo((kind or "models/").rstrip("/"), name).at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found", commit.sha)
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.oid}"'
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
            return 302, headers | {"Location": f"{self.hub.storage}/lfs/{blob.sha256}"}, b""
        return self._content(blob.content, headers)

    def _content(self, content: bytes, headers: dict[str, str]):
        """The answer with a file, or with the range of it that was asked for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if self.command == "HEAD":
            return 200, headers | {"X-Length": str(len(content))}, b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 200, headers, content
        start, stop = int(asked[1]), int(asked[2] or len(content) - 1) + 1
        return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def ok(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json_bytes(value)


ROUTES: list[tuple[str, str, Callable]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("DELETE", "/api/repos/delete", Handler.delete),
    ("POST", "/api/validate-yaml", Handler.check_card),
    ("GET", OF_REPO, Handler.info),
    ("GET", f"{OF_REPO}/revision/{AT}", Handler.info),
    ("GET", f"{OF_REPO}/refs", Handler.refs),
    ("GET", f"{OF_REPO}/commits/{AT}", Handler.commits),
    ("GET", f"{OF_REPO}/tree/{AT}(?P<path>/.*)?", Handler.tree),
    ("POST", f"{OF_REPO}/paths-info/{AT}", Handler.paths_info),
    ("POST DELETE", f"{OF_REPO}/branch/(?P<ref>[^/]+)", Handler.branch),
    ("POST DELETE", f"{OF_REPO}/tag/(?P<ref>[^/]+)", Handler.tag),
    ("PUT", f"{OF_REPO}/settings", Handler.settings),
    ("POST", f"{OF_REPO}/preupload/{AT}", Handler.preupload),
    ("POST", f"{OF_REPO}/commit/{AT}", Handler.commit),
    ("POST", f"/(?P<kind>datasets/|spaces/)?{REPO}\\.git/info/lfs/objects/batch", Handler.ask_for_large),
    ("GET HEAD PUT POST", "/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\\d+|verify))?", Handler.large),
    ("GET HEAD", f"/(?P<kind>datasets/|spaces/)?{REPO}/resolve/{AT}/(?P<path>.+)", Handler.resolve),
]


class LoopbackHub:
    """The server in a thread of this process, for the length of a block. `environment` is for processes that use it."""

    def __init__(self) -> None:
        self.hub = Hub()
        handler = type("HandlerOfHub", (Handler,), {"hub": self.hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.hub.url = self.url = f"http://127.0.0.1:{port}"
        self.hub.storage = f"http://localhost:{port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: os.PathLike) -> dict[str, str]:
        """Environment variables for a process that uses this Hub, with its cache in the folder `home`."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        return others | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def files(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository."""
        return {path: blob.content for path, blob in self.hub.repos[kind, name].at(revision).files.items()}

    def titles(self, name: str, kind: str = "models", revision: str = "main") -> list[str]:
        """The titles of a repository's commits, the newest first."""
        repo = self.hub.repos[kind, name]
        return [commit.title for commit in repo.history(repo.at(revision))]
