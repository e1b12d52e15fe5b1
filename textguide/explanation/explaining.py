"""``textguide.explain``: which tokens guidance raised and lowered, at every step.

The view of arXiv 2306.17806, section 4.4: at each step the vocabulary is ranked by the difference of the branches'
log-probabilities, and the two ends of the ranking are shown.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import generation
from ..engine.effect import Effect
from ..engine.loop import StepView
from ..guidance import CFG, Guidance, as_guidance
from ..guidance.algebra import kl_divergence


@dataclass(frozen=True)
class TokenMove:
    """How one token fared at one step; probabilities in [0, 1].

    Args:
        text: the token as text.
        token: its id.
        cond: probability in the conditional branch.
        uncond: probability in the branch to move away from; that of ``cond`` where a classifier alone guides.
        guided: probability after guidance.
        ratio: log cond − log uncond, in nats: the direction in which guidance moves the token; log guided − log cond
            where a classifier alone guides.
    """

    text: str
    token: int
    cond: float
    uncond: float
    guided: float
    ratio: float


@dataclass(frozen=True)
class ExplainedStep:
    """One step.

    Args:
        index: number of the token, from 0.
        chosen: the token that was written.
        plain: the token that the conditional branch alone holds most likely.
        kl: KL(guided‖unguided) in nats.
        raised: the tokens with the largest ratio, largest first.
        lowered: the tokens with the smallest ratio, smallest first.
        guided: whether guidance was active.
        branched: whether an extra branch was active, and not a classifier alone.
    """

    index: int
    chosen: TokenMove
    plain: TokenMove
    kl: float
    raised: tuple[TokenMove, ...]
    lowered: tuple[TokenMove, ...]
    guided: bool
    branched: bool = True


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` returns.

    Args:
        prompt: the prompt as text.
        text: the continuation.
        guidance: the guidance that was explained.
        steps: one entry per token.
        effect: the run's report.
    """

    prompt: str
    text: str
    guidance: Guidance
    steps: tuple[ExplainedStep, ...]
    effect: Effect

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "guidance": self.guidance.to_dict(),
            "steps": [asdict(step) for step in self.steps],
            "effect": self.effect.to_dict(),
        }

    def to_html(self) -> str:
        """One self-contained HTML page: the text as a heat map, and a table of every step."""
        from .html import page

        return page(self)

    def save_html(self, path: str | Path) -> Path:
        """Write :meth:`to_html` to ``path``, whole or not at all; missing folders are made."""
        from ..support.files import write_text

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_html())
        return Path(path)


def explain(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int = 32,
    top: int = 5,
    min_prob: float = 1e-3,
    **options: Any,
) -> Explanation:
    """Continue one prompt and record which tokens guidance moved.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompt: a text, token ids or a chat.
        guidance: a guidance with branches, as for :func:`textguide.generate`; default ``CFG(1.5)``.
        max_new_tokens: longest continuation.
        top: tokens shown at each end of the ranking.
        min_prob: leave tokens out that have less than this probability in every branch; 0 ranks the whole vocabulary,
            as the paper does, where the ends are mostly tokens that nobody would write.
        **options: as for :func:`textguide.generate`.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    chosen = CFG() if guidance is None else as_guidance(guidance)
    if chosen is None or chosen.is_neutral:
        raise ValueError(f"guidance={guidance!r} changes nothing, so there is nothing to explain; raise its scale")
    if top < 1:
        raise ValueError(f"top={top} must be 1 or more")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob={min_prob} must lie in [0, 1)")
    steps: list[ExplainedStep] = []

    def observe(view: StepView) -> None:
        if len(view.samples) != 1:
            raise ValueError(f"prompt has {len(view.samples)} rows; explain one prompt at a time")
        steps.append(_explain_step(view, tokenizer, top, min_prob))

    out = generation.generate(
        model, tokenizer, prompt, chosen, max_new_tokens=max_new_tokens, observer=observe, **options
    )
    if len(out.texts) != 1:
        raise ValueError(f"prompt has {len(out.texts)} rows; explain one prompt at a time")
    start = out.sequences.shape[1] - out.log_probs.shape[1]
    read = tokenizer.decode(out.sequences[0, :start], skip_special_tokens=False)
    return Explanation(read, out.texts[0], chosen, tuple(steps), out.effect)


def _explain_step(view: StepView, tokenizer: Any, top: int, min_prob: float) -> ExplainedStep:
    cond, guided = view.cond[0], view.guided[0]
    branched = view.extra is not None
    is_guided = branched or (view.reweighed is not None and bool(view.reweighed[0]))
    uncond = view.extra[0, 0] if view.extra is not None else cond
    # The two laws whose ratio ranks the tokens.
    up, base = (cond, uncond) if branched else (guided, cond)

    def move(token: int) -> TokenMove:
        lc, lu = float(up[token]), float(base[token])
        ratio = lc - lu if math.isfinite(lc) and math.isfinite(lu) else 0.0
        return TokenMove(
            text=tokenizer.decode([token]),
            token=token,
            cond=float(cond[token].exp()),
            uncond=float(uncond[token].exp()),
            guided=float(guided[token].exp()),
            ratio=ratio,
        )

    raised, lowered = _ends(up, base, guided, top, min_prob) if is_guided else ([], [])
    return ExplainedStep(
        index=view.index,
        chosen=move(int(view.tokens[0])),
        plain=move(int(cond.argmax())),
        kl=float(kl_divergence(torch.log_softmax(guided, -1), cond)) if is_guided else 0.0,
        raised=tuple(move(token) for token in raised),
        lowered=tuple(move(token) for token in lowered),
        guided=is_guided,
        branched=branched,
    )


def _ends(cond: Tensor, uncond: Tensor, guided: Tensor, top: int, min_prob: float) -> tuple[list[int], list[int]]:
    ratio = torch.where(torch.isfinite(cond) & torch.isfinite(uncond), cond - uncond, 0.0)
    likely = torch.stack([cond, uncond, guided]).amax(0).exp() >= min_prob
    up = torch.where(likely & (ratio > 0), ratio, float("-inf")).topk(min(top, len(ratio)))
    down = torch.where(likely & (ratio < 0), ratio, float("inf")).topk(min(top, len(ratio)), largest=False)
    return (
        up.indices[torch.isfinite(up.values)].tolist(),
        down.indices[torch.isfinite(down.values)].tolist(),
    )
