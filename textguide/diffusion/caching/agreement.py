"""How far a run that keeps keys is from one that reads everything anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...support.showing import Block, Shown, table
from ..denoisers import denoiser
from ..generation import DiffusionResult, finish, generate, prepared
from ..guiding import checked_guidance


@dataclass(frozen=True)
class CacheAgreement(Shown):
    """A run with ``cache=`` beside the same run without.

    Attributes:
        equal_tokens: share of the filled positions at which both runs wrote the same token.
        equal_rows: share of the rows in which they wrote the same text.
        largest_difference: the largest difference, in nats, between a log-probability that a pass of the run with the
            cache gave and the one that reading the same canvas whole gives: over all passes, branches, positions that
            were asked for, and tokens. inf where one of the two is 0.
        distances: the total variation between the two distributions at each of these positions, (N,).
        exact, kept: what the runs wrote; ``passes`` and ``tokens`` say what they read. The whole readings of the
            comparison are not counted.
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
    model: Any, tokenizer: Any, prompts: Any, *, cache: Any = "delayed", guidance: Any = None, **arguments: Any
) -> CacheAgreement:
    """Generate with and without a cache, and compare.

    Both runs draw the same random numbers, those of ``seed`` (0 where none is given). Equal tokens say what the error
    does to a text, and once one token differs the canvases do too; the differences of log-probabilities compare
    readings of the same canvas, which also tells the error of a run whose tokens are all equal.

    Args:
        model, tokenizer, prompts, guidance: as for :func:`textguide.diffusion.generate`.
        cache: the value to measure: ``True``, a :class:`~textguide.diffusion.DelayedCache` or its text.
        **arguments: further arguments of :func:`textguide.diffusion.generate` that shape the canvas, as those of
            :func:`textguide.diffusion.stream`.

    Raises:
        ValueError: as ``generate``.

    Example:
        >>> textguide.diffusion.cache_agreement(model, tokenizer, prompts, cache="delayed:refresh=4", gen_length=64)
    """
    made, wanted = denoiser(model, tokenizer), checked_guidance(guidance)
    arguments = {"seed": 0, **arguments}
    exact = generate(made, tokenizer, prompts, guidance=wanted, warn=False, **arguments)
    sampler = prepared(made, tokenizer, prompts, guidance=wanted, cache=cache, **arguments)
    distances, largest = [], [0.0]

    def watch(kept: Tensor, whole: Tensor, asked: Tensor) -> None:
        one, other = (logits[asked].double().log_softmax(-1) for logits in (kept, whole))
        apart = torch.where(one == other, 0.0, one - other).abs()  # both −inf: the same
        largest.append(float(apart.max()))
        distances.append((one.exp() - other.exp()).abs().sum(-1).cpu() / 2)

    sampler.guide.watch(watch)
    kept = finish(sampler, wanted, keep_history=False, warn=False, whole=False)
    same = (exact.sequences == kept.sequences) | ~exact.targets
    return CacheAgreement(
        equal_tokens=float(same[exact.targets].double().mean()),
        equal_rows=float(same.all(-1).double().mean()),
        largest_difference=max(largest),
        distances=torch.cat(distances) if distances else torch.zeros(0, dtype=torch.float64),
        exact=exact,
        kept=kept,
    )
