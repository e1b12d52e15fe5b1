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
from ..engine.branch_inputs import empty_source
from ..engine.loop import StepView
from ..engine.request import SAMPLING_OPTIONS, with_config
from ..engine.results import GenerateResult
from ..guidance import AWRS, CFG, BranchGuidance, FeynmanKac, Guidance, Step, as_guidance, split
from ..guidance.base import SELF
from ..guidance.composed import Parts
from ..guidance.scaled import Scaled
from ..guidance.spec import label
from ..guidance.unchanged import WithUnchanged
from ..support import viewer
from ..support.checks import check_model_and_tokenizer, number_from, one_of, whole_number
from ..support.errors import GuidanceHadNoEffectWarning
from ..support.files import writable_file, write_text
from .branch_names import branch_names
from .forced_tokens import ForcedTokens
from .steps import NOTHING, RANKS, Allowed, Ranking, explain_step
from .values import ExplainedStep, ExplainedText

LONGEST = 32
"""The number of new tokens if neither the caller nor ``generation_config`` specifies one."""

# Options that choose tokens; they have no meaning if the tokens are known.
_CHOICE_OPTIONS = {
    "num_return_sequences",
    "do_sample",
    "seed",
    "stop",
    "streamer",
    "stopping_criteria",
    "logits_processor",
    "speculation",
    "vocabulary",
    "batch_size",
    "stop_strings",
    *SAMPLING_OPTIONS,
}

# What a captioner sees in the branch without a condition.
_UNCONDITIONAL_IMAGES = {"blank": "blank image", "text": "no image", "noise": "noised image"}


