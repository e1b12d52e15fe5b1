"""Rewards: one number for a text, from a model with one output or from any function."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support.importing import named_object
from . import storage
from .base import Scorer, beginning, table
from .sequence import SequenceReader, load_with_head

LARGEST = 1e6
"""The largest reward. Multiplied by the largest weight, it is still inside float32."""


class RewardScorer(Scorer):
    """Base class of everything that returns a reward for a text: a finite number, the larger the better."""

    labels = ("reward",)
    what = "reward"

    @abstractmethod
    def reward(self, texts: Sequence[str]) -> Any:
        """N rewards for N texts: a tensor, an array or a list."""

    def values(self, texts: Sequence[str]) -> Tensor:
        """:meth:`reward` as a column (N, 1), checked."""
        rewards = self.reward(texts)
        try:
            column = torch.as_tensor(rewards).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"reward {self.name} returned {type(rewards).__name__}, not numbers ({error})") from error
        return checked_rewards(self, column[:, None] if column.dim() == 1 else column, texts)


class FunctionReward(RewardScorer):
    """A function from texts to rewards.

    Args:
        fn: called with a list of N texts, returns N numbers.
        name: for errors and reports; default: the function's name.
        batch_size: the largest number of texts per call.

    Raises:
        ValueError: ``fn`` is not callable. In a call: ``fn`` did not return one finite number per text.
    """

    def __init__(self, fn: Callable[[list[str]], Any], *, name: str | None = None, batch_size: int = 1024) -> None:
        if not callable(fn):
            raise ValueError(f"fn={fn!r} must be a function from texts to numbers")
        self.fn = fn
        self.batch_size = batch_size
        self.name = name or str(getattr(fn, "__qualname__", type(fn).__name__))

    def reward(self, texts: Sequence[str]) -> Any:
        """What the function returns for ``texts``."""
        return self.fn(list(texts)) if texts else torch.empty(0)

    def to_dict(self) -> dict[str, Any]:
        """The module and name of the function. It has no other identity."""
        module = getattr(self.fn, "__module__", None)
        name = getattr(self.fn, "__qualname__", type(self.fn).__name__)
        return {"kind": "python", "function": f"{module}:{name}"}


class RewardModel(RewardScorer):
    """A transformers sequence-classification model with one output, which is the reward.

    It reads plain text with its own tokenizer, without the special tokens of a chat. To pass texts to a reward model in
    another form, such as a chat template, wrap it in a function.

    Args:
        model: a transformers model that returns ``logits`` (N, 1).
        tokenizer: its tokenizer.
        max_length: number of tokens at the end of a text that are read; default: as many as tokenizer and model allow.
        batch_size: number of texts per pass.
        name: for errors and reports.

    Raises:
        ValueError: the model has more than one output.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        self.name = name or str(getattr(model, "name_or_path", "") or type(model).__name__)
        outputs = getattr(model.config, "num_labels", None)
        if outputs != 1:
            raise ValueError(
                f"reward {self.name}: the model has {outputs} outputs and a reward model has one; use a classifier "
                "with textguide.CAIF"
            )
        self.batch_size = batch_size
        self.read = SequenceReader(model, tokenizer, f"reward {self.name}", max_length, batch_size)

    def reward(self, texts: Sequence[str]) -> Tensor:
        """The outputs (N, 1) for ``texts``."""
        return self.read(texts)

    def to_dict(self) -> dict[str, Any]:
        """The kind, the model's name and digests of its configuration and its last weights."""
        return {"kind": "reward", **self.read.to_dict()}


def checked_rewards(scorer: Scorer, values: Any, texts: Sequence[str]) -> Tensor:
    """Rewards (N, 1) as float32 on the CPU.

    Raises:
        ValueError: they are not one number within ±:data:`LARGEST` for each text; the message names both.
    """
    result = table(scorer, values, len(texts), texts)
    outside = result.abs() > LARGEST
    if outside.any():
        row = int(outside.nonzero()[0, 0])
        raise ValueError(
            f"reward {scorer.name} returned {result[row, 0].item():.4g} for text {beginning(texts[row])}; it must be "
            f"within ±{LARGEST:g}; to forbid texts, use a constraint: textguide.AWRS"
        )
    return result


def resolve_reward(value: Any, model: Any = None, tokenizer: Any = None) -> Scorer:
    """Return ``value`` if it is a reward, and wrap or load it otherwise.

    Args:
        value: a :class:`RewardScorer`; a function from texts to numbers; the folder of a sequence-classification model
            with one output, or ``hf:NAME``; or ``python:MODULE:NAME``, the place of a scorer or function.
        model: the guided language model; a reward model is loaded onto its device.
        tokenizer: its tokenizer.

    Raises:
        ValueError: it is none of these.
        ModelUnavailableError: a model cannot be loaded.
    """
    if isinstance(value, RewardScorer):
        return value
    if isinstance(value, str):
        kind, _, argument = value.strip().partition(":")
        if kind == "python":
            return resolve_reward(named_object(argument, "reward"))
        source = argument if kind == "hf" and argument else value.strip()
        if kind == "hf" or Path(source).expanduser().is_dir():
            path = Path(source).expanduser()
            storage.refuse_pickle(path)
            loaded, own = load_with_head(str(path) if path.exists() else source, "reward")
            return RewardModel(loaded.to(getattr(model, "device", "cpu")), own, name=value.strip())
        raise ValueError(
            f"reward {value!r} is not a folder; pass the folder of a sequence-classification model with one output, "
            "hf:NAME, or python:MODULE:NAME"
        )
    if callable(value) and not hasattr(value, "config"):
        return FunctionReward(value)
    raise ValueError(
        f"reward={type(value).__name__} must be a function from texts to numbers, a name, or a RewardScorer; wrap a "
        "transformers model: textguide.classifiers.RewardModel(model, tokenizer)"
    )
