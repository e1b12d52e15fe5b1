"""How far a run with a cache is from one that reads everything in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...support.showing import Block, Shown, table
from ..denoisers import denoiser
from ..guiding import checked_guidance
from ..options import CanvasOptions
from ..results import DiffusionResult
from ..run import CanvasRun


@dataclass(frozen=True)
class CacheAgreement(Shown):
    """A run with ``cache=`` compared with the same run without.

    Attributes:
        equal_tokens: share of the filled positions at which both runs wrote the same token.
        equal_rows: share of the rows in which both runs wrote the same text.
        largest_difference: the largest difference, in nats, between a log-probability from a pass of the run with the
            cache and the one from reading the same canvas whole: over all passes, branches, requested positions and
            tokens. inf if one of the two probabilities is 0.
        distances: the total variation between the two distributions at each of these positions, (N,).
        exact, kept: results of the run without and with the cache; ``passes`` and ``tokens`` state what they read. The
            whole readings of the comparison are not counted.
    """

    equal_tokens: float
    equal_rows: float
    largest_difference: float
    distances: Tensor
    exact: DiffusionResult
    kept: DiffusionResult

    def __str__(self) -> str:
        mean = float(self.distances.mean()) if len(self.distances) else 0.0
        return (
            f"{self.equal_tokens:.1%} of the tokens and {self.equal_rows:.1%} of the texts are equal; largest "
            f"difference {self.largest_difference:.3g} nats, total variation {mean:.3g} in the mean"
        )

    def _shown(self) -> tuple[str, Sequence[Block]]:
        runs = (("no", self.exact), ("yes", self.kept))
        rows = [[name, str(one.passes), str(one.tokens)] for name, one in runs]
        return str(self), [table(["cache", "passes", "positions read"], rows, "lrr")]


def cache_agreement(
    model: Any, tokenizer: Any, prompts: Any, *, cache: Any = "delayed", guidance: Any = None, **options: Any
) -> CacheAgreement:
    """Generate with and without a cache, and compare.

    Both runs draw the same random numbers, those of ``seed`` (default 0). Equal tokens show what the error does to a
    text, but once one token differs the canvases differ too. The differences of log-probabilities compare readings of
    the same canvas, and so show the error of a run whose tokens are all equal as well.

    Args:
        model, tokenizer, prompts, guidance: as for :func:`textguide.diffusion.generate`.
        cache: the value to measure: ``True``, a :class:`~textguide.diffusion.DelayedCache` or its text.
        **options: further options of :func:`textguide.diffusion.stream`, and ``models``.

    Raises:
        ValueError: as ``generate``.

    Example:
        >>> textguide.diffusion.cache_agreement(model, tokenizer, prompts, cache="delayed:refresh=4", max_new_tokens=64)
    """
    reader = denoiser(model, tokenizer)
    guidance = checked_guidance(guidance)
    models = options.pop("models", None)
    name = "textguide.diffusion.cache_agreement"
    runs = []
    for value in (False, cache):
        canvas_options = CanvasOptions.of({"seed": 0, **options, "cache": value}, name)
        runs.append(CanvasRun.after_prompts(reader, prompts, guidance, models, canvas_options))
    exact = runs[0].result(warn=False)
    sampler = runs[1].sampler()
    distances: list[Tensor] = []
    largest = [0.0]

    def compare(with_cache: Tensor, whole: Tensor, positions: Tensor) -> None:
        one = with_cache[positions].double().log_softmax(-1)
        other = whole[positions].double().log_softmax(-1)
        difference = torch.where(one == other, 0.0, one - other).abs()  # equal if both are −inf
        largest.append(float(difference.max()))
        distances.append((one.exp() - other.exp()).abs().sum(-1).cpu() / 2)

    sampler.guide.watch(compare)
    kept = runs[1].finish(sampler)
    same = (exact.sequences == kept.sequences) | ~exact.targets
    return CacheAgreement(
        equal_tokens=float(same[exact.targets].double().mean()),
        equal_rows=float(same.all(-1).double().mean()),
        largest_difference=max(largest),
        distances=torch.cat(distances) if distances else torch.zeros(0, dtype=torch.float64),
        exact=exact,
        kept=kept,
    )
