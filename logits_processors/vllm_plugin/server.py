"""``textguide serve``: vLLM's own OpenAI-compatible server with guidance switched on."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from textguide.support.errors import MissingExtraError

from . import operations, reports, validation
from .extras import OURS
from .further_models import REFUSED as REFUSED_WITH_MODELS
from .further_models import resolve
from .metrics import GuidanceMetrics
from .options import switched_on, with_models
from .refusals import OPTIONS
from .speculation import BESIDE, KEY, check_beside, check_draft
from .startup import starting

MIDDLEWARE = "textguide.logits_processors.vllm_plugin.middleware.Guided"
# Options that the engine would refuse too, in a process of its own and behind a traceback.
REFUSED: dict[str, tuple[Any, str]] = {
    **OPTIONS,
    "api_server_count": (None, "what branch requests cost is counted in one front end; leave it out"),
    "headless": (False, "what branch requests cost is counted in the front end; leave it out"),
    "grpc": (False, "guidance was tested over HTTP; leave it out"),
}


def parse(model: str, options: Sequence[str]) -> Any:
    """vLLM's own arguments for a server of ``model`` with guidance switched on.

    Args:
        model: as for :func:`textguide.vllm_engine`.
        options: of ``vllm serve``, ``--classifier NAME``, ``--constraint NAME=TEXT``, ``--critic NAME=PLACE``,
            ``--with NAME=PATH`` and ``--playground``.

    Raises:
        MissingExtraError: vLLM is not installed.
        ValueError: an option does not work with guidance; the message names it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "serving")
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("vllm.entrypoints"):
            raise
        raise ValueError(
            f"this version of vLLM has no {error.name}, which 0.33 moved, and a server with guidance starts with it; "
            "pip install 'vllm>=0.32,<0.33'"
        ) from None
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="textguide serve"))
    parser.add_argument("--classifier", help="for requests with caif_target: sentiment, a folder, profanity…")
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="NAME=TEXT",
        help="for requests with awrs_constraint=NAME: regex:PATTERN, json-schema:FILE, grammar:FILE or "
        "python:MODULE:NAME; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--critic", action="append", default=[], metavar="NAME=python:MODULE:NAME",
        help="for requests with awrs_critic=NAME: a function from a text to a log potential; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--with", action="append", default=[], dest="models", metavar="NAME=PATH",
        help="a further model, for methods that ask one: amateur=PATH; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--playground", action="store_true",
        help="a page to try guidance on at /playground; it runs the model a second time, by transformers on the CPU",
    )  # fmt: skip
    parser.set_defaults(shutdown_timeout=operations.DRAIN_SECONDS)
    found = resolve(model)
    arguments = parser.parse_args([found, *options])
    arguments.model = arguments.model_tag
    if arguments.served_model_name is None:
        arguments.served_model_name = None if found == model else [model]
    speculation, arguments.speculative_config = arguments.speculative_config, None  # ours, and not vLLM's
    for name, (only, reason) in REFUSED.items():
        value = getattr(arguments, name, only)
        if value not in (only, None) and not (name == "api_server_count" and value == 1):
            raise ValueError(f"--{name.replace('_', '-')} {value} does not work with guidance: {reason}")
    if arguments.max_num_seqs == 1:
        raise ValueError(
            "--max-num-seqs 1 does not work with guidance: a guided request takes two places or more; give 2 or more"
        )
    names = ("scheduler_cls", "logits_processors", "additional_config", "async_scheduling")
    models = _named("--with", arguments.models, "amateur=PATH")
    given = {name: getattr(arguments, name) for name in names}
    if speculation is not None:
        check_beside({**{name: getattr(arguments, name, None) for name in BESIDE}, "models": tuple(models)})
        given["speculative_config"] = speculation
    guided = switched_on(
        given,
        arguments.classifier,
        _named("--constraint", arguments.constraint, "date=regex:[0-9-]+"),
        _named("--critic", arguments.critic, "polite=python:MODULE:NAME"),
    )
    check_draft(
        found, guided["additional_config"][OURS][KEY] if speculation is not None else None, arguments.max_model_len
    )
    if models:
        given = {name: getattr(arguments, name) for name in (*REFUSED_WITH_MODELS, "max_model_len")}
        given["enforce_eager"] = given["enforce_eager"] or None  # a switch cannot be given as False
        guided |= with_models(found, {**given, **guided}, models)
    for name, value in guided.items():
        setattr(arguments, name, value)
    if MIDDLEWARE not in arguments.middleware:
        arguments.middleware = [*arguments.middleware, MIDDLEWARE]
    validate_parsed_serve_args(arguments)
    return arguments


def _named(option: str, given: Sequence[str], example: str) -> dict[str, str]:
    named: dict[str, str] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"{option} {one!r} must be NAME=TEXT, such as {example}")
        if name in named:
            raise ValueError(f"{option} {name} is given twice; choose another name for one of them")
        named[name] = text
    return named


def serve(arguments: Any, pages: Mapping[str, Any] | None = None) -> None:
    """Serve until interrupted, with arguments from :func:`parse`; then finish the requests that are there.

    Args:
        pages: further applications by the path that they are found at.

    Raises:
        ValueError: the engine refuses to start; the message says why.
    """
    import uvloop
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    configure_logging_from_args(arguments)
    uvloop.run(_serve(arguments, pages or {}))


def prepare() -> None:
    """Let vLLM's front end guard its figures and carry reports of all choices, in streams too."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.serve.middleware import authenticate

    importlib.import_module(
        ".processor", __package__
    )  # vLLM imports it with the first request, when adapters are known
    operations.guard(authenticate)
    reports.in_streams(OpenAIServingCompletion, "completion_stream_generator")
    reports.in_streams(OpenAIServingChat, "chat_completion_stream_generator")
    reports.of_all_prompts(OpenAIServingCompletion)


async def _serve(arguments: Any, pages: Mapping[str, Any]) -> None:
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.launcher import setup_server

    signal.signal(signal.SIGTERM, _interrupted)  # until the server has a handler of its own
    build = entry.build_app
    address, sock = setup_server(arguments, reuse_port=False)
    try:
        async with contextlib.AsyncExitStack() as stack:
            with starting():
                client = await stack.enter_async_context(entry.build_async_engine_client(arguments))

            def built(*given: Any, **options: Any) -> Any:
                app = build(*given, **options)
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
    """Count and log what becomes of guided requests.

    Args:
        client: vLLM's ``AsyncLLM``.
        logs: whether to write a line for each request that ended or was refused.
    """
    if client.logger_manager is not None:  # else no statistics are made
        figures = GuidanceMetrics(client.logger_manager.engine_indexes)
        client.logger_manager.stat_loggers.insert(0, figures)
        validation.hears_refusals.append(lambda error: figures.refuse())
    if logs:
        operations.log_ends(client.output_processor)
        validation.hears_refusals.append(operations.log_refusal)
