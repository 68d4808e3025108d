"""Where the page is served, and to whom."""

import errno
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chiaroscuro.app.page import CSS, THEME

EVERYWHERE = ("0.0.0.0", "::")


class Gate:
    """Refuses requests for another host than `names`, and uploads, which the page has no use for.

    Another site may let its name point to this machine (DNS rebinding); a browser then takes this page for a part of
    that site and lets it read the answers. It still asks for the page by that name. An address in figures points
    nowhere else, so it is let in.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]):
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else ""
        answer = PlainTextResponse(refusal, status_code=403) if refusal else self.app
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        name = _name(headers.get("host", ""))
        if name not in self.names and not _is_address(name):
            return "This page is not known by that name: ask for it by its address, or start it with that --host."
        if "multipart" in headers.get("content-type", "").lower():  # what browsers send files as, and gradio takes
            return "This page takes no files."
        return ""


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Serve `page` in the background, and say at which address. Raises ValueError where nothing can listen there."""
    host = host.strip("[]")
    try:
        _try(host, port)  # gradio would try it on 127.0.0.1 only, and not say what is wrong
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            app_kwargs={"middleware": [Middleware(Gate, names=_names(host))]},
            theme=THEME,
            css=CSS,
            ssr_mode=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        reason = f"cannot listen on {host}, port {port} ({error.strerror or 'taken'})"
        raise ValueError(f"{reason}: choose another --{'host' if wrong_host else 'port'}") from error
    return address


def _try(host: str, port: int) -> None:
    """Raises OSError where a host has no address that can be listened at."""
    refused: OSError | None = None
    for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return socket.create_server(address[:2], family=family).close()
        except OSError as error:  # another may do: localhost has one of IPv6, also where that is switched off
            refused = error
    if refused is not None:
        raise refused


def _names(host: str) -> frozenset[str]:
    """What the page may be asked for by. Who listens on all interfaces wants to be found by the machine's name too."""
    return frozenset({"localhost", host.lower(), *([socket.gethostname().lower()] if host in EVERYWHERE else [])})


def _name(host: str) -> str:
    """The name in a Host header, without the port; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
