"""Token priors: how likely each token is on average, as a value and as a file."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..support import files
from ..support.checks import finite_number, is_whole_number

FORMAT = "textguide token prior"
VERSION = "1"
SUFFIX = ".safetensors"
NORMALISED = 1e-5
"""Largest logarithm of the sum of the probabilities of a normalised prior in float32."""
BUNDLED = {"smollm2": Path(__file__).parent / "data" / "smollm2.safetensors"}
"""Priors that come with textguide, by name: of the bundled model (docs/methods/token-prior.md)."""


@dataclass(frozen=True, eq=False)
class Prior:
    """A model's average next-token distribution. Two priors with equal numbers are equal.

    Args:
        log_probs: its log-probabilities in nats, (V,); they are normalised, in float32.
        model_name: name of the model, for error messages.
        texts: number of texts over which it was averaged; 0 if unknown.
        tokens: number of positions over which it was averaged; 0 if unknown.
        file: its file on disk; None if it was not saved yet.

    Raises:
        ValueError: ``log_probs`` is not a vector of finite numbers.
    """

    log_probs: Tensor = field(repr=False)
    model_name: str = ""
    texts: int = 0
    tokens: int = 0
    file: str | None = None

    def __post_init__(self) -> None:
        if self.log_probs.dim() != 1 or len(self.log_probs) < 2 or not bool(self.log_probs.isfinite().all()):
            raise ValueError(
                f"log_probs of shape {tuple(self.log_probs.shape)} must be a vector of finite numbers, one per token"
            )
        values = self.log_probs.detach().double().cpu()
        # Only once: normalising again could change the last bits, and with them the fingerprint.
        if abs(float(values.logsumexp(-1))) > NORMALISED:
            values = values.log_softmax(-1)
        object.__setattr__(self, "log_probs", values.float())

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the numbers."""
        return hashlib.sha256(self.log_probs.contiguous().numpy().tobytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """File and fingerprint, which identify it in JSON."""
        return {"file": self.file, "fingerprint": self.fingerprint}

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Prior:
        """Write it to ``path``, and return the prior with that file.

        Args:
            path: the file; its name ends with ``.safetensors``.
            dtype: float32, or float16, which takes half the space and rounds log-probabilities to 0.01 nats.

        Raises:
            ValueError: the name has another ending, or the file cannot be written.
        """
        from safetensors.torch import save

        if not str(path).endswith(SUFFIX):
            raise ValueError(f"{path} must end with {SUFFIX}, so that the prior can be found again")
        target = files.writable_file(path, "the prior's file")
        metadata = {"format": FORMAT, "version": VERSION, "model_name": self.model_name}
        metadata |= {"texts": str(self.texts), "tokens": str(self.tokens), "vocabulary": str(len(self.log_probs))}
        stored = self.log_probs.to(dtype).contiguous()
        files.write_bytes(target, save({"log_probs": stored}, metadata))
        return replace(self, log_probs=stored, file=str(target))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prior:
        """Load the prior in the file ``path``, or the one of :data:`BUNDLED` with that name if there is no such file.

        Raises:
            ValueError: there is no prior, or it is damaged.
        """
        named = None if Path(path).exists() else BUNDLED.get(str(path))
        source = named or Path(path)
        if not source.is_file():
            raise ValueError(
                f"prior={str(path)!r} is not a file; train one with 'textguide prior train TEXTS --output FILE', or "
                f"use {', '.join(map(repr, BUNDLED))}, which is bundled"
            )
        return replace(_read(str(source), source.stat().st_mtime_ns), file=str(path))


@functools.lru_cache(maxsize=8)
def _read(path: str, _changed: int) -> Prior:
    """The prior in ``path``. The time of its last change is part of the key, so that a new version is read again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise ValueError(f"prior={path!r} is not a token prior of this version; train it again")
            log_probs = file.get_tensor("log_probs")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"prior={path!r} is damaged ({error}); train it again") from error
    if not log_probs.is_floating_point() or log_probs.dim() != 1 or not bool(log_probs.isfinite().all()):
        raise ValueError(f"prior={path!r} has values that are not finite numbers; train it again")
    counts = {name: _count(metadata.get(name, "")) for name in ("texts", "tokens")}
    return Prior(log_probs, metadata.get("model_name", ""), **counts, file=path)


def _count(text: str) -> int:
    return int(text) if text.isdecimal() and text.isascii() else 0


@dataclass(frozen=True)
class PriorFile:
    """A token prior on disk.

    Args:
        file: the file that ``textguide prior train`` wrote, or the name of a bundled prior.
        fingerprint: fingerprint of its numbers; any others are refused. None: accept any.
    """

    file: str
    fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"file": self.file, "fingerprint": self.fingerprint}

    def load(self) -> Prior:
        """Load it.

        Raises:
            ValueError: it cannot be read, or its fingerprint differs.
        """
        prior = Prior.load(self.file)
        if self.fingerprint is not None and prior.fingerprint != self.fingerprint:
            raise ValueError(
                f"prior={self.file!r} has the fingerprint {prior.fingerprint} instead of {self.fingerprint}; it has "
                "been trained again since: pass only the name of the file to use what is there"
            )
        return prior


@dataclass(frozen=True)
class SparsePrior:
    """The probabilities of some tokens; all other tokens share the rest equally. It fits a vocabulary of any size.

    Args:
        pairs: pairs of a token id and its probability.

    Raises:
        ValueError: an id is not a whole number from 0 or occurs twice, a probability is not between 0 and 1, or the
            probabilities leave nothing for the other tokens.
    """

    pairs: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        pairs = []
        for token, value in self.pairs:
            if not is_whole_number(token) or token < 0:
                raise ValueError(f"prior names token {token!r}; use token ids, whole numbers from 0")
            probability = finite_number("prior", value)
            if not 0.0 < probability < 1.0:
                raise ValueError(f"prior={probability} for token {token} must be a probability between 0 and 1")
            pairs.append((int(token), probability))
        if not pairs or len(dict(pairs)) != len(pairs):
            raise ValueError("prior must name at least one token, and each token once")
        if math.fsum(probability for _, probability in pairs) >= 1.0:
            raise ValueError("prior has probabilities that leave nothing for the other tokens; their sum must be < 1")
        object.__setattr__(self, "pairs", tuple(sorted(pairs)))

    def to_dict(self) -> dict[str, Any]:
        """Probabilities by token id, which is text in JSON."""
        return {str(token): probability for token, probability in self.pairs}

    def with_vocabulary(self, size: int) -> Prior:
        """The probabilities of all tokens of a vocabulary with ``size`` tokens.

        Raises:
            ValueError: the vocabulary does not contain one of the tokens, or no others.
        """
        if self.pairs[-1][0] >= size or len(self.pairs) >= size:
            raise ValueError(
                f"prior names token {self.pairs[-1][0]} and {len(self.pairs)} tokens in all, and the model has {size}; "
                "name fewer tokens, of this model"
            )
        rest = 1.0 - math.fsum(probability for _, probability in self.pairs)
        values = torch.full((size,), rest / (size - len(self.pairs)), dtype=torch.float64)
        for token, probability in self.pairs:
            values[token] = probability
        return Prior(values.log())


AnyPrior = str | Prior | PriorFile | SparsePrior
"""The forms of a prior in a guidance; a text is the name of a file or of a bundled prior."""


def as_prior(value: Any) -> AnyPrior:
    """The value of a field ``prior=``, which is not loaded yet.

    Raises:
        ValueError: it is not a prior.
    """
    if isinstance(value, Prior):
        return value if value.file is None else PriorFile(value.file, value.fingerprint)
    if isinstance(value, (PriorFile, SparsePrior)):
        return value
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return os.fspath(value)
    if isinstance(value, Mapping) and "fingerprint" in value:
        if not isinstance(value.get("file"), str):
            raise ValueError(f"prior={dict(value)!r} is not saved in a file; save it, and pass the name of the file")
        return PriorFile(value["file"], value["fingerprint"])
    if isinstance(value, Mapping):
        return SparsePrior(tuple(_tokens(value.items())))
    raise ValueError(
        f"prior={value!r} must be the name of a bundled prior, a file that 'textguide prior train' wrote, a Prior, or "
        "probabilities by token id"
    )


def _tokens(items: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
    """Pairs of a token id and a value; ids may be text, as in JSON."""
    for token, value in items:
        yield (int(token) if isinstance(token, str) and token.isascii() and token.isdecimal() else token), value


def log_probs(prior: AnyPrior, size: int) -> Tensor:
    """The log-probabilities of a prior for a vocabulary with ``size`` tokens, (V,) float32.

    Raises:
        ValueError: it cannot be read, or belongs to a model with another vocabulary.
    """
    if isinstance(prior, SparsePrior):
        return prior.with_vocabulary(size).log_probs
    if isinstance(prior, str):
        prior = PriorFile(prior)
    loaded = prior.load() if isinstance(prior, PriorFile) else prior
    if len(loaded.log_probs) != size:
        raise ValueError(
            f"prior={loaded.file or loaded.fingerprint!r} belongs to {loaded.model_name or 'another model'} "
            f"({len(loaded.log_probs)} tokens), and this model has {size} tokens; train one for it with "
            "'textguide prior train'"
        )
    return loaded.log_probs
