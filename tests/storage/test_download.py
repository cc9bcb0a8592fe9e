"""Fetching files from a server that fails in every way it can."""

from __future__ import annotations

import hashlib
import http.server
import os
import sys
import threading
import types
from pathlib import Path

import pytest

from helpers.programs import ROOT, run_python
from i2sb.errors import UserError
from i2sb.storage.download import ITEMS, fetch

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file as `plan` says: a function of the request handler for each request, the last for the rest."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.content, self.etag = [whole], [], CONTENT, '"one"'
        self.url = f"http://127.0.0.1:{self.server_port}/file.pt"
        self.released = threading.Event()  # set when the test is over: silent answers end


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(dict(self.headers))
        plan = self.server.plan
        (plan.pop(0) if len(plan) > 1 else plan[0])(self)

    def log_message(self, *arguments):
        pass

    def head(self, status, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()


def whole(request, send=None):
    """Answer as a good server does, ranges included; `send` cuts off what is sent."""
    content, etag, begin = request.server.content, request.server.etag, 0
    if "Range" in request.headers and request.headers.get("If-Range") == etag:
        begin = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if begin >= len(content):
            return request.head(416, 0, Content_Range=f"bytes */{len(content)}")
        span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        request.head(206, len(content) - begin, ETag=etag, Content_Range=span)
    else:
        request.head(200, len(content), ETag=etag)
    return request.wfile.write(content[begin:][:send])


def truncated(request):
    whole(request, send=3000)


def stalled(request):
    whole(request, send=3000)
    request.wfile.flush()
    request.server.released.wait(20)


def nothing(request):
    request.server.released.wait(20)


def ignoring_ranges(request, send=None):
    request.head(200, len(CONTENT), ETag='"one"')
    request.wfile.write(CONTENT[:send])


def answer(status, **headers):
    return lambda request: request.head(status, 0, **headers)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def server():
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.released.set()
        serving.shutdown()
        thread.join()


def get(server, target, **options):
    # Where the server means to stall, it is not waited for long; elsewhere a busy machine must not look like a stall.
    silent = any(response in (stalled, nothing) for response in server.plan)
    fetch(server.url, target, **{"retry_delay": 0.0, "stall_seconds": 0.5 if silent else 30.0, "tries": 3, **options})


def assert_fetched(target):
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name], "something was left"


@pytest.mark.parametrize(
    "plan",
    [
        [whole],
        [truncated, whole],
        [truncated, truncated, truncated, truncated],
        [stalled, whole],
        [answer(500), answer(503), whole],
        [answer(429), whole],
        [truncated, answer(500), answer(500), truncated, answer(500), answer(500), whole],
        [lambda r: ignoring_ranges(r, 4000), ignoring_ranges],
        [truncated, ignoring_ranges],
        [truncated, answer(416), whole],
        [lambda r: r.connection.close(), whole],
    ],
    ids="whole truncated thrice stalled 5xx 429 mixed no-ranges no-more-ranges 416 broken".split(),
)
def test_arrives_whole(server, tmp_path, plan):
    server.plan = plan
    get(server, tmp_path / "a" / "file.pt", size=len(CONTENT), sha256=DIGEST)
    assert_fetched(tmp_path / "a" / "file.pt")


def test_goes_on_where_it_was(server, tmp_path):
    server.plan = [truncated, whole]
    get(server, tmp_path / "file.pt")
    assert "Range" not in server.requests[0]
    assert server.requests[1]["Range"] == "bytes=3000-" and server.requests[1]["If-Range"] == '"one"'


def test_a_later_call_goes_on_too(server, tmp_path):
    target = tmp_path / "file.pt"
    server.plan = [truncated, answer(500)]
    with pytest.raises(UserError, match="gave up after 3 tries that brought nothing new .*500.*; 3000 bytes are kept"):
        get(server, target)
    assert not target.exists() and (tmp_path / ".file.pt.partial").stat().st_size == 3000
    server.plan = [whole]
    get(server, target)
    assert server.requests[-1]["Range"] == "bytes=3000-"
    assert_fetched(target)


