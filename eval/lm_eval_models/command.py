"""lm-eval's own command with textguide in it: all of its options, our models and our tasks by name.

lm-eval loads no plugins, so that ``lm_eval --model textguide`` is unknown to it; here the models are registered before
its command begins::

    python -m textguide.eval --model_args pretrained=smollm2,scale=1.5 --tasks lambada_mini --limit 100
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import lm_eval.config.evaluate_config as config
import lm_eval.tasks
import torch
from lm_eval._cli import HarnessCLI
from lm_eval.utils import setup_logging

from textguide.models.loading import checked_device
from textguide.support.errors import ModelUnavailableError
from textguide.tasks import catalogue
from textguide.tasks.manager import TaskManager, check_protected

from . import diffusion_lm, guided_lm  # noqa: F401  (the models register themselves)

NAME = "textguide"
_OTHER_COMMANDS = ("ls", "validate", "-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm-eval's command; returns the exit code.

    Args:
        argv: its arguments; ``--model`` is textguide where they name none. None: those of the process.

    0: done. 1: a model could not be loaded or a file not be written. 2: a wrong argument. 130: interrupted.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    setup_logging()
    managed, sys.argv = lm_eval.tasks.TaskManager, ["textguide.eval", *completed(given)]
    evaluator = config.EvaluatorConfig
    process = evaluator.process_tasks

    def process_tasks(self: Any, metadata: Any = None) -> Any:
        manager = process(self, metadata)
        names = [task if isinstance(task, str) else str(task.get("task", "")) for task in self.tasks]
        check_protected(names, manager)
        catalogue.check_run_options(
            names, write_out=self.write_out, cache_requests=bool(self.cache_requests), use_cache=self.use_cache
        )
        return manager

    lm_eval.tasks.TaskManager, evaluator.process_tasks = _tasks, process_tasks
    try:
        command = HarnessCLI()
        command.execute(command.parse_args())
        return 0
    except (ValueError, ModelUnavailableError, OSError) as error:
        print(f"textguide.eval: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("\ntextguide.eval: interrupted", file=sys.stderr)
        return 130
    finally:
        lm_eval.tasks.TaskManager, evaluator.process_tasks = managed, process


def completed(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``run`` in front, and with what neither the user nor a configuration file says.

    That is ``--model textguide``, and the processor where there is no GPU, which lm-eval takes for granted.
    """
    if not argv or argv[0] in _OTHER_COMMANDS:
        return list(argv) or ["--help"]
    rest = list(argv[1:]) if argv[0] == "run" else list(argv)

    def says(*options: str) -> bool:
        return any(word.partition("=")[0] in options for word in rest)

    if says("-h", "--help", "-C", "--config"):
        return ["run", *rest]
    if not says("--device") and not torch.cuda.is_available():
        rest = ["--device", str(checked_device(None)), *rest]
    return ["run", *([] if says("--model", "-M") else ["--model", NAME]), *rest]


def _tasks(include_path: Any = None, metadata: Any = None, **_: Any) -> TaskManager:
    """lm-eval's task manager, with our tasks in it; local files where ``TEXTGUIDE_DATA`` or ``data=`` says so."""
    values = dict(metadata or {})
    paths = [include_path] if isinstance(include_path, str) else list(include_path or ())
    return TaskManager(catalogue.data_folder(values.pop("data", None)), include=paths, metadata=values)