@dataclass(frozen=True)
class Explanation(ExplainedText):
    """What :func:`explain` returns: an :class:`ExplainedText` that can be written as a page."""

    def to_html(self) -> str:
        """One self-contained HTML page: the text as a heat map, and the tokens that moved at every step."""
        return viewer.page(self._values())

    def widget(self) -> Any:
        """The components of the page as a widget for notebooks (anywidget, the extra ``notebook``)."""
        return viewer.widget(self._values())

    def _values(self) -> dict[str, Any]:
        return {**self.to_dict(), "kind": "text", "label": label(self.guidance), "summary": self.summary}

    def save_html(self, path: str | Path) -> Path:
        """Write :meth:`to_html` to ``path`` atomically; missing folders are created.

        Raises:
            OSError: ``path`` is a folder, or cannot be written; the message names it.
        """
        writable_file(path, "path").parent.mkdir(parents=True, exist_ok=True)
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

    At every step the distribution under guidance is compared with that of plain decoding (the conditional branch only),
    before temperature, top-p and penalties, which act on both. A constraint counts as guidance: tokens that it forbids
    have probability 0, and the others share the rest. If the guidance writes several texts together (``AWRS`` or
    ``FeynmanKac`` with particles, ``EAGer``), one of them is drawn, by its weight if there are weights, and its tokens
    are read again.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer; a processor if ``images`` are passed.
        prompt: a text, token ids or a chat.
        guidance: any guidance that steers token by token, or a list of them, as for :func:`textguide.generate`; default
            ``CFG(1.5)``. With one that changes nothing, such as ``CFG(1.0)``, no token moves.
        max_new_tokens: the largest number of new tokens; default: that of ``generation_config``, else 32.
        top: number of tokens at each end of the ranking.
        min_prob: leave out tokens whose probability is lower than this both with and without guidance.
        rank: ``"probability"`` ranks by ``guided − plain``, the probability that a token won or lost: the tokens that
            make the difference come first. ``"ratio"`` ranks by ``log(guided / plain)``, similar to arXiv 2306.17806,
            section 4.4: with ``min_prob=0`` its ends are mostly tokens that would never be generated.
        progress: called with every step as soon as it is finished; an exception that it raises ends the run.
        **options: as for :func:`textguide.generate`, such as ``system``, ``models``, ``temperature``, ``seed``.

    Returns:
        The text with, for every step, the tokens that guidance raised and lowered most; KL divergences are in nats.

    Raises:
        ValueError: an argument has an invalid value; the message names it.

    Example:
        >>> explanation = textguide.explain(model, tokenizer, "The dragon", CFG(1.5), max_new_tokens=8)
        >>> for move in explanation.steps[0].raised:
        ...     print(f"{move.text!r}: {move.plain:.1%} → {move.guided:.1%}")  # doctest: +SKIP
    """
    guidance = CFG() if guidance is None else as_guidance(guidance)
    ranking = Ranking(whole_number("top", top, 1), number_from("min_prob", min_prob, 0), one_of("rank", rank, RANKS))
    if min_prob >= 1:
        raise ValueError(f"min_prob={min_prob} must be below 1; 1 leaves out every token")
    if hasattr(model, "textguide_generate"):
        raise ValueError(
            "model is a vLLM engine, which does not return distributions; load the model with transformers"
        )
    if options.get("observer") is not None:
        raise ValueError("observer= is used by explain; pass progress=, or call textguide.generate with your observer")
    if tokenizer is None:
        check_model_and_tokenizer(model, tokenizer)
    options = with_config(options, max_new_tokens)
    horizon = options.pop("max_new_tokens", LONGEST) if max_new_tokens is None else max_new_tokens
    # The processor of a captioner contains the tokenizer.
    decoder = tokenizer if options.get("images") is None else getattr(tokenizer, "tokenizer", tokenizer)
    parts = split(guidance)
    observer = _Observer(model, decoder, parts, horizon, ranking, progress, options)
    options_of_run = {**options, "max_new_tokens": horizon}
    if parts.particles > 1 or parts.restarts:
        out, row = _one_of_several(model, tokenizer, prompt, guidance, options_of_run)
        effect = out.effect
        if out.new_tokens[row]:
            effect = _read_again(model, tokenizer, prompt, out.new_tokens[row], observer, options_of_run).effect
    else:
        observed = observer.observed_parts
        if observer.adds_unchanged:
            run_guidance = _together(observed.branching, *observed.reweighting, observed.sampling)
        else:
            run_guidance = guidance
        out = generation.generate(model, tokenizer, prompt, run_guidance, observer=observer, **options_of_run)
        _check_one_prompt(len(out.texts))
        row = 0
        effect = out.effect
    read = _Prompts.of(model, decoder, prompt, parts.branching, out, options)
    note = _note(parts, observer.steps, read)
    return Explanation(read.text, out.texts[row], guidance, read.names, tuple(observer.steps), effect, note)


# -- watching a run ------------------------------------------------------------------------------------------------


class _Observer:
    """An observer of a run that turns its steps into explained ones.

    Args:
        model: the model that is decoded.
        decoder: decodes tokens.
        parts: the guidance.
        horizon: the limit of new tokens.
        ranking: which tokens are shown.
        progress: called with every step.
        options: of the run.
    """

    def __init__(
        self,
        model: Any,
        decoder: Any,
        parts: Parts,
        horizon: int,
        ranking: Ranking,
        progress: Callable[[ExplainedStep], None] | None,
        options: dict[str, Any],
    ) -> None:
        self.steps: list[ExplainedStep] = []
        # A guidance that changes the conditional pass itself needs a pass of the unchanged model to compare with.
        self.adds_unchanged = parts.branching is not None and parts.branching.view is not None
        self.observed_parts = parts
        if self.adds_unchanged:
            assert parts.branching is not None
            self.observed_parts = replace(parts, branching=WithUnchanged(parts.branching))
        self._model = model
        self._decoder = decoder
        self._parts = parts
        self._horizon = horizon
        self._ranking = ranking
        self._progress = progress
        self._options = options
        self._allowed: Allowed | None = None

    def __call__(self, view: StepView) -> None:
        _check_one_prompt(len(view.samples))
        if not self.steps:
            self._allowed = self._allowed_tokens()
        if self.adds_unchanged:
            # The last branch is the unchanged model: see WithUnchanged.
            assert view.extra is not None
            view = replace(view, cond=view.extra[-1], extra=view.extra[:-1])
        scale: float | None = None
        if isinstance(self._parts.branching, Scaled):
            scale = float(self._parts.branching.scale_at(Step.at(view.index, self._horizon)))
        self.steps.append(explain_step(view, self._decoder, self._ranking, self._allowed, scale))
        if self._progress is not None:
            self._progress(self.steps[-1])

    def _allowed_tokens(self) -> Allowed | None:
        """The constraint of the run, which restricts the tokens at each step."""
        sampling = self._parts.sampling
        if not isinstance(sampling, (AWRS, FeynmanKac)) or getattr(sampling, "constraint", None) is None:
            return None
        ends = self._options.get("eos_token_id", getattr(self._model.generation_config, "eos_token_id", None))
        config = SimpleNamespace(eos_token_id=ends)
        vocabulary = self._options.get("vocabulary")
        return Allowed(sampling, self._model, config, self._decoder, vocabulary, self._horizon)


def _check_one_prompt(count: int) -> None:
    if count != 1:
        raise ValueError(f"prompt has {count} rows; explain one prompt at a time")


def _together(*parts: Guidance | None) -> Guidance | None:
    return as_guidance([part for part in parts if part is not None])


def _one_of_several(
    model: Any, tokenizer: Any, prompt: Any, guidance: Guidance | None, options: dict[str, Any]
) -> tuple[GenerateResult, int]:
    """A run that writes several texts together, and the row of one of them."""
    particles = split(guidance).particles
    out = generation.generate(model, tokenizer, prompt, guidance, **options)
    _check_one_prompt(len(out.texts) // particles)
    if out.finished is None:
        return out, 0
    finished = out.finished.nonzero()[:, 0].tolist()
    if out.log_weights is not None and finished:
        return out, out.weighted_sample(options.get("seed"))[0]
    return out, finished[0] if finished else 0


def _read_again(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    tokens: Sequence[int],
    observer: _Observer,
    options: dict[str, Any],
) -> GenerateResult:
    """Read ``tokens`` again under all parts of the guidance except sampling."""
    parts = observer.observed_parts
    forced = ForcedTokens(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuidanceHadNoEffectWarning)  # the first run has warned already
        return generation.generate(
            model,
            tokenizer,
            prompt,
            _together(parts.branching, *parts.reweighting),
            observer=observer,
            do_sample=False,
            logits_processor=[forced.process],
            stopping_criteria=[forced.stop],
            **{name: value for name, value in options.items() if name not in _CHOICE_OPTIONS},
        )


# -- describing it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prompts:
    """What the branches of the run have read.

    Args:
        text: the user's prompt.
        names: a name for every extra branch.
        same: whether each of them reads the same tokens as the conditional branch, with the same model.
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
            return cls._of_images(tokenizer, branching, out, options.get("unconditional", "blank"))
        prompts = branch_inputs.canonical_prompts(prompt, options.get("system"), tokenizer)
        ids = branch_inputs.encode(prompts[0], tokenizer, "prompt")
        source = empty_source(model.config) if model.config.is_encoder_decoder else None
        names = branch_names(branching, tokenizer, "last token" if source is None else "empty source")
        same: list[bool] = []
        if branching is not None:
            rows = branch_inputs.branch_rows(
                branching, cond=[ids], tokenizer=tokenizer, prompts=prompts, empty_source=source
            )
            for read, branch in zip(rows, branching.branches, strict=True):
                is_own_model = branch.model == SELF and branch.view is None and branching.view is None
                same.append(read[0] == ids and is_own_model)
        return cls(tokenizer.decode(ids, skip_special_tokens=False), names, tuple(same), len(ids))

    @classmethod
    def _of_images(
        cls, tokenizer: Any, branching: BranchGuidance | None, out: GenerateResult, unconditional: Any
    ) -> _Prompts:
        start = out.sequences.shape[1] - out.log_probs.shape[1]
        ids = out.sequences[0, :start].tolist()
        image = _UNCONDITIONAL_IMAGES.get(unconditional if isinstance(unconditional, str) else "", "other image")
        names = branch_names(branching, tokenizer, image)
        return cls(tokenizer.decode(ids), names, (False,) * len(names), len(ids))


def _note(parts: Parts, steps: Sequence[ExplainedStep], read: _Prompts) -> str:
    """Why guidance, or one of its branches, did nothing; empty if all of them acted."""
    if parts == Parts():
        return "This guidance changes nothing, so no token moved; raise its scale or its weight."
    if not any(step.guided for step in steps):
        return "Guidance was not active at any step: all were outside its window, or below its entropy threshold."
    same = [f'"{name}"' for name, equal in zip(read.names, read.same, strict=True) if equal]
    cause = ""
    if same:
        subject = f"the branches {', '.join(same)} read" if len(same) > 1 else f"the branch {same[0]} reads"
        cause = f"{subject} the same tokens as the prompt"
        if read.tokens == 1:
            cause += ", which is one token long; pass a negative prompt, or add a begin token before the prompt"
        else:
            cause += "; pass a prompt that differs"
    if all(step.kl <= NOTHING for step in steps):
        return f"Guidance had no effect: {cause or 'its distributions are those of plain decoding'}."
    return f"{cause[0].upper()}{cause[1:]}." if cause else ""
