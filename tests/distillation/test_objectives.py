"""Each objective on a table of probabilities, where its optimum is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from textguide.distillation.objectives import CCA, OBJECTIVES
from textguide.guidance import CFG

GAMMA = 2.5
CONTEXTS, VOCAB = 3, 4


class Table:
    """Every context with every token, weighed as the data have them; one parameter a context and token."""

    def __init__(self, logits: Tensor, data: Tensor, unconditional: Tensor, scale: float = GAMMA) -> None:
        self.scale = scale
        self.logits, self.data = logits, data.log_softmax(-1)
        self.context = torch.arange(CONTEXTS).repeat_interleave(VOCAB)
        self.tokens = torch.arange(VOCAB).repeat(CONTEXTS)
        self.texts = torch.arange(CONTEXTS * VOCAB)
        self.weights = self.data.exp().reshape(-1) * VOCAB
        conditional, other = self.data[self.context], unconditional.log_softmax(-1).expand(CONTEXTS * VOCAB, -1)
        self.branches = torch.stack([conditional, other])
        guided = CFG(scale).mix(self.branches, scale, None)  # type: ignore[arg-type]
        self.target = guided.log_softmax(-1)

    @property
    def student(self) -> Tensor:
        return self.logits.log_softmax(-1)[self.context]


def tables(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return draw(CONTEXTS, VOCAB), draw(CONTEXTS, VOCAB), draw(VOCAB)


def optimum(name: str, data: Tensor, unconditional: Tensor) -> Tensor:
    """What the model says once nothing can be gained, (contexts, V)."""
    if name == "likelihood":
        return data.log_softmax(-1)
    lu = unconditional.log_softmax(-1)
    return (lu + GAMMA * (data.log_softmax(-1) - lu)).log_softmax(-1)


@pytest.mark.parametrize("name", ["forward-kl", "reverse-kl", "likelihood", "gft", "model-guidance"])
def test_descent_ends_at_the_known_optimum(name: str) -> None:
    start, data, unconditional = tables()
    logits = start.clone().requires_grad_()
    objective = OBJECTIVES[name]()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    if name == "model-guidance":
        # What it holds constant moves with the model, so that its loss is no function to search along a line.
        optimizer = torch.optim.SGD([logits], lr=1.0)  # type: ignore[assignment]

    def closure() -> Any:
        optimizer.zero_grad()
        loss = objective.loss(Table(logits, data, unconditional))
        loss.backward()
        return loss

    for _ in range(3000 if name == "model-guidance" else 3):
        optimizer.step(closure)
    found = logits.detach().log_softmax(-1)
    torch.testing.assert_close(found, optimum(name, data, unconditional), atol=1e-4, rtol=0)
    wrong = (1.2 * GAMMA * data.log_softmax(-1)).log_softmax(-1)
    assert (found - wrong).abs().max() > 0.05


def test_the_two_divergences_differ_in_what_they_weigh() -> None:
    start, data, unconditional = tables(1)
    table = Table(start, data, unconditional)
    rows = slice(0, CONTEXTS * VOCAB, VOCAB)
    p, q = table.target[rows].double(), table.student[rows]
    # A context's rows are alike, and their weights are 1 on average.
    forward = (p.exp() * (p - q)).sum(-1).mean()
    reverse = (q.exp() * (q - p)).sum(-1).mean()
    assert OBJECTIVES["forward-kl"]().loss(table) == pytest.approx(float(forward), abs=1e-9)  # type: ignore[arg-type]
    assert OBJECTIVES["reverse-kl"]().loss(table) == pytest.approx(float(reverse), abs=1e-9)  # type: ignore[arg-type]
    assert abs(float(forward - reverse)) > 1e-3


class Pairs:
    """Two prompts and texts of one token, 0 or 1: ``p(token = prompt) = q``; a half of each in all."""

    def __init__(self, theta: Tensor, q: float, scale: float, wrong: bool = False) -> None:
        self.theta, self.q, self.scale = theta, q, scale
        self.is_wrong = wrong
        # Prompt 0 alone: prompt 1 is its mirror image. Under the wrong prompt both tokens are equally frequent.
        share = [0.5, 0.5] if wrong else [q, 1 - q]
        self.tokens, self.texts = torch.tensor([0, 1]), torch.tensor([0, 1])
        self.weights = 2 * torch.tensor([q, 1 - q], dtype=torch.float64)
        self.share = torch.tensor(share, dtype=torch.float64)
        base = torch.tensor([[math.log(q), math.log(1 - q)]], dtype=torch.float64).expand(2, -1)
        self.original = base

    @property
    def student(self) -> Tensor:
        return torch.stack([self.theta.log(), (1 - self.theta).log()])[None].expand(2, -1)


def expected(theta: Tensor, q: float, scale: float, negative_weight: float) -> Tensor:
    """CCA's loss over all texts: own prompts by ``q``, wrong ones evenly, written out."""
    beta = 1 / (scale - 1)
    gains = torch.stack([theta / q, (1 - theta) / (1 - q)]).log()
    own = torch.tensor([q, 1 - q], dtype=torch.float64)
    sigmoid = torch.nn.functional.logsigmoid
    return -(own * sigmoid(beta * gains)).sum() - negative_weight * (0.5 * sigmoid(-beta * gains)).sum()


def sampled(theta: Tensor, q: float, scale: float, negative_weight: float) -> Tensor:
    """The same from the objective: own texts weigh what they occur, those of other prompts come in pairs."""
    own = Pairs(theta, q, scale)
    own.with_other_prompts = lambda: own  # type: ignore[attr-defined]
    own.weights = torch.tensor([2 * q, 2 * (1 - q)], dtype=torch.float64)
    positive = CCA(0.0).loss(own)  # type: ignore[arg-type]
    mirror = Pairs(theta, q, scale, wrong=True)
    mirror.weights = torch.ones(2, dtype=torch.float64)
    mirror.with_other_prompts = lambda: mirror  # type: ignore[attr-defined]
    negative = CCA(1.0).loss(mirror) - CCA(0.0).loss(mirror)  # type: ignore[arg-type]
    return positive + negative_weight * negative


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_cca_is_its_expectation_written_out(scale: float) -> None:
    theta = torch.tensor(0.6, dtype=torch.float64)
    assert float(sampled(theta, 0.8, scale, 0.7)) == pytest.approx(float(expected(theta, 0.8, scale, 0.7)), abs=1e-12)


def test_cca_ends_at_the_unconditional_distribution_for_a_scale_of_nought() -> None:
    """At γ = 0 the optimum that the paper gives is normalised, and so within reach: what no prompt gives."""
    theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sampled(theta, 0.8, 0.0, 1.0), theta)
    assert abs(float(slope)) > 0.01
    half = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sampled(half, 0.8, 0.0, 1.0), half)
    assert float(slope) == pytest.approx(0.0, abs=1e-12)


def test_cca_moves_the_way_of_guidance() -> None:
    theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    for scale, sign in ((2.0, 1), (0.5, -1)):
        (slope,) = torch.autograd.grad(sampled(theta, 0.8, scale, 1.0), theta)
        assert sign * float(slope) < -1e-3


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="negative_weight=nan must be a number of 0 or more"):
        CCA(float("nan"))
