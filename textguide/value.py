"""Train value heads on a model's own rollouts (controlled decoding, arXiv 2310.17022; FUDGE, arXiv 2104.05218)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .classifiers import ValueHead, resolve
from .classifiers.causal_head import Head
from .classifiers.rewards import resolve_reward
from .classifiers.value_head import LINEAR, PROBABILITY, load_value
from .engine.branch_inputs import canonical_prompts, encode
from .generation import generate
from .support.checks import whole_number

__all__ = ["Rollouts", "ValueHead", "load", "rollouts", "train"]

load = load_value


@dataclass(frozen=True)
class Rollouts:
    """Texts that a model wrote, with their rewards.

    Args:
        prompts: token ids of the prompt of each of the N texts.
        tokens: token ids that were written after each prompt, at least one.
        rewards: the reward of each finished text, (N,).
        kind: ``linear`` for rewards, ``probability`` if the rewards are probabilities of an attribute.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    rewards: Tensor
    kind: str = LINEAR

    def pick(self, numbers: Sequence[int]) -> Rollouts:
        """The texts with these ``numbers``."""
        return Rollouts(
            tuple(self.prompts[number] for number in numbers),
            tuple(self.tokens[number] for number in numbers),
            self.rewards[torch.tensor(list(numbers), dtype=torch.long)],
            self.kind,
        )


def rollouts(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    *,
    reward: Any = None,
    classifier: Any = None,
    target: str | int | None = None,
    number: int = 4,
    max_new_tokens: int = 64,
    include_prompt: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Rollouts:
    """Sample texts from a model at temperature 1, and compute their rewards.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`textguide.generate`.
        reward: a reward, as for :class:`textguide.Reward`.
        classifier: a classifier instead of a reward, as for :class:`textguide.CAIF`; the rewards are then
            p(``target`` | text).
        target: the class, by name or number.
        number: number of texts per prompt. Default: 4.
        max_new_tokens: the number of tokens after which a text is cut off. Default: 64.
        include_prompt: whether the reward is that of the prompt with the answer, or of the answer only.
        batch_size: number of texts that are written together. Default: 16.
        seed: seed of the first batch; the others count up.
        progress: called with the number of texts just written.
        **options: options of transformers' ``generate``.

    Returns:
        The texts and their rewards; empty texts are left out.

    Raises:
        ValueError: neither ``reward`` nor ``classifier`` is given, or both are; a class or number cannot work.
    """
    rate = _rating(model, tokenizer, reward, classifier, target)
    number = whole_number("number", number, 1)
    canonical = canonical_prompts(prompts, None, tokenizer)
    ids = [tuple(encode(prompt, tokenizer, f"prompts[{n}]")) for n, prompt in enumerate(canonical)]
    repeated = [row for row in ids for _ in range(number)]
    written: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    texts: list[str] = []
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    for count, start in enumerate(range(0, len(repeated), batch_size)):
        rows = repeated[start : start + batch_size]
        out = generate(
            model,
            tokenizer,
            [list(row) for row in rows],
            None,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            seed=seed + count,
            **sampling,
        )
        for row, tokens in zip(rows, out.new_tokens, strict=True):
            if tokens:
                written.append((row, tuple(tokens)))
                scored = [*row, *tokens] if include_prompt else tokens
                texts.append(tokenizer.decode(list(scored), skip_special_tokens=True))
        if progress is not None:
            progress(len(rows))
    return Rollouts(
        tuple(row for row, _ in written),
        tuple(tokens for _, tokens in written),
        torch.cat([rate(texts[start : start + 64]) for start in range(0, len(texts), 64)]),
        LINEAR if classifier is None else PROBABILITY,
    )


def _rating(
    model: Any, tokenizer: Any, reward: Any, classifier: Any, target: str | int | None
) -> Callable[[Sequence[str]], Tensor]:
    """A function from texts to their rewards, (N,).

    Raises:
        ValueError: see :func:`rollouts`.
    """
    if (reward is None) == (classifier is None) or (classifier is None) != (target is None):
        raise ValueError("pass reward=, or classifier= with its target=, to define the reward of a text")
    scorer: Any
    if classifier is None:
        scorer = resolve_reward(reward, model, tokenizer)
        return lambda texts: scorer.values(texts)[:, 0]
    scorer = resolve(classifier, model, tokenizer)
    column = scorer.index(target)
    return lambda texts: scorer.values(texts)[:, column].exp()


def train(
    model: Any,
    tokenizer: Any,
    found: Rollouts,
    *,
    model_name: str,
    strength: float = 0.1,
    batch_size: int = 16,
    held_out: float = 0.1,
    progress: Callable[[int], Any] | None = None,
) -> tuple[ValueHead, dict[str, Any]]:
    """Fit a value head that predicts the reward of a text from each of its prefixes.

    Every prefix from the first written token on is an example. Rewards are fitted by least squares
    (CD-FUDGE), probabilities by logistic regression on soft labels (FUDGE), both on standardised hidden states with an
    L2 penalty.

    Args:
        model: the model that wrote the rollouts.
        tokenizer: its tokenizer.
        found: the rollouts.
        model_name: the name by which :func:`textguide.load` finds the model when the head is loaded.
        strength: inverse of the penalty; larger values fit the rollouts more closely. Default: 0.1.
        batch_size: number of texts read together. Default: 16.
        held_out: share of the texts, taken from the end, that are not used for training but for the report. Default:
            0.1.
        progress: called with the number of texts just read.

    Returns:
        The head, and a report: ``texts``, ``prefixes``, ``mean`` reward, and ``explained`` at the ``first``, ``middle``
        and ``last`` prefix of the held-out texts: the share of the variance of rewards that the value predicts. It is
        above 0 if the prediction is better than the mean. None if no texts were held out.

    Raises:
        ValueError: an argument has a value that cannot work, or all texts have the same reward.
    """
    if not strength > 0:
        raise ValueError(f"strength={strength!r} must be above 0")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out!r} must be in [0, 1)")
    if len(found.tokens) < 2 or float(found.rewards.std()) == 0.0:
        raise ValueError(
            f"{len(found.tokens)} rollouts with the same reward teach nothing; sample more of them, or use another "
            "reward"
        )
    size = model.base_model.config.hidden_size
    reader = ValueHead(model, tokenizer, Head(torch.zeros(size, 1), torch.zeros(1)), found.kind, model_name=model_name)
    states: list[Tensor] = []
    for start in range(0, len(found.tokens), batch_size):
        states += _states(reader, found, range(start, min(start + batch_size, len(found.tokens))))
        if progress is not None:
            progress(min(batch_size, len(found.tokens) - start))
    least = len(states) - int(held_out * len(states))
    vectors = torch.cat(states[:least]).double()
    goals = torch.cat([found.rewards[n].double().expand(len(states[n])) for n in range(least)])
    weights, bias = fit(vectors, goals, found.kind, strength)
    head = ValueHead(model, tokenizer, Head(weights.float(), bias.float()), found.kind, model_name=model_name)
    report: dict[str, Any] = {
        "texts": len(states),
        "prefixes": len(goals),
        "mean": float(found.rewards.mean()),
        "explained": None,
    }
    if least < len(states):
        report["explained"] = _explained(head, states[least:], found.rewards[least:])
    return head, report


