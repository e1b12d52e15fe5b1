"""A guided vLLM engine in lm-eval: generation tasks, for one setting or a sweep of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

import torch
from lm_eval.api.registry import register_model
from tqdm import tqdm

from textguide.generation import generate
from textguide.guidance import Contrast, Guidance, as_guidance, split
from textguide.guidance.places import check_place
from textguide.logits_processors.vllm_plugin.engine import vllm_engine
from textguide.models import bundled
from textguide.support.errors import EmptyTextWarning

from .answering import AnsweringLM, Generations, cut, settings_of
from .answering import key as answer_key
from .contexts import UNCONDITIONAL, unconditional_context

GENERATIONS_AT_ONCE = 512
"""Number of requests whose answers are lost at most if a run is killed; an engine needs many requests together."""
LONGEST = 256
"""Tokens of an answer if the task does not set a number: lm-eval's own default."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")


@register_model("textguide-vllm")
class VLLMGuidedLM(AnsweringLM):
    """A vLLM engine with guidance as lm-eval's model; answers are those of :class:`GuidedLM` except for near-ties.

    Likelihood tasks are refused, because vLLM computes the log-probabilities of a prompt without guidance.

    Args:
        pretrained: as for :func:`textguide.vllm_engine`, or an engine that it returned.
        guidance: a guidance, a dict, or text such as ``cfg:scale=1.5``; None is plain decoding.
        settings: several guidances (None for plain decoding) instead of ``guidance``: a sweep.
        uncond: as for :class:`GuidedLM`.
        memo: where answers are recorded; None: only in memory.
        seed: seed of sampled answers.
        batch_size: not used, because vLLM chooses its batches.
        device: must be None, because vLLM's build determines the device.
        **engine: options of ``vllm.LLM``, such as ``dtype`` and ``trust_remote_code``.

    Raises:
        ValueError: an argument is invalid; the message names it.

    Attributes:
        current: index into ``settings`` of the one that answers.
        tasks: lm-eval tasks by name, if ``uncond`` needs a task's instruction.
        effects: what guidance did during generation, by setting.
    """

    def __init__(
        self,
        pretrained: Any = bundled.NAME,
        *,
        guidance: Any = None,
        settings: Sequence[Guidance | None] | None = None,
        uncond: str = UNCONDITIONAL[0],
        memo: Any = None,
        seed: int = 0,
        batch_size: Any = None,
        device: str | None = None,
        **engine: Any,
    ) -> None:
        super().__init__()
        if device is not None:
            raise ValueError(f"device={device!r} cannot be chosen, since vLLM's build determines it; leave it out")
        self._set_up(settings_of(guidance, settings), uncond, seed, memo)
        for setting in self.settings:
            check_place(setting, "vllm")
            parts = split(setting)
            if parts.sampling is not None:
                raise ValueError(
                    f"guidance={setting!r} draws texts with weights, and lm-eval's answers do not have weights; use "
                    "textguide.generate"
                )
            if uncond != UNCONDITIONAL[0] and not isinstance(parts.branching, (Contrast, NoneType)):
                raise ValueError(
                    f"uncond={uncond!r} is a negative prompt, which {setting!r} does not support; leave it out"
                )
        self.llm = vllm_engine(pretrained, **engine) if isinstance(pretrained, str) else pretrained
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = int(self.llm.model_config.max_model_len)

    @property
    def device(self) -> Any:
        """The kind of device on which vLLM's build runs."""
        return torch.device(self.llm.llm_engine.vllm_config.device_config.device_type)

    @property
    def model(self) -> Any:
        """vLLM's configuration of the model, which has the dtype of the weights."""
        return self.llm.model_config

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refused: see the class."""
        names = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise ValueError(
            f"backend='vllm' cannot score the likelihood task {names}, since vLLM computes log-probabilities of "
            "prompts without guidance; use the transformers backend (--backend causal), which scores all scales from "
            "one pass"
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: see the class."""
        self.loglikelihood(requests)
        return []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval defines it, under the current setting; answers are recorded chunk by chunk."""
        names = [answer_key("vllm", self.fingerprint, self.seed, *request.args) for request in requests]
        answers = Generations(requests, names, self._memo)
        groups: dict[str, list[int]] = {}
        for number in answers.missing:
            groups.setdefault(answer_key("options", requests[number].args[1]), []).append(number)
        bar = tqdm(total=len(answers.missing), desc="generations", disable=disable_tqdm or not groups)
        for numbers in groups.values():
            for start in range(0, len(numbers), GENERATIONS_AT_ONCE):
                chunk = numbers[start : start + GENERATIONS_AT_ONCE]
                texts = self._write([requests[number] for number in chunk], answers.seed(self.seed, chunk[0]))
                for number, text in zip(chunk, texts, strict=True):
                    answers.keep(number, text)
                bar.update(len(chunk))
        bar.close()
        return answers.texts()

    def _write(self, requests: list[Any], seed: int) -> list[str]:
        """Answers to requests with the same options."""
        options: Mapping[str, Any] = requests[0].args[1]
        longest = next((int(options[name]) for name in LENGTHS if options.get(name)), LONGEST)
        until = options.get("until") or []
        stops = list(filter(None, [until] if isinstance(until, str) else until))
        setting = self.setting
        if self.uncond != UNCONDITIONAL[0] and split(setting).branching is not None:
            texts = [unconditional_context(self.tasks, request, self.uncond) for request in requests]
            prompts = [self._fit(text, longest) for text in texts]
            setting = replace(as_guidance(setting), negative_prompt=prompts)  # type: ignore[type-var]
        contexts = [self._fit(request.args[0], longest) for request in requests]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyTextWarning)  # the task chose the stop texts
            result = generate(
                self.llm, None, contexts, setting, max_new_tokens=longest, stop=stops, seed=seed, **_sampling(options)
            )
        if setting is not None:
            self.effects.setdefault(self.current, []).append(result.effect)
        return [cut(text, stops) for text in result.texts]

    def _fit(self, text: str, longest: int) -> list[int]:
        """Token ids of a context, cut from the left so that ``longest`` new tokens fit."""
        ids = list(self.tokenizer(text).input_ids) or [self.tokenizer.eos_token_id]
        room = self.max_length - longest
        if room < 1:
            raise ValueError(f"max_model_len={self.max_length} leaves no room for {longest} new tokens; raise it")
        if len(ids) > room:
            self._cut.add(answer_key("context", text))
        return ids[-room:]


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options of a request; of those, greedy decoding only uses the repetition penalty."""
    sampling = {name: options[name] for name in SAMPLING if options.get(name) is not None}
    if sampling.pop("do_sample", sampling.get("temperature", 0) > 0):
        return sampling
    greedy: dict[str, Any] = {"do_sample": False}
    if "repetition_penalty" in sampling:
        greedy["repetition_penalty"] = sampling["repetition_penalty"]
    return greedy
