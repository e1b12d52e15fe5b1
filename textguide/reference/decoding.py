"""The oracles: every method again as the plainest loop that can be right.

One row at a time, the whole text re-read for every token, no cache, no batch, no padding, float64 arithmetic token by
token. Slow on purpose; tests and benchmarks hold the fast paths against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..guidance import CFG, BranchGuidance, LMGuidance, TokenPrior
from ..guidance.priors import SparsePrior
from ..guidance.text_reweighting import TextReweighting
from ..guidance.views import MaskedHeads, Steered, View

Distribution = list[float]
Reweigh = Callable[[Distribution, Sequence[int], int, float], Distribution]
"""From a distribution, what was written so far, the number of the token and the progress to another distribution."""


def next_log_probs(model: Any, ids: Sequence[int], source: Sequence[int] | None = None) -> Distribution:
    """log P(next token | ids) under the model, as V floats; ``source`` is what an encoder-decoder reads."""
    device = next(model.parameters()).device
    row = torch.tensor([list(ids)], device=device)
    with torch.no_grad():
        if source is None:
            logits = model(input_ids=row, use_cache=False).logits
        else:
            encoder_ids = torch.tensor([list(source)], device=device)
            logits = model(input_ids=encoder_ids, decoder_input_ids=row, use_cache=False).logits
    return normalized(logits[0, -1].double().tolist())


def part_log_probs(model: Any, view: View, ids: Sequence[int]) -> Distribution:
    """log P(next token | ids) if the layers outside ``view`` return their input, and the others add what it adds."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    layers: Any = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    kept = view.layers(count)
    places = view.places(count) if isinstance(view, Steered) else []

    def change(number: int) -> Callable[..., Any]:
        def run(_: Any, args: Any, kwargs: Any, out: Any) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            if number not in kept:
                hidden = args[0] if args else kwargs["hidden_states"]
            if number in places and isinstance(view, Steered):
                vector = view.vector if isinstance(view.vector, tuple) else view.vector.directions[number].tolist()
                hidden = hidden + torch.tensor([view.strength * value for value in vector])
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return run

    hooks = [layer.register_forward_hook(change(n), with_kwargs=True) for n, layer in enumerate(layers)]
    kept_weights = _mask(layers, view, model.config)
    try:
        return next_log_probs(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
        for weight, before in kept_weights:
            weight.data.copy_(before)


def _mask(layers: Any, view: View, config: Any) -> list[tuple[Any, torch.Tensor]]:
    """Set what the output projections read from masked heads to 0; the weights with what they were."""
    if not isinstance(view, MaskedHeads):
        return []
    if view.heads is None:
        raise ValueError("the oracle masks heads that are named")
    before: list[tuple[Any, torch.Tensor]] = []
    names = ("o_proj", "out_proj", "dense", "c_proj")
    for layer, head in view.heads:
        attention = next(
            m for n, m in layers[layer].named_modules() if n in ("self_attn", "attention", "attn", "self_attention")
        )
        weight = next(getattr(attention, name).weight for name in names if hasattr(attention, name))
        before.insert(0, (weight, weight.data.clone()))
        # Conv1D of GPT-2 keeps its weights the other way round.
        read = weight.data if type(attention).__name__.startswith("GPT2") else weight.data.T
        size = read.shape[0] // config.get_text_config().num_attention_heads
        read[head * size : (head + 1) * size] = 0
    return before


def normalized(scores: Sequence[float]) -> Distribution:
    """``scores`` minus their log-sum-exp."""
    top = max(scores)
    if top == -math.inf:
        return list(scores)
    total = top + math.log(sum(math.exp(score - top) for score in scores))
    return [score - total for score in scores]


def schedule_multiplier(name: str, s: float) -> float:
    """m(s) of a schedule, written out from its definition."""
    kind, _, parameter = name.partition(":")
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 2 * s
    if kind == "linear-decreasing":
        return 2 - 2 * s
    if kind == "cosine":
        return 1 - math.cos(math.pi * s)
    if kind == "cosine-decreasing":
        return 1 + math.cos(math.pi * s)
    if kind == "sine":
        return math.pi / 2 * math.sin(math.pi * s)
    if kind == "v-shape":
        return 2 * (1 - 2 * s) if s < 0.5 else 2 * (2 * s - 1)
    if kind == "lambda-shape":
        return 4 * s if s < 0.5 else 4 * (1 - s)
    if kind == "clamp-linear":
        return max(2 * s, float(parameter or 1))
    if kind == "clamp-cosine":
        return max(1 - math.cos(math.pi * s), float(parameter or 1))
    if kind == "powered-cosine":
        power = float(parameter or 2)
        steps = 20000
        area = sum((1 - math.cos(math.pi * ((i + 0.5) / steps) ** power)) / 2 for i in range(steps)) / steps
        return (1 - math.cos(math.pi * s**power)) / 2 / area
    raise KeyError(name)


def cfg_scale(guidance: CFG, s: float) -> float:
    """γ(s): schedule, bounds and window."""
    if s < guidance.start or s > guidance.stop:
        return 1.0
    scale = 1 + (guidance.scale - 1) * schedule_multiplier(guidance.schedule, s)
    if guidance.min_scale is not None and scale < guidance.min_scale:
        scale = guidance.min_scale
    if guidance.max_scale is not None and scale > guidance.max_scale:
        scale = guidance.max_scale
    return scale


def cfg(guidance: CFG, distributions: Sequence[Distribution], s: float) -> Distribution:
    """Equation 7 of arXiv 2306.17806, token by token."""
    scale = cfg_scale(guidance, s)
    cond, uncond = distributions
    mixed = []
    for lc, lu in zip(cond, uncond, strict=True):
        if lc == -math.inf or lu == -math.inf:
            mixed.append(lc)
        else:
            mixed.append(lu + scale * (lc - lu))
    return normalized(mixed) if guidance.renormalize else mixed


def reweighed(
    guidances: Sequence[TextReweighting],
    distribution: Distribution,
    prompt: Sequence[int],
    written: Sequence[int],
    index: int,
    s: float,
    *,
    text_of: Callable[[Sequence[int]], str],
    score: Callable[[Any, str], float],
) -> Distribution:
    """``p(x) · exp(weight · score(text)) / Z``, candidate by candidate; weights of several guidances add up. With
    ``log p(c|text)`` as the score it is arXiv 2205.07276, with a reward arXiv 2402.01694.

    Args:
        text_of: the text of token ids.
        score: the guidance's score of a text.
    """
    spread = -sum(math.exp(p) * p for p in distribution if p > -math.inf)
    mixed, acts = list(distribution), False
    for guidance in guidances:
        weight = guidance.weight * schedule_multiplier(guidance.schedule, s)
        inside = guidance.start <= s <= guidance.stop
        if weight == 0 or not inside or index % guidance.every or spread < guidance.entropy_threshold:
            continue
        acts = True
        order = sorted(range(len(distribution)), key=lambda token: -distribution[token])
        candidates = set(order if guidance.top_k is None else order[: guidance.top_k])
        read = [*prompt, *written] if guidance.include_prompt else [*written]
        for token in range(len(distribution)):
            if token not in candidates:
                mixed[token] = -math.inf
            elif distribution[token] > -math.inf:
                mixed[token] += weight * score(guidance, text_of([*read, token]))
    return normalized(mixed) if acts else distribution


def language_model(guidance: LMGuidance, distributions: Sequence[Distribution], s: float) -> Distribution:
    """Language-model guidance of arXiv 2307.16686, token by token."""
    cond, uncond, text = distributions
    beta = guidance.alpha / 2 if guidance.beta is None else guidance.beta
    mixed = []
    for lc, lu, lt in zip(cond, uncond, text, strict=True):
        if lc == -math.inf or lt == -math.inf:
            mixed.append(-math.inf)
        else:
            mixed.append(lt + guidance.alpha * lc - (0.0 if lu == -math.inf else beta * lu))
    return normalized(mixed)


def prior_of(guidance: TokenPrior, size: int) -> Distribution:
    """The log-probabilities of a prior whose tokens are named: all others share what is left equally."""
    assert isinstance(guidance.prior, SparsePrior)
    named = dict(guidance.prior.pairs)
    rest = 1.0 - sum(named.values())
    return [math.log(named.get(token, rest / (size - len(named)))) for token in range(size)]


def token_prior(guidance: TokenPrior, distributions: Sequence[Distribution], s: float) -> Distribution:
    """``o + γ (lc − o)``, token by token; ``o`` is the prior, or ``share · m + (1 − share) · lu``."""
    scale = cfg_scale(guidance, s)  # type: ignore[arg-type]
    prior = prior_of(guidance, len(distributions[0]))
    mixed = []
    for token, lc in enumerate(distributions[0]):
        other = prior[token]
        if len(distributions) > 1:
            lu = distributions[1][token]
            other = -math.inf if lu == -math.inf else guidance.share * other + (1 - guidance.share) * lu
        if lc == -math.inf or other == -math.inf:
            mixed.append(lc)
        else:
            mixed.append(other + scale * (lc - other))
    return normalized(mixed) if guidance.renormalize else mixed


COMBINE: dict[str, Callable[[Any, Sequence[Distribution], float], Distribution]] = {
    "cfg": cfg,
    "lm": language_model,
    "token-prior": token_prior,
}
"""The oracle of every registered guidance, by name."""


def guided_distribution(
    guidance: BranchGuidance | None,
    distributions: Sequence[Distribution],
    s: float,
    likelihoods: Sequence[float] | None = None,
    text: Any = None,
) -> Distribution:
    """What ``guidance`` makes of the distributions of its branches at progress ``s``.

    Args:
        likelihoods: log-probability that each branch has given to the text so far, for guidances that ask for it.
        text: the text so far, or its tokens, for guidances that ask a classifier about it.
    """
    if guidance is None:
        return distributions[0]
    rule: Any = COMBINE[guidance.name]
    known = [
        *([likelihoods] if guidance.reads_likelihoods else []),
        *([text] if guidance.reads_class_log_probs else []),
    ]
    found: Distribution = rule(guidance, distributions, s, *known)
    return found


def generate(
    model: Any,
    prompt: Sequence[int],
    guidance: BranchGuidance | None,
    negatives: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    source: Sequence[int] | None = None,
    end: int | None = None,
    models: dict[str, Any] | None = None,
    reweigh: Reweigh | None = None,
    text_of: Callable[[Sequence[int]], Any] = list,
) -> tuple[list[int], list[Distribution]]:
    """Greedy decoding of one row: the new tokens and the distribution of each step.

    Args:
        prompt: token ids; for an encoder-decoder what its decoder starts with.
        negatives: what each extra branch reads (for an encoder-decoder its source).
        source: what the conditional branch of an encoder-decoder reads.
        end: stop after this token.
        models: models of branches by name.
        reweigh: what becomes of the combined distribution.
        text_of: the text of token ids, for guidances that ask a classifier about it; default: the ids.
    """
    written: list[int] = []
    distributions = []
    likelihoods = [0.0] * (1 + len(negatives))
    for index in range(new_tokens):
        progress = index / (new_tokens - 1) if new_tokens > 1 else 0.0
        branches = _branches(model, prompt, written, guidance, negatives, source, models)
        distribution = guided_distribution(guidance, branches, progress, likelihoods, text_of([*prompt, *written]))
        if reweigh is not None:
            distribution = reweigh(distribution, written, index, progress)
        distributions.append(distribution)
        written.append(max(range(len(distribution)), key=distribution.__getitem__))
        likelihoods = [total + branch[written[-1]] for total, branch in zip(likelihoods, branches, strict=False)]
        if written[-1] == end:
            break
    return written, distributions


def score(
    model: Any,
    prompt: Sequence[int],
    continuation: Sequence[int],
    guidance: BranchGuidance | None,
    negatives: Sequence[Sequence[int]],
    *,
    source: Sequence[int] | None = None,
    models: dict[str, Any] | None = None,
) -> tuple[list[float], bool]:
    """Guided log-probability of each token of ``continuation``, and whether each is the most likely one."""
    total, greedy = [], True
    likelihoods = [0.0] * (1 + len(negatives))
    for index, token in enumerate(continuation):
        progress = index / (len(continuation) - 1) if len(continuation) > 1 else 0.0
        branches = _branches(model, prompt, continuation[:index], guidance, negatives, source, models)
        distribution = guided_distribution(guidance, branches, progress, likelihoods, [*prompt, *continuation[:index]])
        likelihoods = [sum_ + branch[token] for sum_, branch in zip(likelihoods, branches, strict=False)]
        total.append(distribution[token])
        greedy = greedy and distribution[token] == max(distribution)
    return total, greedy


def _branches(
    model: Any,
    prompt: Sequence[int],
    written: Sequence[int],
    guidance: BranchGuidance | None,
    negatives: Sequence[Sequence[int]],
    source: Sequence[int] | None,
    models: dict[str, Any] | None,
) -> list[Distribution]:
    """The distributions of all branches, the conditional one first."""
    if guidance is None:
        return [next_log_probs(model, [*prompt, *written], source)]
    if guidance.view is None:
        distributions = [next_log_probs(model, [*prompt, *written], source)]
    else:
        distributions = [part_log_probs(model, guidance.view, [*prompt, *written])]
    for branch, negative in zip(guidance.branches, negatives, strict=True):
        owner = (models or {}).get(branch.model, model)
        if branch.view is not None:
            distributions.append(part_log_probs(owner, branch.view, [*negative, *written]))
        elif source is None:
            distributions.append(next_log_probs(owner, [*negative, *written]))
        else:
            distributions.append(next_log_probs(owner, [*prompt, *written], negative))
    return distributions
