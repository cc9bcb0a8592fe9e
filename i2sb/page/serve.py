"""From settings to a server that serves the page until it is stopped, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from i2sb.config import PageConfig
from i2sb.errors import UserError, require
from i2sb.page.guard import Guard
from i2sb.page.offers import Shelf, find_offers
from i2sb.page.visitors import Visitors
from i2sb.stopping import StopRequest

INSTALL = "pip install -r scripts/requirements-app.txt"
ROOM = 1_000_000  # bytes that a request may have beyond the largest file


def run(config: PageConfig) -> None:
    """Serve the page until SIGINT or SIGTERM comes. Raises UserError if that cannot be."""
    offers = find_offers(config)
    device = _choose_device(config)
    with _listen(config) as listener, TemporaryDirectory(prefix="i2sb-page-") as folder:
        _prepare(config, Path(folder).resolve())
        try:
            import gradio
            import uvicorn
            from fastapi import FastAPI
        except ImportError as error:
            raise UserError("", None, f"the page needs the package {error.name}: {INSTALL}") from None
        from i2sb.page.layout import CSS, build_page, build_theme

        visitors = Visitors(Path(folder).resolve() / "visitors")
        page = build_page(config, Shelf(offers, device), visitors)
        app = gradio.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page,
            path="",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=int(config.max_megabytes * 1e6),
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=build_theme(),
            css=CSS.read_text(),
        )
        guarded = Guard(app, Path(folder).resolve(), config.host, int(config.max_megabytes * 1e6) + ROOM)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)  # from here on it can be stopped
                print(f"the page is at http://{shown}:{port}/ until Ctrl-C is pressed", flush=True)

        server = Server(uvicorn.Config(guarded, log_level="warning", server_header=False, timeout_graceful_shutdown=1))
        # What is cut off when it is asked to stop, such as a page that is open, is no error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        with StopRequest(), visitors.all_leaving():  # uvicorn passes the signal on once it has ended
            server.run(sockets=[listener])


def _choose_device(config: PageConfig) -> torch.device:
    has_gpu = torch.cuda.is_available()
    require(config.device != "cuda" or has_gpu, "device", "cuda", "torch finds no GPU here")
    return torch.device("cuda" if config.device != "cpu" and has_gpu else "cpu")


def _listen(config: PageConfig) -> socket.socket:
    """Take the address. Raises UserError if it is taken, or none of this machine's."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen()
    except socket.gaierror as error:
        listener.close()
        raise UserError("host", config.host, f"is no address of this machine ({error.strerror})") from None
    except OSError as error:
        listener.close()
        must = f"cannot be served at `host` {config.host} ({error.strerror}); name another, or 0 for any that is free"
        raise UserError("port", config.port, must) from None
    return listener


def _prepare(config: PageConfig, folder: Path) -> None:
    """Tell Gradio, before it is imported, where its files go and to report to nobody; and Pillow what is too large."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    Image.MAX_IMAGE_PIXELS = int(config.max_megapixels * 1e6) // 2  # it refuses what has more than twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
