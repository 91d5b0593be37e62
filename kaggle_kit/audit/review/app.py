"""The review page's server: on loopback, with a token in its address, for pages of its own alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.errors import DataError, KitError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOSTS = ("127.0.0.1", "localhost")
HEADER = "x-kaggle-kit-token"
MAX_BODY_BYTES = 100_000
PAGE_SIZE = 24
SCRIPTS = ("page.js", "chooser.js", "keys.js")  # in the order in which they run
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def make_app(desk: Desk, token: str, *, port: int) -> Starlette:
    """Return the page's application.

    Every request must carry the token, name loopback and this port as its host, and come from the page itself where it
    says where it comes from. Images are asked for by their row in the audit: no request holds a path.

    Args:
        desk: The audit and its decisions.
        token: What requests must know.
        port: Where it listens.
    """
    from starlette.applications import Starlette
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.routing import Route

    routes = _Routes(desk)
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/api/state", routes.state),
            Route("/api/queue/{name}", routes.queue),
            Route("/api/decide", routes.decide, methods=["POST"]),
            Route("/api/keep_rest", routes.keep_rest, methods=["POST"]),
            Route("/api/undo", routes.undo, methods=["POST"]),
            Route("/thumbnail/{row:int}", routes.thumbnail),
            Route("/image/{row:int}", routes.image),
        ],
        exception_handlers={KitError: _refuse, OSError: _refuse},
    )
    app.add_middleware(BaseHTTPMiddleware, dispatch=_guard(token, port))
    return app


def _guard(token: str, port: int) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Return what stands before every request."""
    from starlette.responses import PlainTextResponse

    hosts = {f"{host}:{port}" for host in HOSTS}
    origins = {f"http://{host}" for host in hosts}

    def reason_to_refuse(request: Request) -> str:
        given = request.headers.get(HEADER) or request.query_params.get("token", "")
        if request.headers.get("host") not in hosts:  # another name for this address: DNS rebinding
            return f"the review page is at http://127.0.0.1:{port} only; a tunnel must end at the same port"
        if request.headers.get("origin", f"http://{HOSTS[0]}:{port}") not in origins:
            return "a page of another origin asks; only the review page may"
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_opened(request):
            return "a page of another site asks; only the review page may"
        if not secrets.compare_digest(given.encode(), token.encode()):
            return "the token is missing or wrong; open the address that `kaggle-kit review` shows in its terminal"
        return ""

    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        reason = reason_to_refuse(request)
        answer = PlainTextResponse(reason, 403) if reason else await go_on(request)
        answer.headers.update(HEADERS)
        return answer

    return guard


def _is_opened(request: Request) -> bool:
    """Return whether a person follows a link to the page, as from a terminal that is itself a web page."""
    modes = (request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest"))
    return request.url.path == "/" and request.method == "GET" and modes == ("navigate", "document")


async def _refuse(_request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": str(error)}, 400)


class _Routes:
    """What is answered to what."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, _request: Request) -> Response:
        from starlette.responses import HTMLResponse

        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(_page(nonce), headers={"content-security-policy": policy})

    async def state(self, _request: Request) -> Response:
        return await _json(self._desk.state)

    async def queue(self, request: Request) -> Response:
        asked = request.query_params
        name, is_before = request.path_params["name"], "before" in asked
        start = _number(asked.get("before" if is_before else "start", "0"), "start")
        size = _number(asked.get("size", str(PAGE_SIZE)), "size")
        decided = asked.get("all") == "1"
        return await _json(lambda: self._desk.page(name, start=start, size=size, decided=decided, back=is_before))

    async def decide(self, request: Request) -> Response:
        values = await _body(request, {"action", "queue", "entry", "row", "values"})
        labels = values.get("values", {})
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise DataError(f"values is {labels!r:.100}; expected {{head: class}}")
        action, queue = _text(values, "action"), _text(values, "queue")
        entry, row = _whole(values, "entry"), _whole(values, "row")
        return await _json(lambda: self._desk.decide(action, queue=queue, entry=entry, row=row, values=labels))

    async def keep_rest(self, request: Request) -> Response:
        values = await _body(request, {"queue", "count"})
        queue, count = _text(values, "queue"), _whole(values, "count")
        return await _json(lambda: self._desk.keep_rest(queue, count=count))

    async def undo(self, request: Request) -> Response:
        queue = _text(await _body(request, {"queue"}), "queue")
        return await _json(lambda: self._desk.undo(queue))

    async def thumbnail(self, request: Request) -> Response:
        row = self._row(request)
        return await _png(lambda: self._desk.pictures.thumbnail(row))

    async def image(self, request: Request) -> Response:
        row = self._row(request)
        return await _png(lambda: self._desk.pictures.picture(row))

    def _row(self, request: Request) -> int:
        row = int(request.path_params["row"])
        if row >= len(self._desk):
            raise DataError(f"there is no image {row}; the audit knows {len(self._desk):,}")
        return row


def _page(nonce: str) -> str:
    """Return the page in one piece."""
    folder = resources.files("kaggle_kit.audit.review")

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    text = read("page.html").replace("STYLE", read("page.css"))
    return text.replace("SCRIPT", "\n".join(map(read, SCRIPTS))).replace("NONCE", nonce)


async def _json(make: Callable[[], dict[str, Any]]) -> Response:
    """Answer with what `make` returns, which may read files: in a thread, so that others are answered meanwhile."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    return JSONResponse(await run_in_threadpool(make))


async def _png(make: Callable[[], bytes | None]) -> Response:
    """Answer with a picture, or with 202 where it is not there yet."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    data = await run_in_threadpool(make)
    return Response(status_code=202) if data is None else Response(data, media_type="image/png")


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    """Return the request's JSON object, bounded."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise DataError("the body is no application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise DataError(f"the body is longer than {MAX_BODY_BYTES:,} bytes")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not set(values) <= known:
        raise DataError(f"the body is no object of {', '.join(sorted(known))}")
    return values


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str):
        raise DataError(f"{name} is {value!r:.100}; expected text")
    return value


def _whole(values: dict[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{name} is {value!r:.100}; expected a whole number")
    return value


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise DataError(f"{name} is {text!r:.100}; expected a whole number")
    return int(text)
