"""Masked diffusion models in lm-eval, under guidance, for one setting or a sweep of them.

Importing this module registers ``textguide-diffusion`` in lm-eval::

    from textguide.eval import DiffusionLM
    lm_eval.simple_evaluate(model="textguide-diffusion", model_args="pretrained=sudoku4,guidance=acfg:scale=1.5", …)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from tqdm import tqdm

from textguide import diffusion
from textguide.diffusion.guiding import checked_guidance

from .answering import AnsweringLM, Generations, cut, settings_of
from .answering import key as answer_key


@register_model("textguide-diffusion")
class DiffusionLM(AnsweringLM):
    """A masked diffusion model as lm-eval's: likelihoods by Monte Carlo, generation by denoising.

    Args:
        pretrained: a bundled model, a folder, a hub name, or a model object (with ``tokenizer=``).
        guidance: as for :func:`textguide.diffusion.generate`, an object, a dict or text such as ``acfg:scale=1.5``;
            None is plain.
        settings: several guidances in place of one: a sweep.
        models: further denoisers by the name that guidances use, objects or what :func:`textguide.diffusion.load`
            takes.
        draws: Monte Carlo draws a likelihood.
        gen_length: masks of a generation where the task names no length.
        steps, block_length, order, sampler, temperature, threshold, positions, corrector, cache: as for
            :func:`textguide.diffusion.generate`, where texts are written. A block longer than a task's canvas is cut
            to it; likelihoods keep no keys.
        memo: where answers are kept; default: memory alone.
        batch_size: rows at once.
        seed: of masks and samples.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Attributes:
        current: index into ``settings`` of the one that answers.
        effects: what guidance did while generating, by setting.
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
        gen_length: int = 256,
        steps: int | None = None,
        block_length: int | None = None,
        order: Any = "confidence",
        sampler: Any = None,
        temperature: float = 0.0,
        threshold: float | None = None,
        positions: str = "guided",
        corrector: int = 0,
        cache: Any = False,
        memo: Any = None,
        batch_size: int | str = 16,
        seed: int = 0,
        uncond: str = "last-token",
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if uncond != "last-token":
            raise ValueError(f"uncond={uncond!r} describes models that read left to right; CFG masks the prompt here")
        self._settle([checked_guidance(one) for one in settings_of(guidance, settings)], uncond, seed, memo)
        loading = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if isinstance(pretrained, str):
            pretrained, tokenizer = diffusion.load(pretrained, **loading)
        self.denoiser = diffusion.denoiser(pretrained, tokenizer)
        self.models = {
            name: diffusion.denoiser(
                diffusion.load(one, **loading)[0] if isinstance(one, str) else one, self.denoiser.tokenizer
            )
            for name, one in (models or {}).items()
        }
        self.model, self.tokenizer = self.denoiser.model, self.denoiser.tokenizer
        self.draws, self.gen_length, self.steps, self.block_length = draws, gen_length, steps, block_length
        self.options: dict[str, Any] = {
            "order": order, "sampler": sampler, "temperature": temperature, "threshold": threshold,
            "positions": positions, "corrector": corrector, "cache": cache,
        }  # fmt: skip
        self.batch_size = 16 if batch_size == "auto" else int(batch_size)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self.denoiser.device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Monte Carlo estimates of each continuation behind its context, under the current setting.

        Whether a continuation is what the model would write is found by writing it, where a document has one
        continuation; for multiple choice, which does not ask, it is False.
        """
        alone = Counter((str(r.task_name), r.doc_id) for r in requests)
        pairs = [(r.args[0], r.args[1]) for r in requests]
        values = self._scores(pairs, disable_tqdm)
        greedy = [
            alone[(str(r.task_name), r.doc_id)] == 1 and self._writes(*pair)
            for r, pair in zip(requests, pairs, strict=True)
        ]
        return list(zip(values, greedy, strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Monte Carlo estimates of whole texts behind an empty prompt."""
        return self._scores([("", r.args[0]) for r in requests], disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Denoise a canvas behind each context and cut the text at the first stop text."""
        options = {k: v if v is None or isinstance(v, str | float | int) else repr(v) for k, v in self.options.items()}
        shape = (self.steps, self.block_length, self.gen_length, options)
        names = [answer_key("gen", self.fingerprint, self.seed, *r.args, *shape) for r in requests]
        answers = Generations(requests, names, self._memo)
        lengths = [self._length(r.args[1]) for r in requests]
        bar = tqdm(total=len(answers.missing), desc="generations", disable=disable_tqdm or not answers.missing)
        for length, numbers in _grouped(answers.missing, lengths).items():
            for start in range(0, len(numbers), self.batch_size):
                chunk = numbers[start : start + self.batch_size]
                out = diffusion.generate(
                    self.denoiser, self.tokenizer, [requests[n].args[0] for n in chunk], gen_length=length,
                    guidance=self.setting, models=self.models, seed=answers.seed(self.seed, chunk[0]), warn=False,
                    **self._canvas(length), **self.options,
                )  # fmt: skip
                self.effects.setdefault(self.current, []).append(out.effect)
                for n, text in zip(chunk, out.texts, strict=True):
                    answers.keep(n, cut(text, requests[n].args[1].get("until")))
                bar.update(len(chunk))
        bar.close()
        return answers.texts()

    def _scores(self, pairs: list[tuple[str, str]], disable_tqdm: bool) -> list[float]:
        keys = [answer_key("ll", self.fingerprint, self.seed, *pair, self.draws) for pair in pairs]
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._memo}
        for key, (context, continuation) in tqdm(
            missing.items(), desc="log-likelihoods", disable=disable_tqdm or not missing
        ):
            found = diffusion.score(
                self.denoiser, self.tokenizer, context, continuation, guidance=self.setting, models=self.models,
                draws=self.draws, batch_size=self.batch_size, seed=self.seed,
            )  # fmt: skip
            error = float(found.standard_error[0])
            self._memo.append(key, {"ll": float(found.log_likelihood[0]), "se": None if error != error else error})
        return [float(self._memo.done[key]["ll"]) for key in keys]

    def _writes(self, context: str, continuation: str) -> bool:
        target = self.denoiser.encode(continuation)
        out = diffusion.generate(
            self.denoiser, self.tokenizer, context, gen_length=len(target), guidance=self.setting,
            models=self.models, early_end=False, warn=False,
        )  # fmt: skip
        return torch.equal(out.sequences[0][out.targets[0]].cpu(), torch.tensor(target))

    def _length(self, options: Mapping[str, Any]) -> int:
        return int(options.get("max_gen_toks") or options.get("max_new_tokens") or self.gen_length)

    def _canvas(self, length: int) -> dict[str, Any]:
        """Steps and block for a canvas of this length: the block no longer than the canvas and a divisor of it."""
        block = min(self.block_length or length, length)
        if length % block:
            raise ValueError(f"block_length={block} does not divide the task's {length} tokens; use another block")
        return {"steps": None if self.steps is None else max(self.steps, length // block), "block_length": block}


def _grouped(numbers: Sequence[int], lengths: Sequence[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(lengths[number], []).append(number)
    return groups
