"""What the server answers, and what not: between the browser and Gradio's application.

Gradio names its temporary files by their paths on the machine. Here its folder goes by ALIAS in all that leaves the
machine and in all that comes in, so that no path is told and no other file can be asked for. Of Gradio's addresses
those are open that the page itself uses; the browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ALIAS = "/pictures"
_FILE = "/gradio_api/file="
_OPEN = {
    "GET": (
        *("/", "/config", "/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"),
        *("/gradio_api/startup-events", "/gradio_api/queue/data", "/gradio_api/upload_progress"),
        *("/gradio_api/app_id",),
    ),
    "POST": (
        *("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/component_server"),
        *("/gradio_api/reset", "/gradio_api/cancel"),
    ),
}
_OPEN_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/", _FILE)
_TEXT = (b"text/html", b"application/json", b"text/event-stream")
_HERE = ("127.0.0.1", "localhost", "[::1]")

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox"


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, folder: Path, host: str, largest: int) -> None:
        """folder: that of the temporary files. host: the address served. largest: bytes of a request's body."""
        self.app, self.largest = app, largest
        self.folder = str(folder)
        self.names = {*_HERE, host} if host in _HERE or host == "::1" else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = 404 if scope["type"] != "http" else self._refuse(scope)
        if refusal:
            await _answer(send, refusal)
            return
        if scope["path"].startswith(_FILE + ALIAS):
            path = _FILE + self.folder + scope["path"].removeprefix(_FILE + ALIAS)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        headers = dict(scope["headers"])
        scope = {**scope, "headers": _without(scope, b"accept-encoding")}  # what is packed could not be put right
        body, too_large = b"", False
        if scope["method"] == "POST" and not headers.get(b"content-type", b"").startswith(b"multipart/form-data"):
            while not too_large:
                message = await receive()
                body += message.get("body", b"")
                too_large = len(body) > self.largest
                if not message.get("more_body"):
                    break
            if too_large:
                await _answer(send, 413)
                return
            try:
                body = json.dumps(self._let_in(json.loads(body))).encode() if body else body
            except (ValueError, RecursionError):
                await _answer(send, 403)
                return
            scope = {**scope, "headers": [*_without(scope, b"content-length"), (b"content-length", b"%d" % len(body))]}
            receive = _once(body, receive)
        else:
            receive = self._limit(receive)
        await self.app(scope, receive, _Answer(self.folder, scope["path"].startswith(_FILE), send))

    def _refuse(self, scope: Message) -> int:
        """Return the status that a request is refused with, 0 for one that is not."""
        method, path, headers = scope["method"], scope["path"], dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.names is not None and host.rpartition(":")[0] not in self.names and host not in self.names:
            return 400  # a name that somebody else lets point here
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            return 403  # another site's page
        if int(headers.get(b"content-length", b"0")) > self.largest:
            return 413
        if path.startswith(_FILE):
            asked = PurePosixPath(path.removeprefix(_FILE))
            inside = asked.is_relative_to(ALIAS) and ".." not in asked.parts
            return 0 if method in ("GET", "HEAD") and inside else 404
        known = path in _OPEN.get("GET" if method == "HEAD" else method, ())
        return 0 if known or (method in ("GET", "HEAD") and path.startswith(_OPEN_BELOW)) else 404

    def _let_in(self, value: Any) -> Any:
        """Return what was asked for, its files by their paths. Raises ValueError if one is not among the page's own.

        Gradio takes a copy of any file that a request names, wherever it lies, so it must not see others.
        """
        if isinstance(value, list):
            return [self._let_in(item) for item in value]
        if not isinstance(value, dict):
            return value
        inside = {name: self._let_in(item) for name, item in value.items() if name != "url"}
        if inside.get("path") is not None:
            path = PurePosixPath(str(inside["path"]))
            if not path.is_relative_to(ALIAS) or ".." in path.parts:
                raise ValueError("no file of the page")
            inside["path"] = self.folder + str(path).removeprefix(ALIAS)
        return inside

    def _limit(self, receive: Receive) -> Receive:
        """Return what lets no more than `largest` bytes of a body in, whatever was announced."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= self.largest else {"type": "http.disconnect"}

        return limited


class _Answer:
    """Sends what is answered on, with the folder's name in texts put right, and what the browser must be told."""

    def __init__(self, folder: str, is_file: bool, send: Send) -> None:
        self.folder, self.is_file, self.send = folder, is_file, send
        self.start: Message = {}
        self.is_text = self.streams = False
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self.is_text = kind.startswith(_TEXT) and not self.is_file
            self.streams = kind.startswith(b"text/event-stream")
            policy = _FILE_POLICY if self.is_file else _POLICY
            headers = _without(message, b"content-security-policy", *((b"content-length",) if self.is_text else ()))
            more = {
                b"content-security-policy": policy.encode(),
                b"x-content-type-options": b"nosniff",
                b"referrer-policy": b"no-referrer",
            }
            self.start = {**message, "headers": [*headers, *more.items()]}
            if not self.is_text or self.streams:
                await self.send(self.start)
            return
        if not self.is_text:
            await self.send(message)
        elif self.streams:  # every message holds whole events
            await self.send({**message, "body": self._put_right(message.get("body", b""))})
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                body = self._put_right(self.body)
                self.start["headers"].append((b"content-length", b"%d" % len(body)))
                await self.send(self.start)
                await self.send({**message, "body": body, "more_body": False})

    def _put_right(self, body: bytes) -> bytes:
        return body.replace(_quoted(self.folder), _quoted(ALIAS))


def _quoted(path: str) -> bytes:
    """Return a path as it stands in JSON."""
    return json.dumps(path, ensure_ascii=False)[1:-1].encode()


def _without(message: Message, *names: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in message["headers"] if name.lower() not in names]


def _once(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read already, and then what else comes."""
    left = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return again


async def _answer(send: Send, status: int) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
