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
    """Whether every token of a text can be used as the end of a prompt.

    This is the case if the other branches only read the last token, and the guidance depends on nothing else.
    """
    kinds = split(guidance)
    branching = kinds.branching
    if branching is None or kinds.reweighting or kinds.sampling is not None:
        return False
    if branching.view is not None or not branching.branches:
        return False
    if branching.is_timed or branching.across_rows or branching.reads_likelihoods or branching.reads_class_log_probs:
        return False
    return all(branch == Branch(model=branch.model) for branch in branching.branches)


class BatchReading:
    """A batch of texts with the passes that objectives need: see :class:`.objectives.Reading`.

    Args:
        student: a function that returns the logits (R, T, V) of the model in training for padded ids and their mask.
        teacher: the model before training.
        texts: the texts of the batch.
        items: what the branches of the teacher read for each text.
        guidance: the guidance at γ of this step.
        scale: γ.
        all_positions: every position is the end of a prompt; otherwise only the continuation is guided, after its
            prompt.
        tokenizer, models: as for :func:`textguide.score`.
        device: the device of the student.
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
        all_positions: bool,
        tokenizer: Any,
        models: Mapping[str, Any],
        device: Any,
    ) -> None:
        self.scale = scale
        self._student = student
        self._teacher = teacher
        self._texts = list(texts)
        self._items = list(items)
        self._guidance = guidance
        self._all_positions = all_positions
        self._tokenizer = tokenizer
        self._models = models
        self._device = device
        self._rows = [[*text.prompt, *text.continuation] for text in texts]
        # Positions before the first one of each row are not trained on.
        self._first = [0 if all_positions else len(text.prompt) - 1 for text in texts]

    @cached_property
    def tokens(self) -> Tensor:
        """The token after each position, (P,)."""
        tokens = [token for row, first in zip(self._rows, self._first, strict=True) for token in row[first + 1 :]]
        return torch.tensor(tokens, device=self._device)

    @cached_property
    def texts(self) -> Tensor:
        """The number of each position's text, (P,)."""
        lengths = [len(row) - 1 - first for row, first in zip(self._rows, self._first, strict=True)]
        return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(self._device)

    @cached_property
    def weights(self) -> Tensor:
        """The weight of each text, (texts,)."""
        return torch.tensor([text.weight for text in self._texts], dtype=torch.float32, device=self._device)

    @cached_property
    def student(self) -> Tensor:
        """Log-probabilities of the model in training, (P, V)."""
        return log_softmax(self._read(self._student).float())

    @cached_property
    def target(self) -> Tensor:
        """Guided log-probabilities, (P, V)."""
        with torch.no_grad():
            if not self._all_positions:
                guided = distributions(
                    self._teacher, self._items, self._guidance, tokenizer=self._tokenizer, models=self._models
                )
                return log_softmax(guided).to(self._device)
            branching = split(self._guidance).branching
            assert branching is not None
            branches = self.branches
            outcome = guided_step(branches[0], branches[1:], branching, Step(0.0), measure=False, normalised=True)
            assert outcome.log_probs is not None
            return outcome.log_probs if branching.renormalize else log_softmax(outcome.log_probs)

    @cached_property
    def original(self) -> Tensor:
        """Log-probabilities of the teacher without guidance, (P, V)."""

        def read(ids: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self._teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits

        with torch.no_grad():
            return log_softmax(self._read(read).float())

    @cached_property
    def branches(self) -> Tensor:
        """Log-probabilities of the teacher's branches, (n, P, V)."""
        with torch.no_grad():
            if not self._all_positions:
                logits = branch_logits(self._teacher, self._items, {}, [self._guidance], self._models)
                return torch.stack([log_softmax(one.float()) for one in logits]).to(self._device)
            branching = split(self._guidance).branching
            logp = [self.original]
            # The other branches only read the last token, so one row per distinct token is enough.
            last = [token for row, first in zip(self._rows, self._first, strict=True) for token in row[first:-1]]
            distinct, row_of = torch.tensor(last, device=self._device).unique(return_inverse=True)
            for branch in () if branching is None else branching.branches:
                model = self._models[branch.model] if branch.model else self._teacher
                logits = model(input_ids=distinct[:, None], use_cache=False).logits[:, 0]
                logp.append(log_softmax(logits.float())[row_of])
            return torch.stack(logp)

    def with_other_prompts(self) -> BatchReading:
        """The batch with each continuation after the prompt of another text (the previous one in the batch)."""
        texts = []
        for number, text in enumerate(self._texts):
            texts.append(Text(self._texts[number - 1].prompt, text.continuation, text.weight))
        items = [Item(number, text.prompt, text.continuation, []) for number, text in enumerate(texts)]
        return BatchReading(
            self._student,
            self._teacher,
            texts,
            items,
            self._guidance,
            self.scale,
            all_positions=False,
            tokenizer=self._tokenizer,
            models=self._models,
            device=self._device,
        )

    def _read(self, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Logits of every position that predicts a token, (P, V), text after text."""
        width = max(map(len, self._rows)) - 1
        ids = torch.zeros(len(self._rows), width, dtype=torch.long)
        mask = torch.zeros(len(self._rows), width, dtype=torch.long)
        predicts = torch.zeros(len(self._rows), width, dtype=torch.bool)
        for number, (row, first) in enumerate(zip(self._rows, self._first, strict=True)):
            ids[number, : len(row) - 1] = torch.tensor(row[:-1])
            mask[number, : len(row) - 1] = 1
            predicts[number, first : len(row) - 1] = True
        return model(ids.to(self._device), mask.to(self._device))[predicts.to(self._device)]
