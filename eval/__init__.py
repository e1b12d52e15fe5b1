"""Measuring guidance: statistics, results folders, plots and comparisons of runs."""

# The names below are re-exported through __getattr__, which the linter cannot see.
# ruff: noqa: F401

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .captions.captioning import run_captioning
    from .captions.options import CaptioningOptions
    from .lm_eval_models.diffusion_lm import DiffusionLM
    from .lm_eval_models.guided_lm import GuidedLM
    from .lm_eval_models.vllm_lm import VLLMGuidedLM
    from .reports.compare import RunComparison, compare_folders, compare_runs
    from .reports.run_folder import read_run, write_run
    from .results.folder import claim
    from .results.journal import FolderInUseError, Journal
    from .results.lm_eval_schema import run_to_dict
    from .results.machine import environment
    from .results.run import RunResult, TaskResult, as_guidances
    from .statistics.intervals import (
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
    from .statistics.measures import MetricValue, measure
    from .statistics.paired import Comparison, compare_items
    from .sweeps.options import SweepOptions
    from .sweeps.planning import PlannedWork, plan_sweep
    from .sweeps.sweep import run_sweep

# Public names and the modules that hold them: imported on first use, so that `import textguide.eval` stays
# fast.
_HOMES = {
    "CaptioningOptions": "captions.options",
    "Comparison": "statistics.paired",
    "DiffusionLM": "lm_eval_models.diffusion_lm",
    "FolderInUseError": "results.journal",
    "GuidedLM": "lm_eval_models.guided_lm",
    "Interval": "statistics.intervals",
    "Journal": "results.journal",
    "McNemar": "statistics.intervals",
    "MetricValue": "statistics.measures",
    "PairedDifference": "statistics.intervals",
    "PlannedWork": "sweeps.planning",
    "RunComparison": "reports.compare",
    "RunResult": "results.run",
    "Selection": "statistics.intervals",
    "SweepOptions": "sweeps.options",
    "TaskResult": "results.run",
    "VLLMGuidedLM": "lm_eval_models.vllm_lm",
    "as_guidances": "results.run",
    "claim": "results.folder",
    "compare_items": "statistics.paired",
    "compare_folders": "reports.compare",
    "compare_runs": "reports.compare",
    "environment": "results.machine",
    "expected_calibration_error": "statistics.intervals",
    "flip_matrix": "statistics.intervals",
    "holm": "statistics.intervals",
    "mcnemar": "statistics.intervals",
    "mean_interval": "statistics.intervals",
    "measure": "statistics.measures",
    "paired_bootstrap": "statistics.intervals",
    "perplexity_interval": "statistics.intervals",
    "plan_sweep": "sweeps.planning",
    "read_run": "reports.run_folder",
    "run_captioning": "captions.captioning",
    "run_sweep": "sweeps.sweep",
    "run_to_dict": "results.lm_eval_schema",
    "select_scale": "statistics.intervals",
    "write_run": "reports.run_folder",
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