def fit(vectors: Tensor, goals: Tensor, kind: str, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (H, 1) and bias (1,) of a regression of ``goals`` (N,) on ``vectors`` (N, H), all float64.

    Minimises ``Σ loss + ‖w‖² / (2 · strength)`` on standardised vectors, and folds the scaling into the weights. The
    loss is half the squared error, or for probabilities the cross-entropy.
    """
    mean = vectors.mean(0)
    deviation = vectors.std(0).clamp(min=1e-6)
    scaled = (vectors - mean) / deviation
    size = scaled.shape[1]
    if kind == LINEAR:
        center = goals.mean()
        gram = scaled.T @ scaled + torch.eye(size, dtype=torch.float64) / strength
        solved = torch.linalg.solve(gram, scaled.T @ (goals - center))
        bias = center
    else:
        parameters = torch.zeros(size + 1, dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            logits = scaled @ parameters[:-1] + parameters[-1]
            errors = torch.nn.functional.binary_cross_entropy_with_logits(logits, goals, reduction="sum")
            total = (errors + parameters[:-1].square().sum() / (2 * strength)) / len(goals)
            total.backward()
            return total

        with torch.enable_grad():
            search.step(loss)
        solved = parameters[:-1].detach()
        bias = parameters[-1].detach()
    weights = solved / deviation
    return weights[:, None], (bias - mean @ weights).reshape(1)


@torch.inference_mode()
def _states(reader: ValueHead, texts: Rollouts, numbers: Sequence[int]) -> list[Tensor]:
    """Hidden states (tokens, H) of the written tokens of each text, on the CPU."""
    rows = [reader.truncated([*texts.prompts[number], *texts.tokens[number]]) for number in numbers]
    hidden = reader.states(rows).float().cpu()
    states = []
    for number, row, row_states in zip(numbers, rows, hidden, strict=True):
        length = min(len(texts.tokens[number]), len(row))
        states.append(row_states[-length:].clone())
    return states


def _explained(head: ValueHead, states: Sequence[Tensor], rewards: Tensor) -> dict[str, float]:
    """The share of the variance of ``rewards`` that the head predicts at three positions of the texts."""
    spread = float((rewards - rewards.mean()).square().sum())
    explained = {}
    for name, position in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        picked = torch.stack([text[round(position * (len(text) - 1))] for text in states])
        values = head.outputs(picked)[:, 0]
        values = values if head.kind == LINEAR else values.exp()
        explained[name] = 1.0 - float((values - rewards).square().sum()) / spread if spread else 0.0
    return explained
