"""The page in a real browser, and what its server answers to those who are not one."""

from __future__ import annotations

import http.client
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import make_image
from helpers.programs import ENVIRONMENT, ROOT, run_python
from helpers.wrong_uploads import make_wrong

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 120_000  # milliseconds after which the page is taken to hang


@pytest.fixture(scope="module")
def server(trained_run, tmp_path_factory):
    """The page with two runs, stopped at the end; its answers, and its folder of temporary files."""
    pytest.importorskip("gradio", reason="the page needs gradio (scripts/requirements-app.txt)")
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(trained_run, folder / "results/tiny")
    (folder / "weights").mkdir()
    shutil.copy(ROOT / "weights/photos-inpaint.safetensors", folder / "weights")
    (folder / "temporary").mkdir()
    command = [sys.executable, str(ROOT / "scripts/app.py"), "--port", "0", "--device", "cpu"]
    command += ["--max-megapixels", "1", "--max-megabytes", "2"]
    environment = {**ENVIRONMENT, "TMPDIR": str(folder / "temporary")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
    assert address is not None
    yield SimpleNamespace(url=address[0], port=int(address[1]), folder=folder, process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not list((folder / "temporary").glob("i2sb-page-*"))  # nothing of it stays


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed here (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        driven = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield driven
        driven.close()


@pytest.fixture
def open_page(server, browser):
    """Open the page as a visitor of its own; what it asked for and what texts came are in its lists."""
    contexts = []

    def visit():
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.asked, page.answers = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("response", lambda response: page.answers.append(response))
        page.goto(server.url)
        page.wait_for_selector("#about b")
        return page

    yield visit
    for context in contexts:
        context.close()


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


def choose(page, where: str, name: str | re.Pattern[str]) -> None:
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=name).first.click()


def upload(page, path: Path) -> None:
    page.set_input_files("#drop input[type=file]", path)


def set_steps(page, nfe: int) -> None:
    if not page.locator("#nfe input[type=number]").is_visible():
        page.locator("#settings button").first.click()
    page.fill("#nfe input[type=number]", str(nfe))
    page.press("#nfe input[type=number]", "Tab")


def restore(page) -> str:
    """Press Restore, wait for the end, and return what the page then says."""
    page.click("#go")
    page.wait_for_selector("#go:has-text('Restoring')")
    page.wait_for_selector("#go:not(:has-text('Restoring'))")
    return page.inner_text("#said")


def download(page) -> np.ndarray:
    with page.expect_download() as info:
        page.click("#download")
    return np.asarray(Image.open(info.value.path()))


def fetch(page, source: str) -> np.ndarray:
    response = page.request.get(source)
    assert response.ok
    return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))


def test_a_picture_is_restored_shown_and_downloaded(server, open_page, tmp_path):
    page = open_page()
    choose(page, "#run", "tiny")
    page.wait_for_selector("#about :text('low resolution')")
    picture = save(make_image(1, 64, 48), tmp_path / "picture.png")
    upload(page, picture)
    page.wait_for_selector("#given img")
    set_steps(page, 3)
    assert "64 × 48 pixels" in restore(page)
    sources = [image.get_attribute("src") for image in page.locator("#slider img").all()]
    before, after = (fetch(page, source) for source in dict.fromkeys(sources))
    assert np.array_equal(before, np.asarray(Image.open(picture)))
    assert np.array_equal(after, download(page)) and not np.array_equal(after, before)
    page.wait_for_selector("#film img")
    # Nothing was asked of another machine, and no answer tells where something lies on this one.
    assert all(url.startswith((server.url, "blob:", "data:")) for url in page.asked)
    text = "".join(answer.text() for answer in page.answers if _is_text(answer))
    for folder in (server.folder, ROOT, Path(tempfile.gettempdir()), Path.home(), Path(sys.prefix)):
        assert f"{folder}/" not in text, folder


def _is_text(answer) -> bool:
    kind = answer.headers.get("content-type", "")
    return kind.startswith(("text/html", "application/json")) and "/assets/" not in answer.url


def test_a_painted_hole_is_filled_and_the_rest_is_kept(open_page, tmp_path):
    page = open_page()
    choose(page, "#run", "photos-inpaint")
    page.wait_for_selector("#about :text('holes')")
    picture = save(make_image(2, 128, 96).resize((128, 96)), tmp_path / "picture.png")
    upload(page, picture)
    page.wait_for_selector("#painter canvas")
    assert "Paint over" in restore(page)  # first of all
    page.locator("#painter canvas").first.scroll_into_view_if_needed()
    box = page.locator("#painter canvas").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle[0] - 30, middle[1])
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1], steps=10)
    page.mouse.up()
    assert "128 × 96 pixels" in restore(page)
    original, restored = np.asarray(Image.open(picture)), download(page)
    before = fetch(page, page.locator("#slider img").first.get_attribute("src"))
    hole = (before != original).any(-1)
    assert 0.005 < hole.mean() < 0.5
    assert np.array_equal(restored[~hole], original[~hole])
    assert (restored[hole] != original[hole]).any(-1).mean() > 0.8


def test_stop_ends_a_long_restoration_and_the_next_one_runs(open_page, tmp_path):
    page = open_page()
    choose(page, "#run", "tiny")
    upload(page, save(make_image(3, 500, 400), tmp_path / "picture.png"))
    page.wait_for_selector("#given img")
    set_steps(page, 100)
    page.click("#go")
    page.wait_for_selector("#slider:has-text('step ')")
    page.click("#halt")
    page.wait_for_selector("#said :text-is('Stopped.')")
    set_steps(page, 1)
    assert "500 × 400 pixels" in restore(page)


