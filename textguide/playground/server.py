"""The page and what it requests, as a FastAPI application."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..diffusion.options import CanvasOptions
from ..serving.access import allowed_names, refusal
from ..serving.errors import BusyError, error_message
from ..serving.method_schema import method_forms
from ..serving.requests import TEXT_OPTIONS, TextRequest, read_json
from ..serving.rules import CLASSIFIERS, Rules
from ..serving.schema import describe_fields
from ..support import __version__, viewer
from ..support.errors import MissingExtraError, ModelUnavailableError
from .canvas import canvases, fill
from .examples import EXAMPLES
from .images import caption, scenes
from .models import Models
from .runs import Runs, Send
from .take_away import take_away
from .together import write_together
from .write import rescore, write

HOME = Path(__file__).parent / "assets"
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
NEEDS = {
    "constrain": ("llguidance", "llguidance", "constraints", "a regular expression, JSON schema or grammar"),
    "caption": ("PIL", "pillow", "captioning", "captioning on the page"),
}
"""Tabs that need more than the extra playground: the module, its package, the extra, and what needs it."""
Values = Mapping[str, Any]
Endpoint = Callable[[Request], Awaitable[Response]]


def application(models: Models, rules: Rules | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application. It can be mounted at any path, since its page uses relative addresses.

    Args:
        models: the models.
        rules: what requests may ask for.
        host: the address that it is served on. Requests for other host names are refused, so that no page elsewhere
            can reach the server through a name of its own that resolves to this machine.
    """
    rules = rules or Rules()
    runs = Runs(rules.limits.runs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        runs.close()

    app = FastAPI(
        title="textguide playground",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.runs = runs
    page, policy = index()
    _add_guard(app, allowed_names(host), policy)
    _add_page(app, page, lambda: about(models, rules))
    for path, endpoint in _endpoints(models, rules, runs).items():
        app.add_api_route(path, endpoint, methods=["POST"])
    return app


def _add_guard(app: FastAPI, names: frozenset[str] | None, policy: str) -> None:
    """Refuse requests from other pages, and restrict what this page may load."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Endpoint) -> Response:
        reason = refusal(request.headers, request.method, names)
        response: Response = JSONResponse({"error": reason}, 403) if reason else await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response


def _add_page(app: FastAPI, page: str, info: Callable[[], dict[str, Any]]) -> None:
    files = assets()
    not_cached = {"Cache-Control": "no-cache"}

    @app.get("/")
    async def home() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=not_cached)

    @app.get("/assets/{name}")
    async def asset(name: str) -> Response:
        if name not in files:
            return JSONResponse({"error": f"there is no {name}"}, 404)
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers=not_cached)

    @app.get("/api/info")
    async def page_info() -> Response:
        return JSONResponse(info())


def _endpoints(models: Models, rules: Rules, runs: Runs) -> dict[str, Endpoint]:
    """What the page posts to, by path."""

    def text_run(task: Callable[[Models, TextRequest, Rules, Send], None]) -> Callable[[Values], Any]:
        def prepare(values: Values) -> Callable[[Send], None]:
            request = rules.text_request(values)
            return lambda send: task(models, request, rules, send)

        return prepare

    async def page_as_file(values: Values) -> Response:
        headers = {"Content-Disposition": 'attachment; filename="textguide.html"'}
        return Response(viewer.page(dict(values)), media_type="text/html; charset=utf-8", headers=headers)

    def once(answer: Callable[[Models, Values, Rules], Any]) -> Callable[[Values], Awaitable[Response]]:
        async def respond(values: Values) -> Response:
            return JSONResponse(await runs.once(lambda: answer(models, values, rules)))

        return respond

    def stream(prepare: Callable[[Values], Callable[[Send], None]]) -> Callable[[Values], Awaitable[Response]]:
        async def respond(values: Values) -> Response:
            events = runs.stream(prepare(values))
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

        return respond

    responses = {
        "/api/write": stream(text_run(write)),
        "/api/together": stream(text_run(write_together)),
        "/api/diffuse": stream(lambda values: fill(models, values, rules)),
        "/api/caption": stream(lambda values: caption(models, values, rules)),
        "/api/score": once(rescore),
        "/api/take-away": once(take_away),
        "/api/page": page_as_file,
    }
    return {path: _json_endpoint(respond, rules) for path, respond in responses.items()}


def _json_endpoint(respond: Callable[[Values], Awaitable[Response]], rules: Rules) -> Endpoint:
    """An endpoint that receives JSON, and reports errors as JSON."""

    async def endpoint(request: Request) -> Response:
        try:
            return await respond(await read_json(request.stream(), rules.limits.body))
        except BusyError as error:
            return JSONResponse({"error": error_message(error)}, 429)
        except MissingExtraError as error:
            return JSONResponse({"error": error_message(error)}, 424)
        except (ValueError, RecursionError, ModelUnavailableError) as error:
            return JSONResponse({"error": error_message(error)}, 400)
        except Exception as error:
            return JSONResponse({"error": error_message(error)}, 500)

    return endpoint


def missing_extras() -> dict[str, str]:
    """What to install before a tab works, by tab; tabs that need nothing are left out."""
    found = {}
    for tab, (module, name, extra, purpose) in NEEDS.items():
        if importlib.util.find_spec(module) is None:
            found[tab] = str(MissingExtraError(name, extra, purpose))
    return found


def about(models: Models, rules: Rules) -> dict[str, Any]:
    """What the page needs to know when it opens."""
    limits = rules.limits
    return {
        "version": __version__,
        "model": models.name,
        "methods": list(method_forms()),
        "examples": EXAMPLES,
        "text_options": describe_fields(TEXT_OPTIONS, limits),
        "canvas_options": describe_fields(CanvasOptions.request_fields(), limits),
        "models": sorted(models.sources),
        "classifiers": [*CLASSIFIERS, *rules.named],
        "named": list(rules.named),
        "canvases": canvases(),
        "scenes": [scene["name"] for scene in scenes()],
        "missing": missing_extras(),
        "chat": bool(getattr(models.tokenizer, "chat_template", None)),
        "limits": {
            "new_tokens": limits.new_tokens,
            "characters": limits.characters,
            "particles": limits.particles,
            "prompt_tokens": limits.prompt_tokens,
            "scales": limits.scales,
            "canvas": limits.canvas,
        },
    }


@lru_cache(maxsize=1)
def assets() -> dict[str, bytes]:
    """All files that the page loads, by name, read once: no other file can be requested."""
    own = {path.name: path.read_bytes() for path in HOME.iterdir() if path.suffix in TYPES}
    return {**viewer.assets(), **own, **{f"{scene['name']}.png": scene["data"] for scene in scenes()}}


def index() -> tuple[str, str]:
    """The page, and its content security policy."""
    import_map = viewer.import_map({name: f"./assets/{name}" for name in assets() if name.endswith("js")})
    # The import map is the only inline script; the policy allows it by its hash.
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    text = (HOME / "index.html").read_text(encoding="utf-8").replace("$importmap", import_map)
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
