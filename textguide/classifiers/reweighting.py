"""Run token reweighting: score the candidates of every row, and apply the scores to the distribution."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..guidance.algebra import entropy
from ..guidance.base import Step
from ..guidance.text_reweighting import TextReweighting, reweigh
from .base import CausalScorer, CausalState, Scorer, in_batches
from .resolving import RESOLVERS
from .texts import Alphabet, RowText


@dataclass
class Reading:
    """One scorer and the texts of a batch, shared by the guidances that use this scorer.

    Args:
        scorer: the classifier or reward.
        include_prompt: whether it reads the prompt too.
        members: numbers of the guidances that use it.
        texts: the text of every row, if the scorer reads whole texts.
        state: the state of the rows, if the scorer reads token by token.
    """

    scorer: Scorer
    include_prompt: bool
    members: list[int] = field(default_factory=list)
    texts: list[RowText] = field(default_factory=list)
    state: CausalState | None = None

    def begin(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], alphabet: Alphabet) -> None:
        """Start a batch with the token ids of every prompt and of the text already written after each."""
        rows = []
        for prompt, tokens in zip(prompts, written, strict=True):
            rows.append([*prompt, *tokens] if self.include_prompt else list(tokens))
        if isinstance(self.scorer, CausalScorer):
            self.state = self.scorer.start(rows)
        else:
            self.texts = [alphabet.row(row) for row in rows]

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to every row."""
        if self.state is not None:
            self.state.append(range(len(tokens)), tokens)
        for row, token in zip(self.texts, tokens, strict=False):
            row.append(token)

    def select(self, index: Sequence[int]) -> None:
        """Let row ``r`` continue the text of row ``index[r]``."""
        if self.state is not None:
            self.state.select(index)
        else:
            self.texts = [self.texts[i].copy() for i in index]

    def values(self, rows: Sequence[int]) -> Tensor:
        """The scores of the texts of ``rows``, (r, C)."""
        if self.state is not None:
            return self.state.current(rows)
        return in_batches(self.scorer, [self.texts[row].text for row in rows])


