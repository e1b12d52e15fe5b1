"""Textguide's part of the settings that an engine was started with, in ``additional_config``. Knows no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = "textguide"
"""The key of textguide's part in ``additional_config``, in ``extra_args`` and in the report of an answer."""


def ours_of(config: Any) -> Mapping[str, Any]:
    """Textguide's part of a ``VllmConfig``."""
    extras = getattr(config, "additional_config", None)
    return (extras.get(OURS) or {}) if isinstance(extras, dict) else {}


def constraints_of(config: Any) -> dict[str, str]:
    """The constraints that an engine was started with: the text that defines each, by name."""
    return dict(ours_of(config).get("constraints") or {})


def critics_of(config: Any) -> dict[str, str]:
    """The critics that an engine was started with: the import path of each, by name."""
    return dict(ours_of(config).get("critics") or {})


def priors_of(config: Any) -> dict[str, dict[str, Any]]:
    """The token priors that an engine was started with: file and fingerprint of each, by name."""
    return dict(ours_of(config).get("priors") or {})
