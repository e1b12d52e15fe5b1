"""What of ours an engine was started with, which vLLM carries in ``additional_config``. Knows no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS = "textguide"
"""The key of ``additional_config``, of the ``extra_args`` in which a checked request travels to the engine, and of the
answer's ``kv_transfer_params``."""


def ours_of(config: Any) -> Mapping[str, Any]:
    """Our part of a ``VllmConfig``."""
    extras = getattr(config, "additional_config", None)
    return (extras.get(OURS) or {}) if isinstance(extras, dict) else {}


def constraints_of(config: Any) -> dict[str, str]:
    """The constraints that an engine was started with: what is written for each, by its name."""
    return dict(ours_of(config).get("constraints") or {})


def critics_of(config: Any) -> dict[str, str]:
    """The critics that an engine was started with: where each is found, by its name."""
    return dict(ours_of(config).get("critics") or {})