class Reweighter:
    """Applies guidances such as :class:`textguide.CAIF` to the distributions of a batch of growing rows.

    Args:
        guidances: the guidances to apply; their weights add up.
        tokenizer: the language model's tokenizer.
        model: the language model, for scorers that are derived from it.
        ends: tokens that end a text; as candidates they represent the finished text.
        alphabet: converts tokens to text; default: created from the tokenizer.
        size: number of tokens in the vocabulary; default: that of the model's configuration.

    Raises:
        ValueError: a scorer cannot be resolved, or it does not have the class that a guidance targets.

    Attributes:
        texts_scored: number of candidates that were scored.
    """

    def __init__(
        self,
        guidances: Sequence[Any],
        tokenizer: Any,
        model: Any,
        ends: Collection[int] = (),
        alphabet: Alphabet | None = None,
        size: int | None = None,
    ) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer=None: a classifier or reward reads text; pass the tokenizer of the model")
        self.guidances: list[TextReweighting] = list(guidances)
        self.tokenizer = tokenizer
        self.ends = set(ends)
        self.texts_scored = 0
        self._groups: list[Reading] = []
        self._columns: list[int] = []
        self._alphabet = alphabet
        resolved: dict[Any, Scorer] = {}
        for number, guidance in enumerate(self.guidances):
            key = guidance.scorer_kind, guidance.scorer
            if key not in resolved:
                resolved[key] = RESOLVERS[guidance.scorer_kind](guidance.scorer, model, tokenizer)
            scorer = resolved[key]
            self._columns.append(guidance.column(scorer))
            self._group(scorer, guidance.include_prompt).members.append(number)
        size = model.config.get_text_config(decoder=True).vocab_size if size is None else size
        for guidance in self.guidances:
            if guidance.top_k is not None and guidance.top_k > size:
                raise ValueError(
                    f"top_k={guidance.top_k} of {self._name(guidance)} is beyond the vocabulary of {size} "
                    "tokens; lower it, or pass None for the whole vocabulary"
                )
        self._size = size

    def _group(self, scorer: Scorer, include_prompt: bool) -> Reading:
        """The group of a scorer, which is created if there is none."""
        for group in self._groups:
            if group.scorer is scorer and group.include_prompt == include_prompt:
                return group
        group = Reading(scorer, include_prompt)
        self._groups.append(group)
        return group

    # -- the texts -------------------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]] | None = None) -> None:
        """Start a batch with the token ids of every prompt and of the text already written after each."""
        if self._alphabet is None:
            self._alphabet = Alphabet(self.tokenizer, self._size)
        written = written if written is not None else [[] for _ in prompts]
        for group in self._groups:
            group.begin(prompts, written, self._alphabet)

    def show(self, texts: Callable[[bool], Sequence[RowText]]) -> None:
        """Set the texts that candidates complete, instead of those of growing rows.

        Args:
            texts: returns one text per row of the next distributions; its argument is whether the prompt is included.

        Raises:
            ValueError: a scorer only reads from left to right.
        """
        for group in self._groups:
            if isinstance(group.scorer, CausalScorer):
                raise ValueError(
                    f"{group.scorer.name} reads texts that grow from left to right, token by token; use "
                    "one that reads whole texts"
                )
            group.texts = list(texts(group.include_prompt))

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to every row."""
        for group in self._groups:
            group.append(tokens)

    def select(self, index: Sequence[int]) -> None:
        """Let row ``r`` continue the text of row ``index[r]``."""
        for group in self._groups:
            group.select(index)

    # -- one step --------------------------------------------------------------------------------------------------

    def __call__(
        self, logp: Tensor, step: Step, index: int | Sequence[int], rows: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Reweight distributions.

        Args:
            logp: normalised log-probabilities, (B, V).
            step: the position in the text.
            index: index of the token that is chosen, from 0; one for all rows, or one per row.
            rows: which rows of the batch these are.

        Returns:
            Log-probabilities (B, V), and the rows that changed, bool (B,); the other rows are unchanged.

        Raises:
            ValueError: the guidances forbid every candidate of a row.
        """
        weights = self._weights(logp, step, index)
        acts = (weights != 0).any(0)
        chosen = acts.nonzero()[:, 0]
        if not len(chosen):
            return logp, acts
        distribution = logp[chosen]
        depths = [guidance.top_k or self._size for guidance in self.guidances]
        weights = weights[:, chosen]
        used = [n for n in range(len(depths)) if bool((weights[n] != 0).any())]
        candidates = distribution.topk(max(depths[n] for n in used), dim=-1).indices
        bonus = self._bonus(distribution, candidates, weights, depths, [rows[i] for i in chosen.tolist()])
        changed = reweigh(distribution, candidates, bonus)
        if bool(changed.isnan().any()):
            names = ", ".join(sorted({self._name(guidance) for guidance in self.guidances}))
            raise ValueError(f"{names} forbids every candidate of a row; smooth it, or lower the weight")
        return logp.index_copy(0, chosen, changed), acts

    def _weights(self, logp: Tensor, step: Step, index: int | Sequence[int]) -> Tensor:
        """The weight of every guidance in every row, (G, B); 0 if it does not act."""
        size = logp.shape[0]
        indices = [index] * size if isinstance(index, int) else list(index)
        spread = entropy(logp) if any(guidance.entropy_threshold > 0 for guidance in self.guidances) else None
        weights = torch.zeros(len(self.guidances), size, device=logp.device)
        for number, guidance in enumerate(self.guidances):
            due = torch.tensor([i % guidance.every == 0 for i in indices], device=logp.device)
            if spread is not None and guidance.entropy_threshold > 0:
                due &= spread >= guidance.entropy_threshold
            weight = guidance.weight_at(step)
            weights[number] = due * (weight[:, 0] if isinstance(weight, Tensor) else weight)
        return weights

    def _bonus(
        self, distribution: Tensor, candidates: Tensor, weights: Tensor, depths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """``Σ weight · score`` of every candidate, (B, k); −inf after the last candidate of a guidance."""
        bonus = torch.zeros(candidates.shape, device=distribution.device)
        allowed = torch.isfinite(distribution.gather(-1, candidates)).sum(-1).tolist()
        ids = candidates.tolist()
        strength = weights.tolist()
        for group in self._groups:
            reach = [
                max((min(depths[n], allowed[b]) for n in group.members if strength[n][b] != 0), default=0)
                for b in range(len(rows))
            ]
            who = [b for b, depth in enumerate(reach) if depth]
            if not who:
                continue
            answers = self._ask(group, [rows[b] for b in who], [ids[b][: reach[b]] for b in who])
            for b, answer in zip(who, answers, strict=True):
                answer = answer.to(distribution.device)
                for n in group.members:
                    if strength[n][b] != 0:
                        depth = min(depths[n], reach[b])
                        bonus[b, :depth] += weights[n, b] * answer[:depth, self._columns[n]]
                        bonus[b, depths[n] :] = -torch.inf
        return bonus

    def _ask(self, group: Reading, rows: Sequence[int], candidates: list[list[int]]) -> list[Tensor]:
        """The scores of every candidate of every row: tensors (k, C)."""
        self.texts_scored += sum(map(len, candidates))
        if group.state is not None:
            return self._ask_causal(group.state, rows, candidates)
        prefixes = []
        endings = []
        for row, tokens in zip(rows, candidates, strict=True):
            prefix, ends = group.texts[row].endings(tokens)
            prefixes.append(prefix)
            endings.append(ends)
        return group.scorer.continuations(prefixes, endings)

    def _ask_causal(self, state: CausalState, rows: Sequence[int], candidates: list[list[int]]) -> list[Tensor]:
        width = max(map(len, candidates))
        padded = torch.tensor([row + row[-1:] * (width - len(row)) for row in candidates])
        answers = state.log_prob(rows, padded)
        is_end = torch.tensor([[token in self.ends for token in row] for row in padded.tolist()])
        if bool(is_end.any()):
            answers = torch.where(is_end[..., None], state.current(rows)[:, None], answers)
        return [answer[: len(row)] for answer, row in zip(answers, candidates, strict=True)]

    def _name(self, guidance: TextReweighting) -> str:
        return f"{guidance.scorer_kind} {getattr(guidance.scorer, 'name', guidance.scorer)}"


def reweighter(guidances: Iterable[Any], tokenizer: Any, model: Any, ends: Any = None) -> Reweighter | None:
    """A :class:`Reweighter` for a run of ``model``, or None if there are no guidances.

    Args:
        ends: the end token or tokens of the run; default: the model's.
    """
    guidances = list(guidances)
    if not guidances:
        return None
    if ends is None:
        ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = []
    return Reweighter(guidances, tokenizer, model, ends if isinstance(ends, (list, tuple)) else [ends])
