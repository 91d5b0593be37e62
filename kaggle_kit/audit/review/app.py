"""The review page's server: on loopback, with a token in its address, for pages of its own alone."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from kaggle_kit.audit.review.desk import Desk
from kaggle_kit.errors import DataError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOSTS = ("127.0.0.1", "localhost")
HEADER = "x-kaggle-kit-token"
MAX_BODY_BYTES = 100_000
PAGE_SIZE = 24


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

    routes = _Routes(desk, token)
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/api/state", routes.state),
            Route("/api/queue/{name}", routes.queue),
            Route("/api/decide", routes.decide, methods=["POST"]),
            Route("/api/undo", routes.undo, methods=["POST"]),
            Route("/thumbnail/{row:int}", routes.thumbnail),
            Route("/image/{row:int}", routes.image),
        ],
        exception_handlers={DataError: _refuse},
    )
    app.add_middleware(BaseHTTPMiddleware, dispatch=_guard(token, port))
    return app


def _guard(token: str, port: int) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Return what stands before every request."""
    from starlette.responses import PlainTextResponse

    hosts = {f"{host}:{port}" for host in HOSTS}
    origins = {f"http://{host}" for host in hosts}

    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get(HEADER) or request.query_params.get("token", "")
        if request.headers.get("host") not in hosts:  # another name for this address: DNS rebinding
            return PlainTextResponse("the review page is on loopback only", 403)
        if request.headers.get("origin", next(iter(origins))) not in origins:
            return PlainTextResponse("a page of another origin asks; only the review page may", 403)
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return PlainTextResponse("a page of another site asks; only the review page may", 403)
        if not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse("the token is missing or wrong; open the address that the terminal shows", 403)
        answer = await go_on(request)
        answer.headers["x-content-type-options"] = "nosniff"
        answer.headers["referrer-policy"] = "no-referrer"
        answer.headers.setdefault("cache-control", "no-store")
        return answer

    return guard


async def _refuse(_request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": str(error)}, 400)


class _Routes:
    """What is answered to what."""

    def __init__(self, desk: Desk, token: str) -> None:
        self._desk, self._token = desk, token

    async def page(self, _request: Request) -> Response:
        from starlette.responses import HTMLResponse

        nonce = secrets.token_urlsafe(16)
        text = (resources.files("kaggle_kit.audit.review") / "page.html").read_text(encoding="utf-8")
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
            f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(text.replace("NONCE", nonce), headers={"content-security-policy": policy})

    async def state(self, _request: Request) -> Response:
        return await _json(self._desk.state)

    async def queue(self, request: Request) -> Response:
        asked = request.query_params

        def page() -> dict[str, Any]:
            return self._desk.page(
                request.path_params["name"],
                start=_number(asked.get("start", "0"), "start"),
                size=_number(asked.get("size", str(PAGE_SIZE)), "size"),
                everything=asked.get("all") == "1",
            )

        return await _json(page)

    async def decide(self, request: Request) -> Response:
        values = await _body(request, {"action", "row", "head", "value", "why"})
        row = values.pop("row", None)
        if not isinstance(row, int) or isinstance(row, bool):
            raise DataError(f"row is {row!r}; expected the number of an image")
        texts = _texts(values)

        def decide() -> dict[str, Any]:
            return self._desk.decide(
                texts.get("action", ""),
                row=row,
                head=texts.get("head", ""),
                value=texts.get("value", ""),
                why=texts.get("why", ""),
            )

        return await _json(decide)

    async def undo(self, request: Request) -> Response:
        key = _texts(await _body(request, {"key"})).get("key", "")
        return await _json(lambda: self._desk.undo(key))

    async def thumbnail(self, request: Request) -> Response:
        row = self._row(request)
        return await _png(lambda: self._desk.pictures.thumbnail(row))

    async def image(self, request: Request) -> Response:
        row, queue = self._row(request), request.query_params.get("queue", "")
        return await _png(lambda: self._desk.pictures.picture(row, self._desk.neighbours(row, queue)))

    def _row(self, request: Request) -> int:
        row = int(request.path_params["row"])
        if row >= len(self._desk):
            raise DataError(f"there is no image {row}; the audit knows {len(self._desk):,}")
        return row


async def _json(make: Callable[[], dict[str, Any]]) -> Response:
    """Answer with what `make` returns, which may read files: in a thread, so that others are answered meanwhile."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    return JSONResponse(await run_in_threadpool(make))


async def _png(make: Callable[[], bytes | None]) -> Response:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import PlainTextResponse, Response

    data = await run_in_threadpool(make)
    if data is None:
        return PlainTextResponse("this image cannot be read", 404)
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    """Return the request's JSON object, bounded."""
    import json

    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise DataError("the body is no application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise DataError(f"the body is longer than {MAX_BODY_BYTES:,} bytes")
    try:
        values = json.loads(body)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not set(values) <= known:
        raise DataError(f"the body is no object of {', '.join(sorted(known))}")
    return values


def _texts(values: dict[str, Any]) -> dict[str, str]:
    for name, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{name} is {value!r}; expected text")
    return values


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise DataError(f"{name} is {text!r}; expected a whole number")
    return int(text)
