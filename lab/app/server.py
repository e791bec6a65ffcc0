"""Serving the page: uvicorn around the mounted app, in a thread of its own.

`Blocks.launch` asks its own address with a short time-out, and on a busy machine takes its own slowness for a missing network.
Here the port is bound first, so what is wrong with it is told by the system, and nothing is asked.
"""

import functools
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.errors import LabError

LOOKS = Path(__file__).parent
# Where the theme's own colours stand out too little from what is behind them (less than 4.5 to 1).
LEGIBLE = {
    "body_text_color_subdued": "*neutral_600", "body_text_color_subdued_dark": "*neutral_400",
    "block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_400",
    "input_placeholder_color": "*neutral_600", "input_placeholder_color_dark": "*neutral_400",
    "button_primary_background_fill": "*primary_600", "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_600", "button_primary_background_fill_hover_dark": "*primary_700",
}  # fmt: skip
PAGES = 300  # whose state is kept; Gradio holds about 0.5 MB for each


class Server:
    """A page being served. url: where. close() ends it, and whatever is under way on it."""

    def __init__(self, blocks: gr.Blocks, host: str = "127.0.0.1", port: int = 0):
        """Serve until `close`; port 0 takes any free one. Raises LabError when the address cannot be used."""
        bound = _bind(host, port)
        shown = "localhost" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{bound.getsockname()[1]}/"
        # No waiting for open pages when it ends: each holds a connection for as long as it is open.
        config = uvicorn.Config(mounted(blocks), log_level="warning", timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._blocks = blocks
        self._ended = threading.Event()  # not Thread.join: where Ctrl+C interrupts that, Python 3.11 takes the thread for ended
        threading.Thread(target=self._run, args=(bound,), name="server", daemon=True).start()
        while not self._server.started:
            if self._ended.wait(0.01):
                raise LabError(f"The page could not be served at {self.url}; the terminal says why.")

    def _run(self, bound: socket.socket) -> None:
        try:
            self._server.run([bound])
        finally:
            self._ended.set()

    def close(self) -> None:
        """Stop answering, and free the port and the files that were handed out."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # that it cuts off open pages is meant
        self._blocks.close(verbose=False)
        self._server.should_exit = True
        self._ended.wait(10)

    def wait(self) -> None:
        """Until it ends."""
        while not self._ended.wait(1):  # with a limit, so that Ctrl+C is heard on every system
            pass

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def mounted(blocks: gr.Blocks) -> FastAPI:
    """The page as a web application: its own looks, no request to any other host, nothing told to anybody."""
    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    theme = gr.themes.Default(
        primary_hue="blue", font=system, font_mono=mono, spacing_size="sm", radius_size="sm", text_size="md"
    ).set(**LEGIBLE)
    blocks.state_session_capacity = PAGES
    blocks.preprocess_data = _telling_what_does_not_fit(blocks.preprocess_data)
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None, middleware=[Middleware(_CutUploads)]),
        blocks,
        path="/",
        theme=theme,
        css_paths=[LOOKS / "page.css"],
        head_paths=[LOOKS / "head.html"],
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size="4gb",
        show_error=False,
        mcp_server=False,
        pwa=False,
        app_kwargs={"exception_handlers": {RequestValidationError: _not_readable}},
    )


async def _not_readable(request: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's own answer repeats what was sent, and fails where that is no text or no number of JSON."""
    return JSONResponse({"error": "The request cannot be read; /gradio_api/info tells what each endpoint takes."}, 422)


def _telling_what_does_not_fit(preprocess: Callable) -> Callable:
    """Gradio's own check of what was sent, whose errors would reach a program without a word and the terminal in fifty lines."""

    @functools.wraps(preprocess)
    async def checked(*arguments, **options):
        try:
            return await preprocess(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:  # of each component its own
            said = "What was sent does not fit this endpoint; /gradio_api/info tells what it takes."
            raise gr.Error(said, print_exception=False) from error

    return checked


class _CutUploads:
    """Tells Gradio of an upload whose sender has gone by an error after which it removes what had come; of another it keeps the file."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = scope["type"] != "http" or not scope["path"].endswith("/upload")

        async def received() -> Message:
            nonlocal whole
            message = await receive()
            if message["type"] == "http.disconnect" and not whole:
                raise MultiPartException("The upload was cut off.")
            whole = whole or not message.get("more_body", False)
            return message

        await self.app(scope, received, send)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a page at that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(port: int) -> None:
    """Raise LabError for a number that is no port."""
    if not 0 < port < 65536:
        raise LabError(f"The port is {port}; give a number from 1 to 65535.")


def _bind(host: str, port: int) -> socket.socket:
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        raise LabError(f"Port {port} on {host} cannot be used ({error}); choose another with --port or --host.") from error
