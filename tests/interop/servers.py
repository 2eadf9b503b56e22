"""Small servers on the loopback: the part of the Hugging Face hub that huggingface_hub speaks with, and plain files with ranges, as OpenAI's address has."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator


@dataclasses.dataclass
class Repository:
    """A model on the hub: commits, each {file: content}, and the names of some."""

    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)  # branch or tag -> commit
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit and point names at it; return its hash."""
        commit = hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()
        self.commits[commit] = files
        self.refs |= dict.fromkeys(refs or ("main",), commit)
        return commit


class Server(http.server.ThreadingHTTPServer):
    """What both have: an address, the requests so far, bytes of files sent, and where to cut connections."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.sent = 0
        self.cuts: list[int] = []  # for each of the next answers with a file's content: bytes after which the connection is closed
        self.content_of = lambda path, content: content  # changes content on its way

    def handle_error(self, request, client_address):
        """A client that goes away is no error here."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with JSON, with an error, or with a file, whole or from a byte on."""

    def log_message(self, *_):
        pass

    def parse_request(self):
        parsed = super().parse_request()
        if parsed:
            self.server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        return parsed

    def answer(self, value, status=200):
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def refuse(self, status, code, message="refused"):
        self.send(b"{}", status, {"X-Error-Code": code, "X-Error-Message": message})

    def send(self, content, status=200, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def file(self, content, headers, ranges=True):
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if ranges else None
        start = int(begin[1]) if begin else 0
        if begin:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        rest = self.server.content_of(self.path, content)[start:]
        if self.command == "HEAD" or not self.server.cuts:
            self.server.sent += 0 if self.command == "HEAD" else len(rest)
            return self.send(rest, 206 if begin else 200, headers)
        cut = self.server.cuts.pop(0)
        self.send_response(206 if begin else 200)
        for name, value in (headers | {"Content-Length": str(len(rest))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest[:cut])
        self.server.sent += len(rest[:cut])
        self.close_connection = True

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class HubServer(Server):
    """The hub: `repositories` by name, and the tokens of people who may read private ones and write."""

    def __init__(self):
        super().__init__(HubHandler)
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"good"}
        self.uploaded: dict[str, bytes] = {}  # by SHA-256


class HubHandler(Handler):
    """The paths of the hub's API that a download and an upload need."""

    def do_GET(self):
        """Answer what a model is, which files it has, and one of them."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        for pattern, respond in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if (match := re.fullmatch(pattern, path)) and not (respond == self.info and "/tree/" in path):
                return self.of_repository(match[1], match[2], respond, *match.groups()[2:])
        return self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def may(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.server.tokens

    def of_repository(self, name, revision, respond, *more):
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.may()):
            return self.refuse(401, "RepoNotFound", "Repository not found")
        commit = revision if revision in repository.commits else repository.refs.get(revision or "main")
        if commit is None and (revision or repository.commits):
            return self.refuse(404, "RevisionNotFound")
        return respond(repository, name, commit, *more)

    def info(self, repository, name, commit):
        self.answer({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": [], "tags": [], "downloads": 0, "likes": 0})

    def tree(self, repository, name, commit):
        self.answer([{"type": "file", "path": file} | _described(file, content) for file, content in repository.commits[commit].items()])

    def resolve(self, repository, name, commit, file):
        if repository.gated and not self.may():
            return self.refuse(403, "GatedRepo")
        content = repository.commits.get(commit, {}).get(file)
        if content is None:
            return self.send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit or ""})
        described = _described(file, content)
        etag = described["lfs"]["oid"] if "lfs" in described else described["oid"]
        return self.file(content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})

    def do_POST(self):
        """Make a repository, say how files are uploaded, and commit them."""
        path, body = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path), self.body()
        if not self.may():
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = [{"path": each["path"], "uploadMode": _mode(each["path"]), "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self.answer({"files": files})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            actions = [each | {"actions": {"upload": {"href": f"{self.server.address}/upload/{each['oid']}"}}} for each in json.loads(body)["objects"]]
            return self.answer({"transfer": "basic", "objects": actions})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self.commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        return self.refuse(404, "EntryNotFound")

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            return self.answer({"error": "exists", "url": f"{self.server.address}/{name}"}, 409)
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(private=private)
        return self.answer({"url": f"{self.server.address}/{name}"})

    def do_PUT(self):
        """Take the content of a large file."""
        content = self.body()
        self.server.uploaded[hashlib.sha256(content).hexdigest()] = content
        self.send(b"")

    def commit(self, name, branch, lines):
        repository = self.server.repositories[name]
        files = dict(repository.commits.get(repository.refs.get(branch), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        commit = repository.commit(files, branch)
        self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})


def _mode(file):
    return "lfs" if file.endswith((".safetensors", ".bin")) else "regular"


def _described(file, content):
    """Size and hashes of a file, as the hub gives them."""
    oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return {"oid": oid, "size": len(content)} | ({"lfs": lfs} if _mode(file) == "lfs" else {})


class FileServer(Server):
    """Files by path, with ETags; `ranges` False: a server that does not know Range."""

    def __init__(self):
        super().__init__(FileHandler)
        self.files: dict[str, bytes] = {}
        self.ranges = True


class FileHandler(Handler):
    """Answers with a file or 404."""

    def do_GET(self):
        """Send a file, or the rest of it."""
        content = self.server.files.get(self.path.removeprefix("/"))
        if content is None:
            return self.refuse(404, "")
        return self.file(content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}, self.server.ranges)

    do_HEAD = do_GET


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
