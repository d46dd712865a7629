"""`ldis demo`: a page in the browser to try a model with."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from ldis_lightning.demo.page import Page

DESCRIPTION = """Open a page in the browser: paint over a thing in one picture, and see it found in others.

Pictures stay in this program's memory and its temporary folder, and are gone when it ends."""

PORTS = range(7860, 7960)
"""Tried in order where none is asked for."""
MOST_BYTES = 2**28
"""Of an uploaded file."""
MOST_VISITORS = 8
"""Whose pictures are kept; then those of who was away longest are forgotten."""
MOST_WAITING = 32
"""Requests that wait for the model; further ones are told to come back."""


def main(args: Sequence[str]) -> int:
    """Run `ldis demo` until it is interrupted or ended.

    Raises:
        UserError: the arguments are wrong, Gradio is not installed, there is no such model, or the port is taken.
    """
    options = _parser().parse(list(args))
    with ended_by_signals() as ended, tempfile.TemporaryDirectory(prefix="ldis-demo-") as folder:
        prepare_gradio(folder)
        page = build(options.model, options.device, Path(folder), options.trust_classes)
        address = launch(page, options.host, options.port)
        try:
            with suppress(KeyboardInterrupt):
                _greet(address, options)
                wait(ended)
        finally:
            page.blocks.close(verbose=False)
    return 0


@contextmanager
def ended_by_signals() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C or SIGTERM sets the event and interrupts. Others do not disturb the tidying up.

    Raises:
        KeyboardInterrupt: at the first one.
    """
    ended = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def end(*_: object) -> None:
        if not ended.is_set():
            ended.set()
            raise KeyboardInterrupt

    before = [signal.signal(number, end) for number in numbers]
    try:
        yield ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def wait(ended: threading.Event) -> None:
    """Until someone ends the program."""
    ended.wait()


def prepare_gradio(folder: str) -> None:
    """Before Gradio is imported: it reads these once. Files go into the folder, and nothing goes anywhere else.

    Raises:
        UserError: Gradio is not installed.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"ldis demo: {error.name} is missing: run `pip install 'ldis-lightning[demo]'`.") from error


def build(model: str, device: str | None, folder: Path, trust_classes: bool = False) -> Page:
    """The page of a model.

    Args:
        model: as `InContextSegmentationPipeline.from_pretrained` takes it.
        device: `cpu`, `cuda` or `mps`; None for the fastest.
        folder: for files that the browser fetches.
        trust_classes: as there.

    Raises:
        UserError: there is no such model or device.
    """
    from ldis_lightning.demo.page import Page
    from ldis_lightning.pipeline import InContextSegmentationPipeline
    from ldis_lightning.segment_command import best_device

    pipe = InContextSegmentationPipeline.from_pretrained(model, trust_classes=trust_classes)
    return Page(pipe.to(device or best_device()), folder)


def launch(page: Page, host: str, port: int | None) -> str:
    """Serve the page from threads of this process.

    Returns:
        Its address.

    Raises:
        UserError: the port is taken, or this machine has no such address.
    """
    from ldis_lightning.demo.guard import middleware
    from ldis_lightning.demo.layout import CSS, theme

    number = free_port(host, port)
    page.blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=4, api_open=False)
    quiet: dict[str, Any] = {"quiet": True, "share": False, "inbrowser": False, "prevent_thread_lock": True}
    closed: dict[str, Any] = {"mcp_server": False, "ssr_mode": False, "run_history": False, "pwa": False}
    page.blocks.launch(
        server_name=host,
        server_port=number,
        app_kwargs={"middleware": middleware(host)},
        allowed_paths=[],
        max_file_size=MOST_BYTES,
        state_session_capacity=MOST_VISITORS,
        enable_monitoring=False,
        footer_links=[],
        theme=theme(),
        css_paths=CSS,
        show_error=False,
        **quiet,
        **closed,
    )
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{number}"


def free_port(host: str, port: int | None) -> int:
    """A port that can be bound: the one asked for, or the first of `PORTS`.

    Args:
        host: address to bind.
        port: None for any of `PORTS`; 0 for any at all.

    Raises:
        UserError: it is taken, or this machine has no such address.
    """
    import socket

    for number in PORTS if port is None else [port]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                return int(trial.getsockname()[1])
        except socket.gaierror as error:
            raise UserError(f"--host {host}: there is no such address ({error.strerror}).") from error
        except OSError as error:
            if port is not None:
                raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose others.") from error
    raise UserError(f"--port: {PORTS[0]} to {PORTS[-1]} are all taken: choose another.")


def _greet(address: str, options: Namespace) -> None:
    from ldis_lightning.demo.guard import is_loopback

    if not is_loopback(options.host):
        print(
            f"warning: --host {options.host}: everyone who reaches this machine over its networks can use this page, "
            "without a password",
            file=sys.stderr,
        )
    print(f"{address} (model: {options.model}; Ctrl-C ends it)", flush=True)


def _parser() -> Parser:
    parser = Parser("ldis demo", DESCRIPTION)
    parser.add_argument("--model", default="tiny", help="folder of `ldis convert`, `tiny`, or a hub id (default: tiny)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, which only this machine reaches)"
    )
    parser.add_argument("--port", type=at_least(0), metavar="N", help="port (default: the first free one from 7860 on)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda or mps (default: the fastest that there is)")
    parser.add_argument(
        "--trust_classes", action="store_true", help="let the model's config name code and files of its own"
    )
    return parser
