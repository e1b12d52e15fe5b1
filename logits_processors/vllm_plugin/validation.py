"""Checks of guided requests in the front end, so that the client receives an error for a wrong argument.

vLLM passes nothing but the sampling parameters to ``validate_params`` of a logits processor, and the prompt, the
adapter and the engine's configuration are needed as well. ``InputProcessor.process_inputs`` has them while it calls the
check, so it is wrapped to leave them in a context variable. Whether the prompt was a chat is known even earlier:
requests of chats get a mark in their sampling parameters, and ``LLM.chat`` sets a context variable. Knows no vLLM but
the names of what it reads.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

from textguide.engine import branch_inputs
from textguide.guidance.prompts import as_chat, as_prompt
from textguide.support.checks import brief_message

from .adapters import Adapter, adapters_of, most_of
from .arguments import (
    BEAMS,
    CHAT,
    KNOWN,
    NO_BEAMS,
    OWN,
    ArgumentError,
    argument_of,
    check_names,
    has_guidance,
    parse,
    unpacked,
)
from .constraints import EngineConstraints
from .extras import OURS, constraints_of, critics_of, ours_of, priors_of
from .further_models import models_of
from .images import images_of
from .request_guidance import RequestPrompt
from .requests import Limits
from .reweighting import classifier_of
from .wrapping import wrap_once

UNKNOWN_MESSAGES = "unknown"
"""The mark of a chat whose messages cannot be written as those of a chat template."""
refusal_listeners: list[Callable[[ValueError], None]] = []
"""Called with each refusal of a request."""


class EngineInput(NamedTuple):
    """What ``InputProcessor.process_inputs`` is called with.

    Args:
        config: vLLM's ``VllmConfig``.
        tokenizer: of the engine; None if it has none.
        prompt: as vLLM holds it: text, token ids, or a mapping with these.
        lora_request: the adapter of the request; None without one.
    """

    config: Any
    tokenizer: Any
    prompt: Any
    lora_request: Any = None


current_input: ContextVar[EngineInput | None] = ContextVar("current_input", default=None)
_is_offline_chat: ContextVar[bool] = ContextVar("is_offline_chat", default=False)


def validate(params: Any) -> None:
    """Check the arguments of a request, and leave the guided request in its ``extra_args``.

    Raises:
        ValueError: an argument cannot work; the message names it.
    """
    sent = params.extra_args or {}
    chat = sent.get(CHAT)
    # vLLM checks the same object once for each prompt, and a client must not set our keys.
    extra = unpacked(sent)
    if any(key in sent for key in OWN):
        params.extra_args = extra
    if not has_guidance(extra):
        return
    limits, prompt = _limits_and_prompt(chat)
    request = parse(params, limits, prompt)
    if request is None:
        return
    params.extra_args = {**extra, OURS: request.to_dict()}
    if chat == UNKNOWN_MESSAGES:
        # A response that calls tools sends the same object again, with its next turn.
        params.extra_args[CHAT] = chat
    if request.population is not None:
        params.n = request.particles  # vLLM makes a request of each answer


@contextlib.contextmanager
def refusing(error_class: Callable[..., Exception], params: Any = None) -> Iterator[None]:
    """Use it around checks of a request: a ``ValueError`` is counted, and becomes an error that names the argument.

    Args:
        error_class: vLLM's error, which is made of a message and ``parameter``.
        params: vLLM's ``SamplingParams``, whose arguments are checked; None if there are none yet.
    """
    try:
        yield
    except ValueError as error:
        for listener in refusal_listeners:
            listener(error)
        name = argument_of(error, getattr(params, "extra_args", None) or ())
        raise error_class(brief_message(str(error)), parameter=name) from error
    except RecursionError:
        raise error_class("the request is nested too deeply; send less", parameter=None) from None


def _limits_and_prompt(chat: Any) -> tuple[Limits, RequestPrompt]:
    """What the engine can take, and the prompt of the request that is being checked.

    Args:
        chat: the mark of a chat; None for other requests.
    """
    inputs = current_input.get()
    if inputs is None:
        # vLLM loads logits processors with the first request, which may be this one.
        raise ValueError(
            "this request arrived before textguide was loaded, and its prompt is not known; send it again, or import "
            "textguide.logits_processors.vllm_plugin.processor before the engine starts"
        )
    prompt = replace(
        _prompt_of(inputs.prompt, chat, inputs.tokenizer),
        adapter=Adapter.of(inputs.lora_request),
        images=images_of(inputs.prompt, inputs.config.model_config, inputs.tokenizer),
    )
    if chat is None and _is_offline_chat.get():
        prompt = replace(prompt, prompt=None, is_chat=True)
    return _limits_of(inputs.config, inputs.tokenizer), prompt


def _limits_of(config: Any, tokenizer: Any) -> Limits:
    model = config.model_config
    scheduling = config.scheduler_config
    cache = config.cache_config
    size = model.get_vocab_size()
    constraints = None
    if tokenizer is not None:
        constraints = EngineConstraints(constraints_of(config), lambda: tokenizer, size, critics_of(config))
    blocks = cache.num_gpu_blocks
    return Limits(
        tokenizer=tokenizer,
        vocabulary=size,
        longest=model.max_model_len,
        classifier=classifier_of(config),
        classifier_name=ours_of(config).get("classifier"),
        constraints=constraints,
        models=tuple(models_of(config)),
        adapters=adapters_of(config),
        most_adapters=most_of(config),
        places=scheduling.max_num_active_seqs or scheduling.max_num_seqs,
        budget=scheduling.max_num_scheduled_tokens or scheduling.max_num_batched_tokens,
        # As the scheduler counts them: one block is a placeholder, and the watermark stays free.
        blocks=blocks - 1 - int(scheduling.watermark * blocks) if blocks else None,
        block_size=cache.block_size,
        why_no_populations=_why_no_populations(config),
        priors=priors_of(config),
    )


def _why_no_populations(config: Any) -> str | None:
    """Why an engine cannot resample texts together; None if it can."""
    ranks = config.parallel_config.data_parallel_size
    if ranks > 1:
        return f"data_parallel_size={ranks}, whose ranks share out the answers of a request"
    return None


def _prompt_of(prompt: Any, chat: Any, tokenizer: Any) -> RequestPrompt:
    """The prompt of a request, from what vLLM holds and the mark of a chat."""
    text = prompt if isinstance(prompt, str) else None
    if isinstance(prompt, Mapping):
        ids = prompt.get("prompt_token_ids")
        text = prompt.get("prompt")
        prompt = text if ids is None else ids
        if prompt is None:  # embeddings
            return RequestPrompt()
    if isinstance(prompt, str):
        token_ids = tuple(branch_inputs.encode(prompt, tokenizer, "prompt"))
    else:
        token_ids = tuple(as_prompt(prompt) or ())  # type: ignore[arg-type]
    if chat is None:
        return RequestPrompt(token_ids, text)
    if chat == UNKNOWN_MESSAGES:
        return RequestPrompt(token_ids, None, is_chat=True)
    try:
        return RequestPrompt(token_ids, as_chat(chat), is_chat=True)
    except (ValueError, KeyError, TypeError):
        return RequestPrompt(token_ids, None, is_chat=True)


# -- what vLLM does not pass to a check ------------------------------------------------------------------------------


def remember_inputs(input_processor: Any) -> None:
    """Keep what a request arrives with while its sampling parameters are checked.

    Args:
        input_processor: vLLM's class ``InputProcessor``.
    """

    def wrapper(process: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(process)

        def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(self, *args, **kwargs).arguments
            inputs = EngineInput(self.vllm_config, self.tokenizer, arguments["prompt"], arguments.get("lora_request"))
            token = current_input.set(inputs)
            try:
                return process(self, *args, **kwargs)
            finally:
                current_input.reset(token)

        return process_inputs

    wrap_once(input_processor, "process_inputs", wrapper)


def remember_chats(protocol: Any, messages_of: Callable[[Any], Any]) -> None:
    """Mark the sampling parameters of guided chats: once a chat was rendered, no branch can change its messages.

    Args:
        protocol: vLLM's class of requests, whose ``to_sampling_params`` makes sampling parameters.
        messages_of: the messages of such a request, or :data:`UNKNOWN_MESSAGES`.
    """

    def wrapper(make: Callable[..., Any]) -> Callable[..., Any]:
        def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            params = make(self, *args, **kwargs)
            if has_guidance(params.extra_args):
                params.extra_args = {**params.extra_args, CHAT: messages_of(self)}
            return params

        return to_sampling_params

    wrap_once(protocol, "to_sampling_params", wrapper)


def check_requests(protocol: Any, error_class: Callable[..., Exception]) -> None:
    """Refuse requests whose guidance would be lost: fields of guidance that vLLM does not know, and beam search.

    Args:
        protocol: vLLM's class of requests.
        error_class: as for :func:`refusing`.
    """

    def sampling(make: Callable[..., Any]) -> Callable[..., Any]:
        def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            with refusing(error_class):
                check_names(self.model_extra or {})
                for name in self.model_extra or {}:
                    if name in KNOWN:
                        # Only the middleware reads it there.
                        raise ArgumentError(f"{name} is not read outside of vllm_xargs by this server", name)
            return make(self, *args, **kwargs)

        return to_sampling_params

    def beams(make: Callable[..., Any]) -> Callable[..., Any]:
        def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
            with refusing(error_class):
                extra = {**(self.vllm_xargs or {}), **(self.model_extra or {})}
                if has_guidance(unpacked(extra)):
                    raise ArgumentError(NO_BEAMS, BEAMS)
            return make(self, *args, **kwargs)

        return to_beam_search_params

    wrap_once(protocol, "to_sampling_params", sampling)
    if hasattr(protocol, "to_beam_search_params"):
        wrap_once(protocol, "to_beam_search_params", beams)


def remember_offline_chats(llm: Any) -> None:
    """Know, while prompts of ``LLM.chat`` are checked, that they are chats.

    Args:
        llm: vLLM's class ``LLM``.
    """

    def wrapper(chat: Callable[..., Any]) -> Callable[..., Any]:
        def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = _is_offline_chat.set(True)
            try:
                return chat(self, *args, **kwargs)
            finally:
                _is_offline_chat.reset(token)

        return marked

    for name in ("chat", "enqueue_chat"):
        wrap_once(llm, name, wrapper)
