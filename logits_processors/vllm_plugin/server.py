"""``textguide serve``: vLLM's own OpenAI-compatible server with guidance."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from textguide.constraints.engines.xgrammar_engine import FOLDER
from textguide.serving.limits import Limits
from textguide.support.errors import MissingExtraError

from . import operations, reports, validation
from .extras import OURS
from .further_models import REFUSED as REFUSED_WITH_MODELS
from .further_models import resolve
from .metrics import GuidanceMetrics
from .options import with_guidance, with_models
from .refusals import OPTIONS
from .speculation import EXCLUDED, KEY, check_draft, check_excluded
from .startup import starting

MIDDLEWARE = "textguide.logits_processors.vllm_plugin.middleware.Guided"
# The engine would refuse most of these too, but in a process of its own and with a traceback.
REFUSED: dict[str, tuple[Any, str]] = {
    **OPTIONS,
    "api_server_count": (None, "the cost of branch requests is counted in one front end; leave it out"),
    "headless": (False, "the cost of branch requests is counted in the front end; leave it out"),
    "grpc": (False, "guidance was tested over HTTP; leave it out"),
}


def parse(model: str, options: Sequence[str]) -> Any:
    """Parse the command line of a server into vLLM's own arguments, with guidance.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        options: of ``vllm serve``, ``--classifier NAME``, ``--constraint NAME=TEXT``, ``--critic NAME=PLACE``,
            ``--prior NAME=FILE``, ``--with NAME=PATH``, ``--allowed-host NAME`` and ``--playground``.

    Raises:
        MissingExtraError: vLLM is not installed.
        ValueError: an option does not work with guidance; the message names it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "serving")
    try:
        from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("vllm.entrypoints"):
            raise
        raise ValueError(
            f"this version of vLLM does not have {error.name}, which 0.33 moved, and a server with guidance needs it; "
            "pip install 'vllm>=0.32,<0.33'"
        ) from None

    path = resolve(model)
    arguments = _parser().parse_args([path, *options])
    arguments.model = arguments.model_tag
    if arguments.served_model_name is None and path != model:
        arguments.served_model_name = [model]
    speculation = arguments.speculative_config
    arguments.speculative_config = None  # textguide speculates itself
    _check(arguments)
    for name, value in _guided_options(path, arguments, speculation).items():
        setattr(arguments, name, value)
    if MIDDLEWARE not in arguments.middleware:
        arguments.middleware = [*arguments.middleware, MIDDLEWARE]
    validate_parsed_serve_args(arguments)
    return arguments