def test_the_page_survives_twenty_wrong_uploads(server, open_page, tmp_path):
    page = open_page()
    choose(page, "#run", "tiny")
    page.wait_for_selector("#about :text('low resolution')")
    for name, content in make_wrong().items():
        path = tmp_path / name
        path.write_bytes(content)
        upload(page, path)
        # Refused by its first bytes it is named in full, later without its ending.
        known = re.escape(Path(name).stem) if "%" not in name else "2f"
        alert = page.locator("#trouble p[role=alert]").filter(has_text=re.compile(known))
        alert.wait_for()
        line = alert.inner_text()
        assert "\n" not in line.strip() and "/" not in line and "Traceback" not in line, line
    upload(page, save(make_image(1, 64, 48), tmp_path / "right.png"))
    page.wait_for_selector("#given img")
    assert "64 × 48 pixels" in restore(page)
    assert server.process.poll() is None


def test_two_visitors_do_not_mix(open_page, tmp_path):
    pages = [open_page(), open_page()]
    for number, page in enumerate(pages):
        choose(page, "#run", "tiny")
        page.wait_for_selector("#about :text('low resolution')")
        upload(page, save(make_image(number, 64 + number, 48), tmp_path / f"{number}.png"))
        page.wait_for_selector("#given img")
    for page in pages:  # both wait at once
        page.click("#go")
    for number, page in enumerate(pages):
        page.wait_for_selector(f"#said :text('{64 + number} × 48 pixels')")
        assert download(page).shape == (48, 64 + number, 3)


# --- Those who are no browser ----------------------------------------------------------------------------------------


def ask(server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, {name.lower(): value for name, value in response.getheaders()}


def test_no_file_outside_is_served(server):
    secret = server.folder / "results/tiny/config.yaml"
    inside = next((server.folder / "temporary").glob("i2sb-page-*"))
    for path in (secret, "/etc/passwd", inside, f"{inside}/../../results/tiny/config.yaml", ROOT / "pyproject.toml"):
        assert ask(server, "GET", f"/gradio_api/file={path}")[0] == 404
    for path in (f"/pictures{'/..' * 9}{secret}", "/pictures/%2e%2e/%2e%2e/results/tiny/config.yaml", "/pictures"):
        assert ask(server, "GET", f"/gradio_api/file={path}")[0] in (403, 404)
    assert ask(server, "GET", "/gradio_api/file=http://127.0.0.1:1/x")[0] == 404


def test_a_path_that_is_given_as_an_upload_is_not_read(server):
    config = json.loads(ask(server, "GET", "/config")[1])
    drop = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "drop")
    function = next(d["id"] for d in config["dependencies"] if [drop, "upload"] in [list(t) for t in d["targets"]])
    secret = str(server.folder / "results/tiny/config.yaml")
    given = {"path": secret, "meta": {"_type": "gradio.FileData"}}
    call = {"data": [given, "tiny"], "fn_index": function, "session_hash": "somebody"}
    for kind in ("application/json", "application/vnd.any+json", "text/plain"):
        body = json.dumps(call).encode()
        assert ask(server, "POST", "/gradio_api/queue/join", body, **{"Content-Type": kind})[0] == 403
    nested = {**call, "data": [{"background": None, "layers": [{**given, "path": f"/pictures/..{secret}"}]}, "tiny"]}
    body, headers = json.dumps(nested).encode(), {"Content-Type": "application/json"}
    assert ask(server, "POST", "/gradio_api/queue/join", body, **headers)[0] == 403
    assert (server.folder / "results/tiny/config.yaml").exists()


def test_only_what_the_page_needs_is_answered(server):
    for path in ("/gradio_api/info", "/gradio_api/openapi.json", "/docs", "/openapi.json", "/monitoring", "/nothing"):
        assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", "/gradio_api/run/predict", b"{}", **{"Content-Type": "application/json"})[0] == 404
    assert ask(server, "GET", "/", Host="elsewhere.example")[0] == 400
    assert ask(server, "POST", "/gradio_api/queue/join", b"{}", Origin="http://elsewhere.example")[0] == 403
    assert ask(server, "POST", "/gradio_api/upload", bytes(4_000_000))[0] == 413
    status, _, headers = ask(server, "GET", "/")
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]


def test_a_port_that_is_taken_is_one_line(server):
    command = ("scripts/app.py", "--ckpt", "weights/photos-jpeg.safetensors", "--port", server.port)
    done = run_python(*command, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"app.py: error: --port {server.port}: ")


def test_ctrl_c_ends_it_and_frees_the_port(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio (scripts/requirements-app.txt)")
    command = [sys.executable, "scripts/app.py", "--ckpt", "weights/photos-jpeg.safetensors", "--port", "0"]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and said == "" and not list(tmp_path.glob("i2sb-page-*"))
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_without_gradio_a_line_says_what_to_install(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(\"No module named 'gradio'\", name='gradio')\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = ("scripts/app.py", "--ckpt", "weights/photos-jpeg.safetensors", "--port", "0")
    done = run_python(*command, check=False, env=environment)
    assert done.returncode == 2
    assert (
        done.stderr == "app.py: error: the page needs the package gradio: pip install -r scripts/requirements-app.txt\n"
    )
