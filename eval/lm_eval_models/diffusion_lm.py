"""Masked diffusion models in lm-eval, under guidance, for one setting or a sweep of them.

Importing this module registers ``textguide-diffusion`` in lm-eval::

    from textguide.eval import DiffusionLM
    lm_eval.simple_evaluate(model="textguide-diffusion", model_args="pretrained=sudoku4,guidance=acfg:scale=1.5", …)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.registry import register_model
from tqdm import tqdm

from textguide import diffusion
from textguide.diffusion.guiding import checked_guidance
from textguide.diffusion.options import CanvasOptions
from textguide.diffusion.run import CanvasRun

from .answering import AnsweringLM, Generations, cut, settings_of
from .answering import key as answer_key


@register_model("textguide-diffusion")
class DiffusionLM(AnsweringLM):
    """A masked diffusion model as lm-eval's model: likelihoods by Monte Carlo, generation by denoising.

    Args:
        pretrained: a bundled model, a folder, a hub name, or a model object (with ``tokenizer=``).
        tokenizer: that of a model object.
        guidance: as for :func:`textguide.diffusion.generate`, an object, a dict or text such as ``acfg:scale=1.5``;
            None is plain decoding.
        settings: several guidances instead of one: a sweep.
        models: further denoisers by the name that guidances use, as objects or as names that
            :func:`textguide.diffusion.load` accepts.
        draws: Monte Carlo draws per likelihood.
        memo: where answers are recorded; None: only in memory.
        batch_size: rows per batch.
        seed: seed of masks and samples.
        uncond: must be ``last-token``, since CFG masks the prompt in these models.
        device, dtype, trust_remote_code: as for :func:`textguide.diffusion.load`.
        **options: of generation, as for :func:`textguide.diffusion.generate`: ``max_new_tokens`` (or ``gen_length``)
            for tasks that set no length, ``steps``, ``block_length``, ``order``, ``sampler``, ``temperature``,
            ``threshold``, ``positions``, ``corrector`` and ``cache``. A block is at most as long as a task's canvas.
            Likelihoods are computed without a cache.

    Raises:
        ValueError: an argument is invalid; the message names it.

    Attributes:
        options: how canvases are filled.
        current: index into ``settings`` of the one that answers.
        effects: what guidance did during generation, by setting.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        tokenizer: Any = None,
        guidance: Any = None,
        settings: Sequence[Any] | None = None,
        models: Mapping[str, Any] | None = None,
        draws: int = 128,
        memo: Any = None,
        batch_size: int | str = 16,
        seed: int = 0,
        uncond: str = "last-token",
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if uncond != "last-token":
            raise ValueError(
                f"uncond={uncond!r} is for models that read from left to right; leave it out, since CFG masks the "
                "prompt here"
            )
        self.options = _canvas_options(options)
        checked = [checked_guidance(setting) for setting in settings_of(guidance, settings)]
        self._set_up(checked, uncond, seed, memo)
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if isinstance(pretrained, str):
            pretrained, tokenizer = diffusion.load(pretrained, tokenizer=tokenizer, **loading)
        self.denoiser = diffusion.denoiser(pretrained, tokenizer)
        self.models = {}
        for name, source in (models or {}).items():
            model = diffusion.load(source, **loading)[0] if isinstance(source, str) else source
            self.models[name] = diffusion.denoiser(model, self.denoiser.tokenizer)
        self.model = self.denoiser.model
        self.tokenizer = self.denoiser.tokenizer
        self.draws = draws
        self.batch_size = 16 if batch_size == "auto" else int(batch_size)

    @property
    def device(self) -> Any:
        """The device of the model."""
        return self.denoiser.device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Monte Carlo estimates of each continuation after its context, under the current setting.

        Whether a continuation is what the model would generate is found by generating it, if a document has only one
        continuation; for multiple choice, which does not use it, it is False.
        """
        continuations = Counter((str(request.task_name), request.doc_id) for request in requests)
        pairs = [(request.args[0], request.args[1]) for request in requests]
        values = self._scores(pairs, disable_tqdm)
        answers = []
        for request, pair, value in zip(requests, pairs, values, strict=True):
            is_only = continuations[(str(request.task_name), request.doc_id)] == 1
            answers.append((value, is_only and self._generates(*pair)))
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Monte Carlo estimates of whole texts after an empty prompt."""
        return self._scores([("", request.args[0]) for request in requests], disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Denoise a canvas after each context, and cut the text at the first stop text."""
        answers = Generations(requests, self._keys(requests), self._memo)
        groups: dict[int, list[int]] = {}
        for number in answers.missing:
            groups.setdefault(self._length(requests[number].args[1]), []).append(number)
        bar = tqdm(total=len(answers.missing), desc="generations", disable=disable_tqdm or not answers.missing)
        for length, numbers in groups.items():
            for start in range(0, len(numbers), self.batch_size):
                chunk = numbers[start : start + self.batch_size]
                prompts = [requests[number].args[0] for number in chunk]
                options = replace(self._options_of_length(length), seed=answers.seed(self.seed, chunk[0]))
                run = CanvasRun.after_prompts(self.denoiser, prompts, self.setting, self.models, options)
                result = run.result(warn=False)
                self.effects.setdefault(self.current, []).append(result.effect)
                for number, text in zip(chunk, result.texts, strict=True):
                    answers.keep(number, cut(text, requests[number].args[1].get("until")))
                bar.update(len(chunk))
        bar.close()
        return answers.texts()

    def _keys(self, requests: list[Any]) -> list[str]:
        options = {}
        for name in ("order", "sampler", "temperature", "threshold", "positions", "corrector", "cache"):
            value = getattr(self.options, name)
            # An order or a sampler may be an object.
            options[name] = value if value is None or isinstance(value, (str, float, int)) else repr(value)
        canvas = (self.options.steps, self.options.block_length, self.options.max_new_tokens, options)
        return [answer_key("gen", self.fingerprint, self.seed, *request.args, *canvas) for request in requests]

    def _scores(self, pairs: list[tuple[str, str]], disable_tqdm: bool) -> list[float]:
        keys = [answer_key("ll", self.fingerprint, self.seed, *pair, self.draws) for pair in pairs]
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._memo}
        for key, (context, continuation) in tqdm(
            missing.items(), desc="log-likelihoods", disable=disable_tqdm or not missing
        ):
            result = diffusion.score(
                self.denoiser,
                self.tokenizer,
                context,
                continuation,
                guidance=self.setting,
                models=self.models,
                draws=self.draws,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            error = float(result.standard_error[0])
            record = {"ll": float(result.log_likelihood[0]), "se": None if math.isnan(error) else error}
            self._memo.append(key, record)
        return [float(self._memo.done[key]["ll"]) for key in keys]

    def _generates(self, context: str, continuation: str) -> bool:
        """Whether the model would generate this continuation."""
        target = self.denoiser.encode(continuation)
        result = diffusion.generate(
            self.denoiser,
            self.tokenizer,
            context,
            guidance=self.setting,
            max_new_tokens=len(target),
            models=self.models,
            early_end=False,
            warn=False,
        )
        return torch.equal(result.sequences[0][result.targets[0]].cpu(), torch.tensor(target))

    def _length(self, arguments: Mapping[str, Any]) -> int:
        """The length that a task's generation arguments set, or the model's own."""
        return int(arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or self.options.max_new_tokens)

    def _options_of_length(self, length: int) -> CanvasOptions:
        """The options for a canvas of this length.

        Raises:
            ValueError: the block is not a divisor of the length.
        """
        steps = self.options.steps
        block = min(self.options.block_length or length, length)
        if length % block:
            raise ValueError(f"block_length={block} does not divide the task's {length} tokens; use another block")
        if steps is not None:
            steps = max(steps, length // block)  # every block needs a step at least
        return replace(self.options, max_new_tokens=length, block_length=block, steps=steps)


def _canvas_options(options: Mapping[str, Any]) -> CanvasOptions:
    """The options of generation.

    Raises:
        ValueError: one is unknown, has a value that cannot work, or would change which texts a task is about.
    """
    for name in ("allowed", "constraint", "early_end"):
        if name in options:
            raise ValueError(f"{name}= is not an option of textguide-diffusion, which writes any text; leave it out")
    return CanvasOptions.of(options, "textguide-diffusion")
