"""A language model as a classifier: which of a few words would it generate next?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..forward import caches, prefill
from .base import Classifier, batches, checked, label_names, same_rows

TEMPLATE = 'Text: "{text}"\nQuestion: Which word describes the text best, {labels}?\nAnswer:'


class ZeroShotClassifier(Classifier):
    """``log p(class | text)`` from a language model's answer to a question about the text.

    The log-probabilities of the label words after the template are normalised over the labels. If a word has more than
    one token, the mean over its tokens is used for all words. Tokens that all texts of a batch start with, such as the
    beginning of the template and a shared prefix, are read once.

    Args:
        model: a decoder-only language model, such as the guided one.
        tokenizer: its tokenizer.
        labels: class names.
        words: the answer for each class; default: a blank and the label.
        template: must contain ``{text}``, and may contain ``{labels}`` (the words, joined with "or").
        batch_size: number of texts per pass.
        name: for errors and reports.

    Raises:
        ValueError: the template lacks ``{text}``, two classes have the same word, or the model is not a decoder.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        words: Sequence[str] | None = None,
        template: str = TEMPLATE,
        batch_size: int = 32,
        name: str = "zero-shot",
    ) -> None:
        self.labels = label_names(labels)
        self.words = tuple(words) if words is not None else tuple(f" {label}" for label in self.labels)
        if template.count("{text}") != 1:
            raise ValueError(f"template={template!r} must contain {{text}} once")
        if model.config.is_encoder_decoder:
            raise ValueError(f"classifier {name}: {type(model).__name__} is not a decoder-only language model")
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self.template = template.replace("{labels}", _either(self.words))
        self._words = [tuple(tokenizer(word, add_special_tokens=False).input_ids) for word in self.words]
        if len(self._words) != len(self.labels) or len(set(self._words)) != len(self._words) or not all(self._words):
            raise ValueError(
                f"words={list(self.words)} must have different tokens for each of {', '.join(self.labels)}"
            )

    @torch.inference_mode()
    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        values = torch.empty(len(texts), len(self.labels))
        head, tail = self.template.split("{text}")
        prompts = [list(self.tokenizer(head + text + tail).input_ids) for text in texts]
        for indices in batches([len(prompt) for prompt in prompts], self.batch_size):
            values[torch.tensor(indices)] = self._word_log_probs([prompts[i] for i in indices])
        return checked(self, values, len(texts), texts)

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """See :meth:`Classifier.continuations`. A row is read at a time, so that its texts share the prefix."""
        same_rows(prefixes, endings)
        values = []
        for prefix, row in zip(prefixes, endings, strict=True):
            values += super().continuations([prefix], [row])
        return values

    def to_dict(self) -> dict[str, Any]:
        """The kind, the model's name, the words and a digest of the template."""
        return {
            "kind": "zero-shot",
            "model": str(getattr(self.model, "name_or_path", "")),
            "labels": list(self.labels),
            "words": list(self.words),
            "template": hashlib.sha256(self.template.encode()).hexdigest()[:16],
        }

    def _word_log_probs(self, prompts: list[list[int]]) -> Tensor:
        """Log-probabilities (n, C) of the label words after ``prompts``, normalised over the words."""
        # One sequence per word, without its last token; for words of one token it is only the prompt.
        sequences = [[(*prompt, *word[:-1]) for word in self._words] for prompt in prompts]
        unique = list(dict.fromkeys(sequence for row in sequences for sequence in row))
        longest = max(len(word) for word in self._words)
        logp = dict(zip(unique, self._tails(unique, longest), strict=True))
        scores = torch.empty(len(prompts), len(self._words), dtype=torch.float64)
        for i, row in enumerate(sequences):
            for j, (sequence, word) in enumerate(zip(row, self._words, strict=True)):
                distribution = logp[sequence][-len(word) :].double()
                # Equals the sum if all words have one token.
                scores[i, j] = distribution.gather(1, torch.tensor(word)[:, None]).sum() / len(word)
        return scores.log_softmax(1).float()

    def _tails(self, sequences: list[tuple[int, ...]], keep: int) -> list[Tensor]:
        """Next-token log-probabilities (keep, V) after each of the last ``keep`` tokens of each sequence."""
        shared = _common(sequences, keep)
        if shared and not caches.has_recurrent_state(self.model):
            rows, _ = prefill.read_prompts(self.model, [sequences[0][:shared]], self.model.device)
            rows.select(torch.zeros(len(sequences), dtype=torch.long, device=self.model.device))
            rest = [sequence[shared:] for sequence in sequences]
            width = max(len(part) for part in rest)
            # Tokens do not see padding on their right.
            ids = torch.tensor([[*part, *([0] * (width - len(part)))] for part in rest], device=self.model.device)
            logits = rows.forward(ids, keep=width)
            picked = [row[len(part) - keep : len(part)] for row, part in zip(logits, rest, strict=True)]
        else:
            picked = []
            for sequence in sequences:
                _, logits = prefill.read_prompts(self.model, [sequence], self.model.device, keep=keep)
                picked.append(logits[0])
        return [logits.float().log_softmax(-1).cpu() for logits in picked]


def _common(sequences: Sequence[tuple[int, ...]], keep: int) -> int:
    """The number of tokens that all sequences start with, if at least ``keep`` other tokens of each are left."""
    # In sorted order, the first and the last differ the most.
    first = min(sequences)
    last = max(sequences)
    most = min(len(sequence) for sequence in sequences) - keep
    shared = 0
    while shared < most and first[shared] == last[shared]:
        shared += 1
    return max(0, shared)


def _either(words: Sequence[str]) -> str:
    names = [word.strip() for word in words]
    return " or ".join([", ".join(names[:-1]), names[-1]])