def _parser() -> Any:
    """vLLM's parser of arguments, with those of textguide."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="textguide serve"))
    parser.add_argument("--classifier", help="for requests with caif_target: sentiment, a folder, profanity…")
    parser.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="for requests with awrs_constraint=NAME: regex:PATTERN, json-schema:FILE, grammar:FILE or "
        "python:MODULE:NAME; may be repeated",
    )
    parser.add_argument(
        "--critic",
        action="append",
        default=[],
        metavar="NAME=python:MODULE:NAME",
        help="for requests with awrs_critic=NAME: a function from a text to a log potential; may be repeated",
    )
    parser.add_argument(
        "--prior",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a token prior, for requests with token-prior:prior=NAME; may be repeated",
    )
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        dest="models",
        metavar="NAME=PATH",
        help="a further model, for methods that need one: amateur=PATH; may be repeated",
    )
    limits = Limits()
    parser.add_argument(
        "--constraint-seconds",
        type=float,
        default=limits.constraint_seconds,
        metavar="S",
        help="how long the constraint of a request may take to compile [%(default)s]",
    )
    parser.add_argument(
        "--constraint-bytes",
        type=int,
        default=limits.constraint_bytes,
        metavar="N",
        help="size of the constraint of a request [%(default)s]",
    )
    parser.add_argument(
        "--playground",
        action="store_true",
        help="a page to try guidance on at /playground; it runs the model a second time, by transformers on the CPU",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which clients reach the server, * for any; default: the names of this machine if --host is "
        "the loopback, otherwise any; may be repeated",
    )
    parser.set_defaults(shutdown_timeout=operations.DRAIN_SECONDS)
    return parser


def _check(arguments: Any) -> None:
    """Refuse options that do not work with guidance."""
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(arguments, name, allowed)
        if name == "api_server_count" and value == 1:
            continue
        if value not in (allowed, None):
            raise ValueError(f"--{name.replace('_', '-')} {value} does not work with guidance: {reason}")
    for name in ("constraint_seconds", "constraint_bytes"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be above 0")
    if arguments.max_num_seqs == 1:
        raise ValueError(
            "--max-num-seqs 1 does not work with guidance: a guided request takes two places or more; give 2 or more"
        )


def _guided_options(path: str, arguments: Any, speculation: Any) -> dict[str, Any]:
    """The arguments that guidance changes, with their new values."""
    names = ("scheduler_cls", "logits_processors", "additional_config", "async_scheduling")
    options = {name: getattr(arguments, name) for name in names}
    models = _named("--with", arguments.models, "amateur=PATH")
    if speculation is not None:
        check_excluded({**{name: getattr(arguments, name, None) for name in EXCLUDED}, "models": tuple(models)})
        options["speculative_config"] = speculation
    guided = with_guidance(
        options,
        arguments.classifier,
        _named("--constraint", arguments.constraint, "date=regex:[0-9-]+"),
        _named("--critic", arguments.critic, "polite=python:MODULE:NAME"),
        _named("--prior", arguments.prior, "stories=stories.safetensors"),
    )
    if speculation is not None:
        check_draft(path, guided["additional_config"][OURS][KEY], arguments.max_model_len)
    if models:
        options = {name: getattr(arguments, name) for name in (*REFUSED_WITH_MODELS, "max_model_len")}
        options["enforce_eager"] = options["enforce_eager"] or None  # a switch cannot be given as False
        guided |= with_models(path, {**options, **guided}, models)
    return guided


def _named(option: str, values: Sequence[str], example: str) -> dict[str, str]:
    """The values of an option that may be repeated, by their names."""
    named: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"{option} {value!r} must be NAME=TEXT, such as {example}")
        if name in named:
            raise ValueError(f"{option} {name} is given twice; choose another name for one of them")
        named[name] = text
    return named


def serve(arguments: Any, pages: Mapping[str, Any] | None = None) -> None:
    """Serve until interrupted, then finish the requests that have arrived.

    Args:
        arguments: as :func:`parse` returns them.
        pages: further applications, by their paths.

    Raises:
        ValueError: the engine refuses to start; the message explains why.
    """
    import uvloop
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    configure_logging_from_args(arguments)
    with tempfile.TemporaryDirectory(prefix="textguide-") as folder:
        os.environ[FOLDER] = folder
        uvloop.run(_serve(arguments, pages or {}))


def prepare() -> None:
    """Let vLLM's front end guard its metrics and send the reports of all choices, in streams too."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.middleware import authenticate

    # vLLM imports it with the first request, which would be too late to know the adapters and to check that request.
    importlib.import_module(".processor", __package__)
    operations.guard(authenticate)
    reports.stream_reports(OpenAIServingCompletion, "completion_stream_generator")
    reports.stream_reports(OpenAIServingChat, "chat_completion_stream_generator")
    reports.refuse_before_streams(OpenAIServingCompletion, "create_completion", ErrorResponse)
    reports.refuse_before_streams(OpenAIServingChat, "create_chat_completion", ErrorResponse)
    reports.refuse_before_streams(OpenAIServingResponses, "create_responses", ErrorResponse)
    reports.gather_reports_of_prompts(OpenAIServingCompletion)


async def _serve(arguments: Any, pages: Mapping[str, Any]) -> None:
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.launcher import setup_server

    signal.signal(signal.SIGTERM, _interrupted)  # until the server has its own handler
    build = entry.build_app
    address, sock = setup_server(arguments, reuse_port=False)
    try:
        async with contextlib.AsyncExitStack() as stack:
            with starting():
                client = await stack.enter_async_context(entry.build_async_engine_client(arguments))

            def built(*args: Any, **kwargs: Any) -> Any:
                app = build(*args, **kwargs)
                for path, page in pages.items():
                    app.mount(path, page)
                return app

            entry.build_app = built
            stopped = await entry.build_and_serve(client, address, sock, arguments)
        await stopped
    finally:
        sock.close()


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def watch(client: Any, logs: bool = False) -> None:
    """Count and log what happens to guided requests.

    Args:
        client: vLLM's ``AsyncLLM``.
        logs: whether to log a line for each request that ended or was refused.
    """
    if client.logger_manager is not None:  # None with --disable-log-stats
        metrics = GuidanceMetrics(client.logger_manager.engine_indexes)
        # The first logger, since it takes textguide's figures out before vLLM logs them.
        client.logger_manager.stat_loggers.insert(0, metrics)
        validation.refusal_listeners.append(lambda error: metrics.refuse())
    if logs:
        operations.log_ends(client.output_processor)
        validation.refusal_listeners.append(operations.log_refusal)
