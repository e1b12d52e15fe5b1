"""``textguide.explain``: which tokens guidance raised and lowered, at every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import generation
from ..engine import branch_inputs
from ..engine.custom_generate import empty_source
from ..engine.loop import StepView
from ..engine.options import SAMPLING_OPTIONS, with_config
from ..engine.results import GenerateResult
from ..guidance import AWRS, CFG, BranchGuidance, FeynmanKac, Guidance, Step, as_guidance, split
from ..guidance.base import SELF
from ..guidance.composed import Parts
from ..guidance.scaled import Scaled
from ..guidance.spec import label
from ..guidance.unchanged import WithUnchanged
from ..support import viewer
from ..support.errors import GuidanceHadNoEffectWarning
from ..support.files import write_text
from .branch_names import branch_names
from .forced_tokens import Follow
from .steps import NOTHING, RANKS, Allowed, explain_step
from .values import ExplainedStep, ExplainedText

LONGEST = 32
"""New tokens where nothing says how many."""

# Options that choose tokens: they mean nothing where the tokens are known.
_CHOOSING = (
    "num_return_sequences", "do_sample", "seed", "stop", "streamer", "stopping_criteria", "logits_processor",
    "speculation", "vocabulary", "batch_size", "stop_strings", *SAMPLING_OPTIONS,
)  # fmt: skip

# What a captioner sees in the branch without a condition.
_UNSEEN = {"blank": "blank image", "text": "no image", "noise": "noised image"}


@dataclass(frozen=True)
class Explanation(ExplainedText):
    """What :func:`explain` returns: an :class:`ExplainedText` that writes itself as a page."""

    def to_html(self) -> str:
        """One self-contained HTML page: the text as a heat map, and the tokens that moved at every step."""
        return viewer.page(self._values())

    def widget(self) -> Any:
        """The page's components as a widget of a notebook (anywidget, the extra ``notebook``)."""
        return viewer.widget(self._values())

    def _values(self) -> dict[str, Any]:
        return {**self.to_dict(), "kind": "text", "label": label(self.guidance), "summary": self.summary}

    def save_html(self, path: str | Path) -> Path:
        """Write :meth:`to_html` to ``path``, whole or not at all; missing folders are made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.to_html())
        return Path(path)


def explain(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    guidance: Any = None,
    *,
    max_new_tokens: int | None = None,
    top: int = 5,
    min_prob: float = 1e-3,
    rank: str = "probability",
    progress: Callable[[ExplainedStep], None] | None = None,
    **options: Any,
) -> Explanation:
    """Continue one prompt and record which tokens guidance moved.

    At every step the distribution under guidance is compared with that of plain decoding (the conditional branch
    alone), before temperature, top-p and penalties, which act on both. A constraint counts as guidance: tokens that it
    rules out have probability 0, and the others share what is left. Under a guidance that writes several texts at
    once (``AWRS`` or ``FeynmanKac`` with particles, ``EAGer``) one of them is drawn, by its weight where there are
    weights, and its tokens are read again.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer; a processor where ``images`` are given.
        prompt: a text, token ids or a chat.
        guidance: any guidance that steers token by token, or a list of them, as for :func:`textguide.generate`; default
            ``CFG(1.5)``. One that changes nothing, such as ``CFG(1.0)``, gives steps at which nothing moved.
        max_new_tokens: longest continuation; default: that of ``generation_config``, else 32.
        top: tokens shown at each end of the ranking.
        min_prob: leave tokens out that have less than this probability with and without guidance.
        rank: ``"probability"`` ranks by ``guided − plain``, the probability that a token won or lost: the tokens that
            make the difference come first. ``"ratio"`` ranks by ``log(guided / plain)``, close to the view of arXiv
            2306.17806, section 4.4: with ``min_prob=0`` its ends are mostly tokens that nobody would write.
        progress: called with every step as soon as it is written; what it raises ends the run.
        **options: as for :func:`textguide.generate`, such as ``system``, ``models``, ``temperature``, ``seed``.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> explanation = textguide.explain(model, tokenizer, "The dragon", CFG(1.5), max_new_tokens=8)
        >>> for move in explanation.steps[0].raised:
        ...     print(f"{move.text!r}: {move.plain:.1%} → {move.guided:.1%}")  # doctest: +SKIP
    """
    chosen = CFG() if guidance is None else as_guidance(guidance)
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top={top!r} must be a whole number of 1 or more")
    if not 0 <= min_prob < 1:
        raise ValueError(f"min_prob={min_prob} must lie in [0, 1)")
    if rank not in RANKS:
        raise ValueError(f"rank={rank!r} must be one of {', '.join(RANKS)}")
    if hasattr(model, "textguide_generate"):
        raise ValueError("model is an engine of vLLM, which shows no distributions; load the model with transformers")
    if options.get("observer") is not None:
        raise ValueError("observer= is how explain watches the run; use textguide.generate for one of your own")
    options = with_config(options, max_new_tokens)
    horizon = options.pop("max_new_tokens", LONGEST) if max_new_tokens is None else max_new_tokens
    # A processor of images and texts brings the tokenizer.
    decoder = tokenizer if options.get("images") is None else getattr(tokenizer, "tokenizer", tokenizer)
    parts = split(chosen)
    inside = parts.branching is not None and parts.branching.view is not None
    run = _beside_unchanged(parts) if inside else parts
    steps: list[ExplainedStep] = []
    allowed: Allowed | None = None

    def observe(view: StepView) -> None:
        nonlocal allowed
        if len(view.samples) != 1:
            raise ValueError(f"prompt has {len(view.samples)} rows; explain one prompt at a time")
        if allowed is None and isinstance(parts.sampling, (AWRS, FeynmanKac)):
            allowed = _allowed(parts.sampling, model, decoder, horizon, options)
        seen = _against_unchanged(view) if inside else view
        scale = _scale(parts.branching, view.index, horizon)
        steps.append(explain_step(seen, decoder, top, min_prob, rank, allowed, scale))
        if progress is not None:
            progress(steps[-1])

    given = {**options, "max_new_tokens": horizon}
    if parts.particles > 1 or parts.restarts:
        out, row = _one_of_several(model, tokenizer, prompt, chosen, given)
        text, effect = out.texts[row], out.effect
        if out.new_tokens[row]:
            effect = _follow(model, tokenizer, prompt, run, out.new_tokens[row], observe, given).effect
    else:
        written = chosen
        if inside:
            written = as_guidance(
                [part for part in (run.branching, *run.reweighting, run.sampling) if part is not None]
            )
        out = generation.generate(model, tokenizer, prompt, written, observer=observe, **given)
        if len(out.texts) != 1:
            raise ValueError(f"prompt has {len(out.texts)} rows; explain one prompt at a time")
        text, effect = out.texts[0], out.effect
    read = _Prompts.of(model, decoder, prompt, parts.branching, out, options)
    note = _note(parts, steps, read)
    return Explanation(read.text, text, chosen, read.names, tuple(steps), effect, note)


def _scale(branching: BranchGuidance | None, index: int, horizon: int) -> float | None:
    """γ at a step, where the guidance has one."""
    if not isinstance(branching, Scaled):
        return None
    return float(branching.scale_at(Step.at(index, horizon)))


def _against_unchanged(view: StepView) -> StepView:
    """A step of :class:`WithUnchanged`, with the unchanged model as the conditional branch."""
    assert view.extra is not None
    return replace(view, cond=view.extra[-1], extra=view.extra[:-1])


def _beside_unchanged(parts: Parts) -> Parts:
    assert parts.branching is not None
    return replace(parts, branching=WithUnchanged(parts.branching))


def _one_of_several(
    model: Any, tokenizer: Any, prompt: Any, guidance: Guidance | None, given: dict[str, Any]
) -> tuple[GenerateResult, int]:
    """A run that writes several texts, and the row of one of them."""
    particles = split(guidance).particles
    out = generation.generate(model, tokenizer, prompt, guidance, **given)
    if len(out.texts) != particles:
        raise ValueError(f"prompt has {len(out.texts) // particles} rows; explain one prompt at a time")
    if out.log_weights is not None and bool(out.finished.any()):  # type: ignore[union-attr]
        return out, out.weighted_sample(given.get("seed"))[0]
    finished = [] if out.finished is None else out.finished.nonzero()[:, 0].tolist()
    return out, finished[0] if finished else 0


def _follow(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    parts: Parts,
    tokens: Sequence[int],
    observe: Any,
    given: dict[str, Any],
) -> GenerateResult:
    """Read ``tokens`` again under the parts of a guidance that are no constraint."""
    options = {name: value for name, value in given.items() if name not in _CHOOSING}
    guidance = as_guidance([part for part in (parts.branching, *parts.reweighting) if part is not None])
    follow = Follow(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)  # the first run has said it
        return generation.generate(
            model,
            tokenizer,
            prompt,
            guidance,
            observer=observe,
            do_sample=False,
            logits_processor=[follow.process],
            stopping_criteria=[follow.stop],
            **options,
        )


def _allowed(
    constraint: AWRS | FeynmanKac, model: Any, tokenizer: Any, horizon: int, options: dict[str, Any]
) -> Allowed | None:
    if getattr(constraint, "constraint", None) is None:
        return None
    ends = options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    config = SimpleNamespace(eos_token_id=ends)
    return Allowed(constraint, model, config, tokenizer, options.get("vocabulary"), horizon)


@dataclass(frozen=True)
class _Prompts:
    """What the branches of the run have read.

    Args:
        text: the user's prompt.
        names: a name for every extra branch.
        same: for each of them, whether it is the conditional branch over again.
        tokens: the length of the user's prompt.
    """

    text: str
    names: tuple[str, ...]
    same: tuple[bool, ...]
    tokens: int

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        prompt: Any,
        branching: BranchGuidance | None,
        out: GenerateResult,
        options: dict[str, Any],
    ) -> _Prompts:
        if options.get("images") is not None:
            start = out.sequences.shape[1] - out.log_probs.shape[1]
            ids = out.sequences[0, :start].tolist()
            kind = options.get("unconditional", "blank")
            names = branch_names(
                branching, tokenizer, _UNSEEN.get(kind if isinstance(kind, str) else "", "other image")
            )
            return cls(tokenizer.decode(ids), names, (False,) * len(names), len(ids))
        prompts = branch_inputs.canonical_prompts(prompt, options.get("system"), tokenizer)
        ids = branch_inputs.encode(prompts[0], tokenizer, "prompt")
        source = empty_source(model.config) if model.config.is_encoder_decoder else None
        names = branch_names(branching, tokenizer, "last token" if source is None else "empty source")
        rows = [] if branching is None else branch_inputs.branch_rows(
            branching, cond=[ids], tokenizer=tokenizer, prompts=prompts, empty_source=source
        )  # fmt: skip
        branches = () if branching is None else branching.branches
        same = tuple(
            read[0] == ids and branch.model == SELF and branch.view is None and branching.view is None  # type: ignore
            for read, branch in zip(rows, branches, strict=True)
        )
        return cls(tokenizer.decode(ids, skip_special_tokens=False), names, same, len(ids))


def _note(parts: Parts, steps: Sequence[ExplainedStep], read: _Prompts) -> str:
    """Why guidance did nothing, or a branch of it; empty where all acted."""
    if parts == Parts():
        return "This guidance changes nothing, so no token moved; raise its scale or its weight."
    if not any(step.guided for step in steps):
        return "Guidance was active at no step: none fell into its window, or above its entropy threshold."
    same = [f'"{name}"' for name, equal in zip(read.names, read.same, strict=True) if equal]
    cause = ""
    if same:
        verb = "the branches {} read" if len(same) > 1 else "the branch {} reads"
        cause = verb.format(", ".join(same)) + " the same tokens as the prompt"
        if read.tokens == 1:
            cause += ", which is one token long; give a negative prompt, or put a begin token in front of the prompt"
        else:
            cause += "; give it a prompt that differs"
    if all(step.kl <= NOTHING for step in steps):
        return f"Guidance had nothing to act on: {cause or 'it gave the same distributions as plain decoding'}."
    return f"{cause[0].upper()}{cause[1:]}." if cause else ""
