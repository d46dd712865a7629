"""What the browser may do: talk to this page's own address, and nothing else."""

from __future__ import annotations

import ipaddress
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's own page needs both
        "style-src 'self' 'unsafe-inline'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class OwnAddressOnly:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class LoopbackNamesOnly:
    """Refuses requests under a name that is not loopback's. Starlette's own guard cannot read `[::1]:7860`."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        if scope["type"] in ("http", "websocket") and not is_loopback(without_port(Headers(scope=scope).get("host"))):
            await PlainTextResponse("Invalid host header", status_code=400)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def without_port(host: str | None) -> str:
    """The name or address in a `Host` header: `[::1]:7860` -> `::1`."""
    host = (host or "").lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def middleware(host: str) -> list[Middleware]:
    """For the server of a host.

    On loopback it answers to loopback's names alone: a page elsewhere cannot reach it under a name of its own that it
    lets point here.
    """
    guards = [Middleware(OwnAddressOnly)]
    if is_loopback(host):
        guards.append(Middleware(LoopbackNamesOnly))
    return guards
