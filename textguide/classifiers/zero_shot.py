"""A language model as the judge: which of a few words would it write next?"""

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
    """``log p(class | text)`` from what a language model would write behind a question about the text.

    The log-probabilities of the label words behind the template are normalised over the labels. Where some word has
    more than one token, every word counts with its mean over tokens.

    Args:
        model: a decoder-only language model, such as the one that is guided.
        tokenizer: its tokenizer.
        labels: class names.
        words: what the model would write for each class; default: a blank and the label.
        template: holds ``{text}``, and may hold ``{labels}`` (the words, joined with "or").
        batch_size: texts read at once.
        name: for errors and reports.

    What all texts of a batch begin with, the template's head and a prefix that they share, is read once.

    Raises:
        ValueError: the template lacks ``{text}``, two classes have the same word, or the model is no decoder.
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
            raise ValueError(f"template={template!r} must hold {{text}} once")
        if model.config.is_encoder_decoder:
            raise ValueError(f"classifier {name}: {type(model).__name__} is no decoder-only language model")
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        self.template = template.replace("{labels}", _either(self.words))
        self._words = [tuple(tokenizer(word, add_special_tokens=False).input_ids) for word in self.words]
        if len(self._words) != len(self.labels) or len(set(self._words)) != len(self._words) or not all(self._words):
            raise ValueError(
                f"words={list(self.words)} must give different tokens for each of {', '.join(self.labels)}"
            )

    @torch.inference_mode()
    def log_prob(self, texts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, C) of ``texts``."""
        values = torch.empty(len(texts), len(self.labels))
        head, tail = self.template.split("{text}")
        prompts = [list(self.tokenizer(head + text + tail).input_ids) for text in texts]
        for places in batches([len(prompt) for prompt in prompts], self.batch_size):
            values[torch.tensor(places)] = self._judge([prompts[place] for place in places])
        return checked(self, values, len(texts), texts)

    def continuations(self, prefixes: Sequence[str], endings: Sequence[Sequence[str]]) -> list[Tensor]:
        """As :meth:`Classifier.continuations`, a row at a time, so that its texts share the prefix."""
        same_rows(prefixes, endings)
        return [
            super(ZeroShotClassifier, self).continuations([p], [row])[0]
            for p, row in zip(prefixes, endings, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The kind, the model's name, the words and a digest of the template."""
        return {
            "kind": "zero-shot",
            "model": str(getattr(self.model, "name_or_path", "")),
            "labels": list(self.labels),
            "words": list(self.words),
            "template": hashlib.sha256(self.template.encode()).hexdigest()[:16],
        }

    def _judge(self, prompts: list[list[int]]) -> Tensor:
        """Log-probabilities (n, C) of the label words behind ``prompts``."""
        # A sequence for each word, without its last token; words of one token share the bare prompt.
        wanted = [[(*prompt, *word[:-1]) for word in self._words] for prompt in prompts]
        unique = list(dict.fromkeys(tuple(sequence) for row in wanted for sequence in row))
        longest = max(len(word) for word in self._words)
        logp = dict(zip(unique, self._tails(unique, longest), strict=True))
        scores = torch.empty(len(prompts), len(self._words), dtype=torch.float64)
        for i, row in enumerate(wanted):
            for j, (sequence, word) in enumerate(zip(row, self._words, strict=True)):
                distribution = logp[sequence][-len(word) :].double()
                scores[i, j] = distribution.gather(1, torch.tensor(word)[:, None]).sum() / (
                    len(word) if longest > 1 else 1
                )
        return scores.log_softmax(1).float()

    def _tails(self, sequences: list[tuple[int, ...]], keep: int) -> list[Tensor]:
        """Log-probabilities (keep, V) behind each of the last ``keep`` tokens of each sequence."""
        shared = _common(sequences, keep)
        if shared and not caches.has_recurrent_state(self.model):
            rows, _ = prefill.read_prompts(self.model, [sequences[0][:shared]], self.model.device)
            rows.select(torch.zeros(len(sequences), dtype=torch.long, device=self.model.device))
            rest = [sequence[shared:] for sequence in sequences]
            width = max(len(part) for part in rest)
            # Padding on the right is never seen by what stands before it.
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
    """How many tokens all sequences begin with, so that ``keep`` tokens of each are left."""
    first, last = min(sequences), max(sequences)
    most = min(len(sequence) for sequence in sequences) - keep
    shared = 0
    while shared < most and first[shared] == last[shared]:
        shared += 1
    return max(0, shared)


def _either(words: Sequence[str]) -> str:
    names = [word.strip() for word in words]
    return " or ".join([", ".join(names[:-1]), names[-1]])
