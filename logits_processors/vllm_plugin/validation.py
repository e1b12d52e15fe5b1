"""Checks a guided request where vLLM takes it in, so that a wrong argument is answered there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from textguide.engine import branch_inputs
from textguide.guidance.prompts import as_chat, as_prompt

from .adapters import Adapter, adapters_of, most_of
from .arguments import asks, parse
from .constraints import EngineConstraints
from .extras import OURS, constraints_of, critics_of, ours_of
from .further_models import models_of
from .images import images_of
from .request_guidance import Given
from .requests import Limits
from .reweighting import classifier_of

TESTED = ("0.32.0",)
"""The vLLM versions that the tests ran with."""
CHAT = "textguide_chat"
"""The key of ``extra_args`` under which a chat travels to the check of its request."""
hears_refusals: list[Callable[[ValueError], None]] = []
"""What is called with each refusal of a request."""


def validate(params: Any) -> None:
    """Refuse arguments that cannot work; leave what the engine is asked for in ``extra_args``.

    Raises:
        ValueError: an argument cannot work; the message names it.
    """
    # vLLM checks one object once a prompt, and a client has no business with our key; the chat has arrived here.
    sent = params.extra_args or {}
    extra = {key: value for key, value in sent.items() if key not in (OURS, CHAT)}
    if len(extra) != len(sent):
        params.extra_args = extra
    if asks(extra):
        try:
            limits, given = _engine(sent.get(CHAT))
            asked = parse(params, limits, given)
        except ValueError as error:
            for hear in hears_refusals:
                hear(error)
            raise
        if asked is not None:
            params.extra_args = {**extra, OURS: asked.to_dict()}
            if asked.population is not None:
                params.n = asked.particles  # vLLM makes a request of each answer


def remember_chats(protocol: Any) -> None:
    """Let guided requests keep their chat: of one that was made into tokens, no branch can be made any more.

    Args:
        protocol: the class of vLLM's chat requests, whose ``to_sampling_params`` makes sampling parameters.
    """
    make = protocol.to_sampling_params
    if getattr(make, "remembers", False):
        return

    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = make(self, *args, **kwargs)
        if asks(params.extra_args):
            params.extra_args = {**params.extra_args, CHAT: list(self.messages)}
        return params

    to_sampling_params.remembers = True  # type: ignore[attr-defined]
    protocol.to_sampling_params = to_sampling_params


def _engine(chat: Any) -> tuple[Limits, Given]:
    """What the engine can take whose input is being checked, and the prompt: vLLM hands a processor's check nothing but
    the parameters."""
    frame = sys._getframe(1)
    offline_chat = False
    while frame is not None:
        checker: Any = frame.f_locals.get("self")
        if type(checker).__name__ == "InputProcessor" and "prompt" in frame.f_locals:
            limits = _limits_of(checker.vllm_config, checker.tokenizer)
            given = _given(frame.f_locals["prompt"], chat, checker.tokenizer)
            images = images_of(frame.f_locals["prompt"], checker.vllm_config.model_config, checker.tokenizer)
            given = replace(given, adapter=Adapter.of(frame.f_locals.get("lora_request")), images=images)
            # OpenAI's responses hand over no chat; their prompts are chats that were made into text.
            offline_chat = str(frame.f_locals.get("request_id")).startswith("resp")
            while frame is not None and not offline_chat:
                owner = type(frame.f_locals.get("self")).__name__
                offline_chat = (owner, frame.f_code.co_name) == ("LLM", "chat")
                frame = frame.f_back  # type: ignore[assignment]
            return limits, replace(given, prompt=None, is_chat=True) if offline_chat and chat is None else given
        frame = frame.f_back  # type: ignore[assignment]
    return Limits(), Given()


def _limits_of(config: Any, tokenizer: Any) -> Limits:
    model, scheduling, cache = config.model_config, config.scheduler_config, config.cache_config
    size = model.get_vocab_size()
    constraints = (
        None
        if tokenizer is None
        else EngineConstraints(constraints_of(config), lambda: tokenizer, size, critics_of(config))
    )
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
        blocks=blocks - 1 - int(scheduling.watermark * blocks) if blocks else None,
        block_size=cache.block_size,
        lone=_lone(config),
    )


def _lone(config: Any) -> str | None:
    """Why an engine cannot resample texts together; None where it can."""
    ranks = config.parallel_config.data_parallel_size
    if ranks > 1:
        return f"data_parallel_size={ranks}, whose ranks share out the answers of a request"
    return None


def _given(prompt: Any, chat: Any, tokenizer: Any) -> Given:
    """The prompt of a request as vLLM holds it: text, token ids, or a mapping with these."""
    if isinstance(prompt, Mapping):
        given, text = prompt.get("prompt_token_ids"), prompt.get("prompt")
        if given is None and text is None:
            return Given()
        prompt = given if given is not None else text
    else:
        text = prompt if isinstance(prompt, str) else None
    ids: Any = branch_inputs.encode(prompt, tokenizer, "prompt") if isinstance(prompt, str) else as_prompt(prompt) or ()
    if chat is None:
        return Given(tuple(ids), text)
    try:
        return Given(tuple(ids), as_chat(chat), True)
    except (ValueError, KeyError, TypeError):
        return Given(tuple(ids), None, True)
