"""One batch of texts, read by the model in training and by its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..engine.given_texts import Item, branch_logits, distributions
from ..guidance import Branch, Guidance, Step, split
from ..guidance.algebra import log_softmax
from ..step.guided_step import guided_step
from .texts import Text


def at_all_positions(guidance: Guidance) -> bool:
    """Whether every token of a text can be taken for the end of a prompt: the other branches read that token alone, and
    guidance does not look at what else there is."""
    kinds = split(guidance)
    one = kinds.branching
    return (
        one is not None
        and not kinds.reweighting
        and kinds.sampling is None
        and bool(one.branches)
        and all(branch == Branch(model=branch.model) for branch in one.branches)
        and one.view is None
        and not (one.is_timed or one.across_rows or one.reads_likelihoods or one.reads_class_log_probs)
    )


class BatchReading:
    """See :class:`.objectives.Reading`.

    Args:
        student: gives logits (R, T, V) of the model in training for padded ids and their mask.
        teacher: the model that training began with.
        texts: the batch.
        items: what the branches of the teacher read for each text.
        guidance: at γ of this step.
        scale: γ.
        every: every position is the end of a prompt; else those of the continuation follow one prompt.
        tokenizer, models: as for :func:`textguide.score`.
        device: where the student is.
    """

    def __init__(
        self,
        student: Callable[[Tensor, Tensor], Tensor],
        teacher: Any,
        texts: Sequence[Text],
        items: Sequence[Item],
        guidance: Guidance,
        scale: float,
        *,
        every: bool,
        tokenizer: Any,
        models: Mapping[str, Any],
        device: Any,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._given, self._items = list(texts), list(items)
        self._guidance, self.scale, self._every = guidance, scale, every
        self._tokenizer, self._models, self._device = tokenizer, models, device
        self._rows = [[*text.prompt, *text.continuation] for text in texts]
        self._first = [0 if every else len(text.prompt) - 1 for text in texts]

    @cached_property
    def tokens(self) -> Tensor:
        """The token behind each position, (P,)."""
        found = [token for row, first in zip(self._rows, self._first, strict=True) for token in row[first + 1 :]]
        return torch.tensor(found, device=self._device)

    @cached_property
    def texts(self) -> Tensor:
        """The number of each position's text, (P,)."""
        lengths = [len(row) - 1 - first for row, first in zip(self._rows, self._first, strict=True)]
        return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(self._device)

    @cached_property
    def weights(self) -> Tensor:
        """The weight of each text, (texts,)."""
        return torch.tensor([text.weight for text in self._given], dtype=torch.float32, device=self._device)

    @cached_property
    def student(self) -> Tensor:
        """Log-probabilities of the model in training, (P, V)."""
        return log_softmax(self._read(self._student).float())

    @cached_property
    def target(self) -> Tensor:
        """Guided log-probabilities, (P, V)."""
        with torch.no_grad():
            if not self._every:
                given = {"tokenizer": self._tokenizer, "models": self._models}
                return log_softmax(distributions(self._teacher, self._items, self._guidance, **given)).to(self._device)
            lead = split(self._guidance).branching
            assert lead is not None
            branches = self.branches
            # All positions at once: the student is compared with the whole.
            outcome = guided_step(branches[0], branches[1:], lead, Step(0.0), measure=False, normalised=True)
            assert outcome.log_probs is not None
            return outcome.log_probs if lead.renormalize else log_softmax(outcome.log_probs)

    @cached_property
    def before(self) -> Tensor:
        """Log-probabilities of the teacher by itself, (P, V)."""
        with torch.no_grad():
            return log_softmax(self._read(_caller(self._teacher)).float())

    @cached_property
    def branches(self) -> Tensor:
        """Log-probabilities of the teacher's branches, (n, P, V)."""
        lead = split(self._guidance).branching
        with torch.no_grad():
            if not self._every:
                logits = branch_logits(self._teacher, self._items, {}, [self._guidance], self._models)
                return torch.stack([log_softmax(one.float()) for one in logits]).to(self._device)
            found = [self.before]
            read = [token for row, first in zip(self._rows, self._first, strict=True) for token in row[first:-1]]
            distinct, places = torch.tensor(read, device=self._device).unique(return_inverse=True)
            for branch in () if lead is None else lead.branches:
                model = self._models[branch.model] if branch.model else self._teacher
                alone = model(input_ids=distinct[:, None], use_cache=False).logits[:, 0]
                found.append(log_softmax(alone.float())[places])
            return torch.stack(found)

    def wrong(self) -> BatchReading:
        """Each continuation behind the prompt of the next text of the batch."""
        given = self._given
        moved = [Text(given[n - 1].prompt, text.continuation, text.weight) for n, text in enumerate(given)]
        items = [Item(n, text.prompt, text.continuation, []) for n, text in enumerate(moved)]
        return BatchReading(
            self._student, self._teacher, moved, items, self._guidance, self.scale, every=False,
            tokenizer=self._tokenizer, models=self._models, device=self._device,
        )  # fmt: skip

    def _read(self, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Logits of every position that predicts a token, (P, V), text behind text."""
        width = max(map(len, self._rows)) - 1
        ids = torch.zeros(len(self._rows), width, dtype=torch.long)
        mask = torch.zeros(len(self._rows), width, dtype=torch.long)
        keep = torch.zeros(len(self._rows), width, dtype=torch.bool)
        for number, (row, first) in enumerate(zip(self._rows, self._first, strict=True)):
            ids[number, : len(row) - 1] = torch.tensor(row[:-1])
            mask[number, : len(row) - 1] = 1
            keep[number, first : len(row) - 1] = True
        return model(ids.to(self._device), mask.to(self._device))[keep.to(self._device)]


def _caller(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits
