"""Value heads from a model's own rollouts (controlled decoding, arXiv 2310.17022; FUDGE, arXiv 2104.05218)."""

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

__all__ = ["Rollouts", "ValueHead", "load", "rollouts", "train"]

load = load_value


@dataclass(frozen=True)
class Rollouts:
    """Texts that a model wrote, and what each is worth.

    Args:
        prompts: token ids of the prompt of each text, N of them.
        tokens: token ids that were written behind each, at least one.
        rewards: what each finished text got, (N,).
        kind: ``linear`` for rewards, ``probability`` where they are probabilities of an attribute.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    rewards: Tensor
    kind: str = LINEAR

    def pick(self, places: Sequence[int]) -> Rollouts:
        """Those at ``places``."""
        return Rollouts(
            tuple(self.prompts[i] for i in places), tuple(self.tokens[i] for i in places),
            self.rewards[torch.tensor(list(places), dtype=torch.long)], self.kind,
        )  # fmt: skip


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
    """Let a model write from prompts, at temperature 1, and ask what the texts are worth.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        prompts: as for :func:`textguide.generate`.
        reward: what :class:`textguide.Reward` takes: the texts are worth what it gives.
        classifier: in place of it, what :class:`textguide.CAIF` takes; they are worth p(``target`` | text).
        target: the class, by name or number.
        number: texts a prompt.
        max_new_tokens: where a text is cut off that does not end before.
        include_prompt: whether prompt and answer are judged, or the answer alone.
        batch_size: texts that are written at once.
        seed: of the first batch; the others count on.
        progress: called with the number of texts just written.
        **options: of transformers' ``generate``.

    Raises:
        ValueError: neither ``reward`` nor ``classifier`` is given, or both are; a class or number cannot work.
    """
    if (reward is None) == (classifier is None) or (classifier is None) != (target is None):
        raise ValueError("give reward=, or classifier= with its target=, to say what a text is worth")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"number={number!r} must be a whole number of 1 or more")
    asked = canonical_prompts(prompts, None, tokenizer)
    ids = [tuple(encode(prompt, tokenizer, f"prompts[{n}]")) for n, prompt in enumerate(asked)]
    judge: Any = (
        resolve_reward(reward, model, tokenizer) if classifier is None else resolve(classifier, model, tokenizer)
    )
    column = judge.index(target) if target is not None else 0
    repeated = [row for row in ids for _ in range(number)]
    kept: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    texts: list[str] = []
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    for count, start in enumerate(range(0, len(repeated), batch_size)):
        rows = repeated[start : start + batch_size]
        out = generate(
            model, tokenizer, [list(row) for row in rows], None, max_new_tokens=max_new_tokens, do_sample=True,
            seed=seed + count, **plain,
        )  # fmt: skip
        for row, tokens in zip(rows, out.new_tokens, strict=True):
            if tokens:
                kept.append((row, tuple(tokens)))
                read = [*row, *tokens] if include_prompt else tokens
                texts.append(tokenizer.decode(list(read), skip_special_tokens=True))
        if progress is not None:
            progress(len(rows))
    values = torch.cat([judge.values(texts[i : i + 64])[:, column] for i in range(0, len(texts), 64)])
    worth = values.exp() if classifier is not None else values
    return Rollouts(
        tuple(row for row, _ in kept), tuple(tokens for _, tokens in kept), worth,
        LINEAR if classifier is None else PROBABILITY,
    )  # fmt: skip


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
    """Fit a head: every prefix of a text, from its first written token on, is an example of what the text got.

    Rewards are fitted by least squares (CD-FUDGE), probabilities by logistic regression on soft labels (FUDGE), both on
    standardised hidden states with an L2 penalty.

    Args:
        model: the model that wrote the rollouts.
        tokenizer: its tokenizer.
        found: the rollouts.
        model_name: what :func:`textguide.load` finds the model by when the head is loaded.
        strength: inverse of the penalty; larger fits the rollouts more closely.
        batch_size: texts read at once.
        held_out: share of the texts, the last ones, that the report is about.
        progress: called with the number of texts just read.

    Returns:
        The head, and a report: ``texts``, ``prefixes``, ``mean`` reward, and ``explained`` at the ``first``, ``middle``
        and ``last`` prefix of the texts that were held out: the share of the variance of what texts get that their
        value predicts; above 0 it is better than the mean. None where nothing was held out.

    Raises:
        ValueError: an argument has a value that cannot work, or all texts got the same.
    """
    if not strength > 0:
        raise ValueError(f"strength={strength!r} must be above 0")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out!r} must lie in [0, 1)")
    if len(found.tokens) < 2 or float(found.rewards.std()) == 0.0:
        raise ValueError(
            f"{len(found.tokens)} rollouts that all got the same teach nothing; write more of them, or use another "
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
        "texts": len(states), "prefixes": len(goals), "mean": float(found.rewards.mean()), "explained": None,
    }  # fmt: skip
    if least < len(states):
        report["explained"] = _explained(head, states[least:], found.rewards[least:])
    return head, report


def fit(vectors: Tensor, goals: Tensor, kind: str, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (H, 1) and bias (1,) of a regression of ``goals`` (N,) on ``vectors`` (N, H), all float64.

    Minimises ``Σ loss + ‖w‖² / (2 · strength)`` on standardised vectors, and folds the scaling into the weights. The
    loss is half the squared error, or for probabilities the cross-entropy.
    """
    mean, deviation = vectors.mean(0), vectors.std(0).clamp(min=1e-6)
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
            found = torch.nn.functional.binary_cross_entropy_with_logits(logits, goals, reduction="sum")
            total = (found + parameters[:-1].square().sum() / (2 * strength)) / len(goals)
            total.backward()
            return total

        with torch.enable_grad():
            search.step(loss)
        solved, bias = parameters[:-1].detach(), parameters[-1].detach()
    weights = solved / deviation
    return weights[:, None], (bias - mean @ weights).reshape(1)


@torch.inference_mode()
def _states(reader: ValueHead, found: Rollouts, places: Sequence[int]) -> list[Tensor]:
    """Hidden states (tokens, H) of what was written of each text, on the CPU."""
    rows = [reader.truncated([*found.prompts[n], *found.tokens[n]]) for n in places]
    hidden = reader.states(rows).float().cpu()
    return [
        one[-min(len(found.tokens[n]), len(row)) :].clone() for n, row, one in zip(places, rows, hidden, strict=True)
    ]


def _explained(head: ValueHead, states: Sequence[Tensor], rewards: Tensor) -> dict[str, float]:
    spread = float((rewards - rewards.mean()).square().sum())
    found = {}
    for name, place in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        picked = torch.stack([one[round(place * (len(one) - 1))] for one in states])
        values = head.outputs(picked)[:, 0]
        values = values if head.kind == LINEAR else values.exp()
        found[name] = 1.0 - float((values - rewards).square().sum()) / spread if spread else 0.0
    return found
