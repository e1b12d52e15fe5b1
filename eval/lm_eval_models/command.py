"""lm-eval's own command with textguide's models and tasks.

lm-eval does not load plugins, so it does not know ``lm_eval --model textguide``; here the models are registered before
its command starts::

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

from . import diffusion_lm, guided_lm  # noqa: F401  (importing them registers the models)

NAME = "textguide"
_OTHER_COMMANDS = ("ls", "validate", "-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm-eval's command.

    Args:
        argv: its arguments; None: those of the process. If they do not name a ``--model``, it is textguide.

    Returns:
        The exit code. 0: success. 1: a model could not be loaded, or a file could not be written. 2: an argument is
        wrong. 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    setup_logging()
    sys.argv = ["textguide.eval", *completed(arguments)]
    # lm-eval's command does not accept a task manager, so its class and the function that uses it are replaced.
    evaluator = config.EvaluatorConfig
    manager_class = lm_eval.tasks.TaskManager
    process = evaluator.process_tasks

    def process_tasks(self: Any, metadata: Any = None) -> Any:
        manager = process(self, metadata)
        names = [task if isinstance(task, str) else str(task.get("task", "")) for task in self.tasks]
        check_protected(names, manager)
        catalogue.check_run_options(
            names, write_out=self.write_out, cache_requests=bool(self.cache_requests), use_cache=self.use_cache
        )
        return manager

    lm_eval.tasks.TaskManager = _task_manager
    evaluator.process_tasks = process_tasks
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
        lm_eval.tasks.TaskManager = manager_class
        evaluator.process_tasks = process


def completed(argv: Sequence[str]) -> list[str]:
    """The arguments after ``run``, completed by options that neither the user nor a configuration file sets.

    These are ``--model textguide``, and ``--device`` if there is no GPU, since lm-eval assumes one.
    """
    if not argv or argv[0] in _OTHER_COMMANDS:
        return list(argv) or ["--help"]
    rest = list(argv[1:]) if argv[0] == "run" else list(argv)
    names = {word.partition("=")[0] for word in rest}
    if names & {"-h", "--help", "-C", "--config"}:
        return ["run", *rest]
    if "--device" not in names and not torch.cuda.is_available():
        rest = ["--device", str(checked_device(None)), *rest]
    if not names & {"--model", "-M"}:
        rest = ["--model", NAME, *rest]
    return ["run", *rest]


def _task_manager(include_path: Any = None, metadata: Any = None, **_: Any) -> TaskManager:
    """lm-eval's task manager with textguide's tasks, which read the folder of ``TEXTGUIDE_DATA`` or ``data=``."""
    values = dict(metadata or {})
    paths = [include_path] if isinstance(include_path, str) else list(include_path or ())
    return TaskManager(catalogue.data_folder(values.pop("data", None)), include=paths, metadata=values)
