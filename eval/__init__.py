"""Measuring guidance: statistics, results folders, plots and comparisons of runs."""

# The names below are re-exported through __getattr__, which the linter cannot see.
# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captioning import CaptioningOptions, run_captioning
    from .compare import RunComparison, compare_folders, compare_runs
    from .diffusion_lm import DiffusionLM
    from .folder import claim
    from .guided_lm import GuidedLM
    from .journal import FolderInUseError, Journal
    from .machine import environment
    from .measures import MetricValue, measure
    from .paired import Comparison, compare_items
    from .results import RunResult, TaskResult, as_guidances
    from .statistics import (
        Interval,
        McNemar,
        PairedDifference,
        Selection,
        expected_calibration_error,
        flip_matrix,
        holm,
        mcnemar,
        mean_interval,
        paired_bootstrap,
        perplexity_interval,
        select_scale,
    )
    from .sweep import SweepOptions, run_sweep
    from .vllm_lm import VLLMGuidedLM

# Public names and the modules that hold them: imported on first use, so that `import textguide.eval` stays
# fast.
_HOMES = {
    "CaptioningOptions": "captioning",
    "Comparison": "paired",
    "DiffusionLM": "diffusion_lm",
    "FolderInUseError": "journal",
    "GuidedLM": "guided_lm",
    "Interval": "statistics",
    "Journal": "journal",
    "McNemar": "statistics",
    "MetricValue": "measures",
    "PairedDifference": "statistics",
    "RunComparison": "compare",
    "RunResult": "results",
    "Selection": "statistics",
    "SweepOptions": "sweep",
    "TaskResult": "results",
    "VLLMGuidedLM": "vllm_lm",
    "as_guidances": "results",
    "claim": "folder",
    "compare_items": "paired",
    "compare_folders": "compare",
    "compare_runs": "compare",
    "environment": "machine",
    "expected_calibration_error": "statistics",
    "flip_matrix": "statistics",
    "holm": "statistics",
    "mcnemar": "statistics",
    "mean_interval": "statistics",
    "measure": "measures",
    "paired_bootstrap": "statistics",
    "perplexity_interval": "statistics",
    "run_captioning": "captioning",
    "run_sweep": "sweep",
    "select_scale": "statistics",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
