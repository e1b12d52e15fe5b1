"""The page and what it asks for, as a FastAPI application."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .. import __version__
from ..serving.messages import BusyError, message_of
from ..serving.method_schema import forms
from ..serving.rules import CLASSIFIERS, Asked, Rules, from_stream
from ..support import viewer
from .canvas import canvases, fill
from .examples import EXAMPLES
from .images import caption, scenes
from .models import Models
from .runs import Runs
from .take_away import take_away
from .together import write_together
from .write import Send, rescore, write

HOME = Path(__file__).parent / "assets"
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".html": "text/html",
         ".svg": "image/svg+xml", ".png": "image/png"}  # fmt: skip
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def application(models: Models, rules: Rules | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application; mount it anywhere, its page uses relative addresses.

    Args:
        models: what runs.
        rules: what may be asked for.
        host: the address that it is served on: requests for other names are refused, so that no page elsewhere can
            reach it by a name of its own that leads here.
    """
    rules = rules or Rules()
    runs = Runs(rules.limits.runs)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        runs.close()

    app = FastAPI(title="textguide playground", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  lifespan=life)  # fmt: skip
    app.state.runs = runs
    names = allowed_names(host)
    page, policy = index()
    files = assets()

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        why = refusal(request.headers, request.method, names)
        response: Response = JSONResponse({"error": why}, 403) if why else await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    async def body_of(request: Request) -> dict[str, Any]:
        return await from_stream(request.stream(), rules.limits.body)

    def refused(error: Exception) -> Response:
        return JSONResponse({"error": message_of(error)}, 429 if isinstance(error, BusyError) else 400)

    @app.get("/")
    async def home() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/assets/{name}")
    async def asset(name: str) -> Response:
        if name not in files:
            return JSONResponse({"error": f"there is no {name}"}, 404)
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": "no-cache"})

    @app.get("/api/info")
    async def info() -> Response:
        return JSONResponse(about(models, rules))

    def streaming(name: str, run: Callable[[Models, Asked, Rules, Send], None], place: str) -> None:
        @app.post(f"/api/{name}")
        async def start(request: Request) -> Response:
            try:
                asked = rules.asked(await body_of(request), place)
                events = runs.stream(lambda send: run(models, asked, rules, send))
            except (ValueError, BusyError) as error:
                return refused(error)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    streaming("write", write, "generate")
    streaming("together", write_together, "generate")

    def streaming_values(name: str, prepare: Callable[..., Callable[[Send], None]]) -> None:
        @app.post(f"/api/{name}")
        async def start(request: Request) -> Response:
            try:
                events = runs.stream(prepare(models, await body_of(request), rules))
            except (ValueError, BusyError) as error:
                return refused(error)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    streaming_values("diffuse", fill)
    streaming_values("caption", caption)

    def answering(name: str, answer: Callable[[Models, Mapping[str, Any], Rules], Any]) -> None:
        @app.post(f"/api/{name}")
        async def respond(request: Request) -> Response:
            try:
                values = await body_of(request)
                return JSONResponse(await runs.once(lambda: answer(models, values, rules)))
            except Exception as error:
                return refused(error)

    answering("score", rescore)
    answering("take-away", take_away)

    @app.post("/api/page")
    async def whole_page(request: Request) -> Response:
        try:
            text = viewer.page(await body_of(request))
        except ValueError as error:
            return refused(error)
        return Response(text, media_type="text/html; charset=utf-8",
                        headers={"Content-Disposition": 'attachment; filename="textguide.html"'})  # fmt: skip

    return app


def about(models: Models, rules: Rules) -> dict[str, Any]:
    """What the page has to know when it opens."""
    limits = rules.limits
    return {
        "version": __version__, "model": models.name, "methods": list(forms()), "examples": EXAMPLES,
        "models": sorted(models.sources), "classifiers": [*CLASSIFIERS, *rules.named],
        "named": list(rules.named), "canvases": canvases(),
        "scenes": [scene["name"] for scene in scenes()], "chat": bool(getattr(models.tokenizer, "chat_template", None)),
        "limits": {"new_tokens": limits.new_tokens, "characters": limits.characters, "particles": limits.particles,
                   "prompt_tokens": limits.prompt_tokens, "scales": limits.scales, "canvas": limits.canvas},
    }  # fmt: skip


@lru_cache(maxsize=1)
def assets() -> dict[str, bytes]:
    """All files that the page loads, by name, read once: nothing else can be asked for."""
    own = {path.name: path.read_bytes() for path in HOME.iterdir() if path.suffix in TYPES}
    return {**viewer.assets(), **own, **{f"{scene['name']}.png": scene["data"] for scene in scenes()}}


def index() -> tuple[str, str]:
    """The page, and the policy that says what it may load."""
    import_map = viewer.import_map({name: f"./assets/{name}" for name in assets() if name.endswith("js")})
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    text = (HOME / "index.html").read_text(encoding="utf-8").replace("$importmap", import_map)
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def allowed_names(host: str) -> frozenset[str] | None:
    """The names under which the page may be asked for; None where any address of the machine will do."""
    if host in ("0.0.0.0", "::", ""):
        return None
    return frozenset({*LOOPBACK, f"[{host}]" if ":" in host else host.lower()})


def refusal(headers: Mapping[str, str], method: str, names: frozenset[str] | None) -> str | None:
    """Why a request is refused by where it comes from; None where it is not.

    The name that it asks for has to be one of this server, which keeps out pages whose own name was made to lead here;
    what changes or starts something has to come from this page (or from no page at all), as JSON.
    """
    host = headers.get("host", "").lower()
    name = re.sub(r":\d+$", "", host)
    if names is None:
        own = _is_address(name) or name in (*LOOPBACK, socket.gethostname().lower())
    else:
        own = name in names
    if not own:
        return f"the host {host[:80]!r} is not this server's; open it under the address that it printed"
    if method in ("GET", "HEAD"):
        return None
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host:
        return f"a page of {origin[:80]!r} may not use this server"
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return "requests are JSON; send them with Content-Type: application/json"
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
