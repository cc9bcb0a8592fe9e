"""The few calls of the Hugging Face Hub that weights need, spoken by a local server that keeps files in memory."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TOKEN = "hf_ofthetests"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories by name, each with its files; those of `forbidden` organisations may not be written to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.forbidden, self.large, self.calls = {"others"}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer(status, {"error": code}, **({"X_Error_Code": code} if code else {}))

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.calls.append((self.command, path))
        match = re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path)
        if match is None:  # huggingface_hub of before 1.0 asks of a repository whether it has another kind of storage
            known = re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/revision/main", path)
            if known is None or known[1] not in self.server.repositories:
                return self.refuse(404)
            return self.answer(200, {"id": known[1], "sha": _COMMIT, "siblings": [], "xetEnabled": False})
        repository, revision, name = match.groups()
        if repository not in self.server.repositories:
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", "v1", _COMMIT):
            return self.refuse(404, "RevisionNotFound")
        files = self.server.repositories[repository]
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        digest = hashlib.sha256(files[name]).hexdigest()
        return self.answer(200, files[name], ETag=f'"{digest}"', X_Repo_Commit=_COMMIT)

    do_HEAD = do_GET

    def do_POST(self):
        path = self.path.partition("?")[0]
        self.server.calls.append((self.command, path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse(401)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] in self.server.forbidden:
                return self.refuse(403)
            if repository in self.server.repositories:
                return self.answer(409, {"url": f"{self.server.url}/{repository}"})
            self.server.repositories[repository] = {}
            return self.answer(200, {"url": f"{self.server.url}/{repository}", "name": repository})
        match = re.fullmatch(r"/(?:api/models/)?([\w-]+/[\w-]+?)(?:\.git/info)?/(preupload|commit|lfs)/.+", path)
        repository, call = match.groups()
        return getattr(self, call)(repository, body)

    def preupload(self, repository, body):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {True: "lfs", False: "regular"}
        told = [
            {"path": path, "uploadMode": modes[path.endswith(".safetensors")], "shouldIgnore": False} for path in files
        ]
        self.answer(200, {"files": told})

    def lfs(self, repository, body):
        objects = json.loads(body)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.server.url}/put/{entry['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def commit(self, repository, body):
        files = self.server.repositories[repository]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert line["key"] == "header", line
        url = f"{self.server.url}/{repository}/commit/{_COMMIT}"
        self.answer(200, {"success": True, "commitOid": _COMMIT, "commitUrl": url})
