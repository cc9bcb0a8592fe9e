"""What the guard lets in and out, around an application that answers what it was asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from i2sb.page.guard import Guard

FOLDER = Path("/somewhere/i2sb-page-1")


def ask(method: str, path: str, body: bytes = b"", largest: int = 1000, kind: bytes = b"application/json", **headers):
    """Return the status of an answer, its body and what the application was asked."""
    seen, sent = {}, []

    async def app(scope, receive, send):
        seen.update(path=scope["path"], body=(await receive()).get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": f'{{"path": "{FOLDER}/a.png"}}'.encode()})

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    given = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost:1", **headers}.items()
    ]
    scope = {"type": "http", "method": method, "path": path, "headers": given}
    asyncio.run(Guard(app, FOLDER, "127.0.0.1", largest)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], seen


@pytest.mark.parametrize("kind", [b"application/json", b"text/html", b"text/event-stream"])
def test_the_folder_goes_by_another_name_both_ways(kind):
    body = json.dumps({"data": [{"path": "/pictures/b.png", "url": "http://elsewhere"}]}).encode()
    status, answer, seen = ask("POST", "/gradio_api/queue/join", body, kind=kind)
    assert (status, json.loads(answer)) == (200, {"path": "/pictures/a.png"})
    assert json.loads(seen["body"]) == {"data": [{"path": f"{FOLDER}/b.png"}]}
    assert ask("GET", "/gradio_api/file=/pictures/b.png")[2]["path"] == f"/gradio_api/file={FOLDER}/b.png"


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(FOLDER / "b.png"), "/pictures/../x", "/picturesque/x", "http://a/b", 5]
)
def test_no_other_file_can_be_named(path):
    for data in ([{"path": path}], {"deep": [[{"layers": [{"path": path}]}]]}):
        status, _, seen = ask("POST", "/gradio_api/queue/join", json.dumps(data).encode())
        assert status == 403 and not seen
    assert ask("GET", f"/gradio_api/file={path}")[0] == 404


def test_what_is_too_large_malformed_or_from_elsewhere_is_refused():
    join = "/gradio_api/queue/join"
    assert ask("POST", join, b"[" + b"1," * 600 + b"1]")[0] == 413
    assert ask("POST", join, content_length="1001")[0] == 413
    assert ask("POST", join, b"{")[0] == ask("POST", join, b"[" * 900)[0] == 403
    assert ask("POST", join, b"{}", origin="http://elsewhere.example")[0] == 403
    assert ask("POST", join, b"{}", origin="http://localhost:1")[0] == 200
    assert ask("GET", "/", host="elsewhere.example:1")[0] == 400
    assert ask("GET", "/gradio_api/info")[0] == ask("POST", "/gradio_api/run/predict")[0] == ask("PUT", "/")[0] == 404
