"""The token priors of an engine: it is started with files, and requests only name them. Knows no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from textguide.guidance import TokenPrior
from textguide.guidance.priors import BUNDLED, Prior, PriorFile, SparsePrior
from textguide.support.checks import brief


def described(priors: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The priors that an engine is started with, as plain values, by name.

    Args:
        priors: a file, or the name of a bundled prior, by name.

    Raises:
        ValueError: one cannot be read.
    """
    values = {}
    for name, file in priors.items():
        prior = Prior.load(file)
        path = file if file in BUNDLED and not Path(file).exists() else str(Path(file).resolve())
        values[name] = PriorFile(path, prior.fingerprint).to_dict()
    return values


def named_prior(guidance: Any, priors: Mapping[str, Mapping[str, Any]]) -> Any:
    """A guidance whose prior is the name of one of the engine's priors, if it has a prior that is an object.

    Args:
        guidance: any guidance, or None.
        priors: those of the engine, from :func:`described`.

    Raises:
        ValueError: the engine does not have the prior.
    """
    if not isinstance(guidance, TokenPrior) or isinstance(guidance.prior, (str, SparsePrior)):
        return guidance
    fingerprint = guidance.prior.fingerprint
    for name, values in priors.items():
        if values["fingerprint"] == fingerprint:
            return replace(guidance, prior=name)
    raise ValueError(_refusal(guidance.prior, priors))


def with_engine_prior(guidance: Any, priors: Mapping[str, Mapping[str, Any]], vocabulary: int | None) -> Any:
    """The guidance of a request with the engine's prior that it names.

    Args:
        guidance: any guidance, or None.
        priors: those of the engine, from :func:`described`.
        vocabulary: number of tokens of the model; None: not known, so that nothing is loaded.

    Raises:
        ValueError: it names a file or an unknown prior, or the prior belongs to another vocabulary.
    """
    if not isinstance(guidance, TokenPrior):
        return guidance
    if isinstance(guidance.prior, str) and guidance.prior in priors:
        guidance = replace(guidance, prior=PriorFile(**priors[guidance.prior]))
    elif isinstance(guidance.prior, str) and guidance.prior in BUNDLED:
        guidance = replace(guidance, prior=PriorFile(str(BUNDLED[guidance.prior])))
    elif not isinstance(guidance.prior, SparsePrior):
        raise ValueError(_refusal(guidance.prior, priors))
    if vocabulary is not None:
        guidance.check_vocabulary(vocabulary)
    return guidance


def _refusal(prior: Any, priors: Mapping[str, Any]) -> str:
    names = ", ".join([*priors, *BUNDLED])
    return (
        f"prior={brief(prior)} is not a prior of this engine, which has {names}; name it when the engine starts: "
        "textguide serve MODEL --prior NAME=FILE, or textguide.vllm_engine(priors=…)"
    )
