"""A guided vLLM engine in lm-eval: generation tasks, for one setting or a sweep of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any

import torch
from lm_eval.api.registry import register_model
from tqdm import tqdm

import textguide
from textguide.guidance import Contrast, Guidance, as_guidance, split
from textguide.guidance.places import check_place
from textguide.models import bundled

from .answering import AnsweringLM, Generations, cut, settings_of
from .answering import key as answer_key
from .contexts import UNCONDITIONAL, unconditional_context

# What one chunk of requests may lose when a run is killed; an engine wants many at once.
GENERATIONS_AT_ONCE = 512
# Tokens of an answer where the task names no number: lm-eval's own default.
LONGEST = 256
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")


@register_model("textguide-vllm")
class VLLMGuidedLM(AnsweringLM):
    """A vLLM engine with guidance as lm-eval's model; answers equal those of :class:`GuidedLM` but for near-ties.

    Likelihood tasks are refused: vLLM's prompt log-probabilities are those of the prompt without guidance.

    Args:
        pretrained: as for :func:`textguide.vllm_engine`, or an engine that it returned.
        guidance: a guidance, a dict, or text such as ``cfg:scale=1.5``; None is plain.
        settings: several guidances (None for plain), in place of ``guidance``: a sweep.
        uncond: as for :class:`GuidedLM`.
        memo: where answers are kept, by key; default: memory alone.
        seed: of drawn answers.
        batch_size: not used; vLLM fills its batches by itself.
        dtype, trust_remote_code, **engine: options of ``vllm.LLM``.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Attributes:
        current: index into ``settings`` of the one that answers.
        tasks: lm-eval tasks by name, where a task's instruction has to be found.
        effects: what guidance did while generating, by setting.
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
            raise ValueError(f"device={device!r} cannot be chosen here: vLLM runs where its build runs; leave it out")
        self._settle(settings_of(guidance, settings), uncond, seed, memo)
        for setting in self.settings:
            check_place(setting, "vllm")
            parts = split(setting)
            if parts.sampling is not None:
                raise ValueError(
                    f"guidance={setting!r} draws texts with weights, which an answer has no room for here; use "
                    "textguide.generate"
                )
            if uncond != UNCONDITIONAL[0] and not isinstance(parts.branching, (Contrast, NoneType)):
                raise ValueError(
                    f"uncond={uncond!r} is a negative prompt, which {setting!r} does not take; leave it out"
                )
        self.llm = textguide.vllm_engine(pretrained, **engine) if isinstance(pretrained, str) else pretrained
        self.tokenizer = self.llm.get_tokenizer()
        self.max_length = int(self.llm.model_config.max_model_len)

    @property
    def device(self) -> Any:
        """The kind of device that vLLM's build runs on."""
        return torch.device(self.llm.llm_engine.vllm_config.device_config.device_type)

    @property
    def model(self) -> Any:
        """What knows the dtype of the weights, for records."""
        return self.llm.model_config

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refused: see the class."""
        names = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise ValueError(
            f"backend='vllm' cannot score the likelihood task {names}: vLLM's prompt log-probabilities know no "
            "guidance; use the transformers backend (--backend causal), which scores all scales from one pass"
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: see the class."""
        self.loglikelihood(requests)
        return []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval defines it, under the current setting; answers are kept chunk by chunk."""
        names = [answer_key("vllm", self.fingerprint, self.seed, *request.args) for request in requests]
        answers = Generations(requests, names, self._memo)
        groups: dict[str, list[int]] = {}
        for n in answers.missing:
            groups.setdefault(answer_key("options", requests[n].args[1]), []).append(n)
        bar = tqdm(total=len(answers.missing), desc="generations", disable=disable_tqdm or not groups)
        for numbers in groups.values():
            for start in range(0, len(numbers), GENERATIONS_AT_ONCE):
                chunk = numbers[start : start + GENERATIONS_AT_ONCE]
                texts = self._write([requests[n] for n in chunk], answers.seed(self.seed, chunk[0]))
                for n, text in zip(chunk, texts, strict=True):
                    answers.keep(n, text)
                bar.update(len(chunk))
        bar.close()
        return answers.texts()

    def _write(self, requests: list[Any], seed: int) -> list[str]:
        """Answers to requests that share their options."""
        options: Mapping[str, Any] = requests[0].args[1]
        longest = next((int(options[name]) for name in LENGTHS if options.get(name)), LONGEST)
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        setting = self.setting
        if self.uncond != UNCONDITIONAL[0] and split(setting).branching is not None:
            others = [unconditional_context(self.tasks, request, self.uncond) for request in requests]
            setting = replace(as_guidance(setting), negative_prompt=[self._fit(text, longest) for text in others])  # type: ignore[type-var]
        sampling = {name: options[name] for name in SAMPLING if options.get(name) is not None}
        if not sampling.pop("do_sample", sampling.get("temperature", 0) > 0):
            sampling = {name: value for name, value in sampling.items() if name == "repetition_penalty"}
            sampling["do_sample"] = False
        contexts = [self._fit(request.args[0], longest) for request in requests]
        out = textguide.generate(
            self.llm, None, contexts, setting, max_new_tokens=longest, stop=stops, seed=seed, **sampling
        )
        if setting is not None:
            self.effects.setdefault(self.current, []).append(out.effect)
        return [cut(text, stops) for text in out.texts]

    def _fit(self, text: str, longest: int) -> list[int]:
        ids = list(self.tokenizer(text).input_ids) or [self.tokenizer.eos_token_id]
        room = self.max_length - longest
        if room < 1:
            raise ValueError(f"max_model_len={self.max_length} leaves no room for {longest} new tokens; raise it")
        if len(ids) > room:
            self._cut.add(answer_key("context", text))
        return ids[-room:]