def test_stopped_before_the_last_step(server, tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    target = tmp_path / "file.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupted)
        get(server, target)
    get(server, target)
    assert len(server.requests) == 2, "a file that was complete is fetched again"
    assert_fetched(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_is_named_at_once(server, tmp_path):
    (tmp_path / ".file.pt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: .*.file.pt.partial"):
        get(server, tmp_path / "file.pt")
    assert len(server.requests) == 1


@pytest.mark.parametrize("validator", ['"two"', 'W/"weak"', None])
def test_parts_of_two_files_are_never_joined(server, tmp_path, validator):
    def old(request):
        request.head(200, len(CONTENT), **({"ETag": server.etag} if validator else {}))
        request.wfile.write(b"x" * 3000)

    if validator and validator.startswith("W/"):
        server.etag = validator
    server.plan = [old, lambda r: setattr(server, "etag", validator or '"new"') or whole(r)]
    get(server, tmp_path / "file.pt")
    assert_fetched(tmp_path / "file.pt")


def test_a_part_of_another_address_is_not_gone_on_with(server, tmp_path):
    server.plan = [truncated, answer(500)]
    with pytest.raises(UserError):
        get(server, tmp_path / "file.pt")
    server.plan, server.url = [whole], server.url + "?other"
    get(server, tmp_path / "file.pt")
    assert "Range" not in server.requests[-1]
    assert_fetched(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("plan", "options", "words"),
    [
        ([answer(404)], {}, "the server answers 404 Not Found; is the address right?"),
        ([answer(403)], {}, "the server answers 403"),
        ([answer(500)], {}, "gave up after 3 tries that brought nothing new (the server answers 500"),
        ([lambda r: ignoring_ranges(r, 4000)], {}, "after 4000 of 10240 bytes"),
        ([nothing], {}, "timed out"),
        ([answer(200, Content_Type="text/html; charset=utf-8")], {}, "is a web page, not the file"),
        ([answer(200)], {}, "0 bytes came, more are right"),
        ([whole], {"size": 10241}, "10240 bytes came, 10241 are right"),
        ([whole], {"sha256": "0" * 64}, f"its SHA-256 begins with {DIGEST}, {'0' * 64} is right"),
        ([whole], {"sha256": "0676ba61"}, f"its SHA-256 begins with {DIGEST[:8]}, 0676ba61 is right"),
    ],
    ids="404 403 500 never-whole silent page empty size digest prefix".split(),
)
def test_what_fails_is_said_in_one_line(server, tmp_path, plan, options, words):
    server.plan = plan
    with pytest.raises(UserError) as error:
        get(server, tmp_path / "file.pt", **options)
    assert words in str(error.value) and server.url in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "file.pt").exists()
    if "nothing was kept" in str(error.value):
        assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(server, tmp_path):
    (tmp_path / "file.pt").write_text("mine")
    with pytest.raises(UserError, match="file.pt: exists already"):
        get(server, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_text() == "mine" and not server.requests


def test_two_at_once_do_not_mix(server, tmp_path):
    import fcntl

    with open(tmp_path / ".file.pt.partial", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is fetching this file"):
            get(server, tmp_path / "file.pt")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "latest.pt", "https://"])
def test_other_kinds_of_addresses_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="give an address that begins with https"):
        fetch(url, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_connection_that_nobody_takes(tmp_path):
    with pytest.raises(UserError, match="gave up after 2 tries.*refused"):
        fetch("http://127.0.0.1:9/file", tmp_path / "a", tries=2, retry_delay=0.0)
    assert not list(tmp_path.iterdir())


def test_proxies_are_honoured(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/file.pt"))
    fetch("http://far.example/file.pt", tmp_path / "file.pt", tries=1)
    assert server.requests[0]["Host"] == "far.example"
    assert_fetched(tmp_path / "file.pt")


def test_waits_get_longer(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr("i2sb.storage.download.time.sleep", waits.append)
    server.plan = [answer(500)]
    with pytest.raises(UserError):
        get(server, tmp_path / "file.pt", retry_delay=2.0, tries=4)
    assert waits == [2.0, 4.0, 8.0]


DRIVE = "https://drive.google.com/file/d/some-id/view"


def test_google_drive_needs_gdown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="files on Google Drive need gdown: pip install gdown"):
        fetch(DRIVE, tmp_path / "file.pt")
    assert not list(tmp_path.iterdir())


def test_google_drive_goes_through_gdown_and_the_same_checks(tmp_path, monkeypatch):
    def download(url, output, fuzzy):
        assert url == DRIVE and fuzzy
        with open(output + ".new", "wb") as file:  # gdown writes beside, then moves
            file.write(CONTENT)
        os.replace(output + ".new", output)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    with pytest.raises(UserError, match="10240 bytes came, 1 are right"):
        fetch(DRIVE, tmp_path / "file.pt", size=1)
    fetch(DRIVE, tmp_path / "file.pt", sha256=DIGEST)
    assert_fetched(tmp_path / "file.pt")
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=lambda *a, **k: None))
    with pytest.raises(UserError, match="gdown fetched nothing"):
        fetch(DRIVE, tmp_path / "other.pt")


# --- the command -----------------------------------------------------------------------------------------------------


def test_names_of_all_that_is_needed():
    from i2sb.training.initial_weights import ADM_FILE

    assert {"adm256", "freeform-masks", "eval-list", "statistics-train", "statistics-val", "inception"} <= set(ITEMS)
    assert sum(item.folder.startswith("results/") for item in ITEMS.values()) == 9
    assert f"{ITEMS['adm256'].folder}/{ITEMS['adm256'].file}" == str(ADM_FILE)
    for item in ITEMS.values():
        assert not item.url or (item.url.startswith("https://") and item.url.endswith(item.file))
        assert item.sha256 in item.file


def test_the_command(server, tmp_path):
    script = ROOT / "scripts/download.py"
    shown = run_python(script, "--list").stdout
    assert all(name in shown for name in ITEMS) and "no address known: --url" in shown
    done = run_python(script, "sr4x-pool", "--url", server.url, "--dest", tmp_path, "--sha256", DIGEST)
    assert f"{tmp_path}/latest.pt: 10240 bytes, checked" in done.stdout
    for arguments, words in (
        (["sr4x-pool"], "no lasting address is known (released I²SB checkpoint, announced at"),
        (["sr4x-pol"], "sr4x-pol: unknown; did you mean sr4x-pool?"),
        (["sr4x-pool", "--url", server.url, "--dest", tmp_path], "latest.pt: exists already"),
        ([], "say what to fetch"),
    ):
        failed = run_python(script, *arguments, check=False)
        assert failed.returncode and words in failed.stderr and "Traceback" not in failed.stderr
