"""The status page: a few static files, served with a policy that shuts all else out."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing inline, nothing from elsewhere, in no frame, and no text becomes HTML."""

_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def routes() -> list[Route]:
    """``/`` and the files that the page is made of, below ``/page/``.

    They tell nothing about this machine, so they need no key: the page asks for one where what it
    reads demands it.
    """
    found = [_route(each.name, each.read_bytes()) for each in files(__name__).iterdir()
             if _suffix(each.name) in _KINDS]  # fmt: skip
    return sorted(found, key=lambda route: route.path)


def _route(name: str, content: bytes) -> Route:
    path = "/" if name == "index.html" else f"/page/{name}"
    return Route(path, partial(_serve, content, _KINDS[_suffix(name)]), methods=["GET"])


async def _serve(content: bytes, kind: str, _: Request) -> Response:
    return Response(content, media_type=kind, headers=_HEADERS)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :]
