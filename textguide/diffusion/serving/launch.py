"""``textguide serve --diffusion``: a masked diffusion model on a port of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...serving.access import HostGuard, host_names
from ...serving.limits import Limits
from ...serving.rules import Rules
from ...serving.sockets import address, listen
from ..loading import load


def serve_canvases(model: str, further: Mapping[str, str], options: Any) -> None:
    """Serve a masked diffusion model over HTTP until interrupted.

    Args:
        model: a name that :func:`textguide.diffusion.load` accepts.
        further: models that branches may run, likewise, by name.
        options: those of ``textguide serve --diffusion``.

    Raises:
        MissingExtraError: FastAPI or uvicorn is not installed.
        ModelUnavailableError: a model cannot be loaded.
        ValueError: the host is not an address of this machine, or the port is in use.
    """
    sock = listen(options.host, options.port)
    import uvicorn

    from .server import CanvasService, application

    def loaded(name: str) -> tuple[Any, Any]:
        return load(name, device=options.device, trust_remote_code=options.trust_remote_code)

    pairs = {role: loaded(name) for role, name in further.items()}
    service = CanvasService(
        options.served_model_name, *loaded(model), pairs, runs=options.max_runs, waiting=options.max_waiting
    )
    limits = Limits(
        canvas=options.max_canvas,
        prompt_tokens=options.max_prompt,
        particles=options.max_particles,
        characters=16 * options.max_prompt,  # more than a prompt of that many tokens has
        constraint_seconds=options.constraint_seconds,
        constraint_bytes=options.constraint_bytes,
    )
    names = host_names(options.host, options.allowed_host)
    app = HostGuard(application(service, Rules(limits, tuple(options.allow)), options.api_key), names)
    print(f"{options.served_model_name} at {address(options.host, sock)}v1", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, server_header=False)
    uvicorn.Server(config).run(sockets=[sock])
