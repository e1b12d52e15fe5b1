"""From task names to what ``lm_eval.simple_evaluate`` takes."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
import yaml

from . import catalogue, filters  # noqa: F401  (the filters register themselves)

Spec = str | dict[str, Any]


class Resolved(NamedTuple):
    """The arguments ``tasks`` and ``task_manager`` of ``lm_eval.simple_evaluate``."""

    tasks: list[Spec]
    task_manager: lm_eval.tasks.TaskManager


class TaskManager(lm_eval.tasks.TaskManager):
    """lm-eval's task manager, quieter, and with a remedy in the error when the hub cannot be reached.

    Args:
        data: folder of the local files.
        lm_eval_tasks: know lm-eval's own tasks too.
        include: further folders with tasks.
        metadata: what lm-eval hands to the tasks.
    """

    def __init__(
        self,
        data: Path | None,
        lm_eval_tasks: bool = True,
        include: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        folders = [catalogue.ALWAYS_FOLDER, *([catalogue.LOCAL_FOLDER] if data is not None else [])]
        given = {**(metadata or {}), **({} if data is None else {"data": str(data)})}
        with _muted("overrides existing task"):
            super().__init__(
                include_path=[str(folder) for folder in (*folders, *include)],
                include_defaults=lm_eval_tasks,
                metadata=given,
            )

    def load(self, task_list: Any) -> Any:
        """Load tasks as lm-eval does.

        Raises:
            ValueError: the data of a task is neither in a data folder nor on a hub that can be reached.
        """
        try:
            with _muted("Custom kwargs can be passed"):
                return super().load(task_list)
        except (ConnectionError, FileNotFoundError) as error:
            specs = task_list if isinstance(task_list, (list, tuple)) else [task_list]
            named = ", ".join(spec if isinstance(spec, str) else spec["task"] for spec in specs)
            raise ValueError(
                f"tasks={named!r}: the data cannot be loaded from the hub ({type(error).__name__}: {error}); "
                f"connect to it, or name a folder with the files by --data FOLDER (data= in Python) or in "
                f"{catalogue.DATA_VARIABLE}"
            ) from error


@contextlib.contextmanager
def _muted(text: str) -> Iterator[None]:
    """Hold back lm-eval's warnings that contain ``text``: here they announce what is meant to happen."""
    loggers = [
        logging.getLogger(name) for name in ("lm_eval.api.task", "lm_eval.tasks._index", "lm_eval.tasks", "lm_eval")
    ]

    def wanted(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)


def task_manager(tasks: Sequence[str] | str, data: str | os.PathLike[str] | None = None) -> TaskManager:
    """A task manager that knows ``tasks``, after checking that it does. See :func:`resolve`."""
    manager = resolve(tasks, data).task_manager
    assert isinstance(manager, TaskManager)
    return manager


def resolve(
    tasks: Sequence[str] | str, data: str | os.PathLike[str] | None = None, repeats: int | None = None
) -> Resolved:
    """The public :func:`textguide.tasks.resolve`, which documents it."""
    wanted = _listed(tasks)
    folder = catalogue.data_folder(data)
    ours = catalogue.names()
    check_protected(wanted)
    # Reading lm-eval's own index takes ten seconds, so it is read only for a name that needs it.
    always = set(catalogue._names_in(catalogue.ALWAYS_FOLDER))
    foreign = [name for name in wanted if name not in always and not (folder is not None and name in ours)]
    manager = TaskManager(folder, lm_eval_tasks=bool(foreign))
    for name in foreign:
        _check_known(name, manager)
    specs: list[Spec] = list(wanted)
    if repeats is not None:
        specs = _repeated(wanted, manager, repeats)
    return Resolved(specs, manager)


def _listed(tasks: Sequence[str] | str) -> list[str]:
    parts = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    wanted = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not wanted:
        raise ValueError(
            f"tasks={tasks!r} names no task; use some of {', '.join(catalogue.names())}, or one of lm-eval's"
        )
    return wanted


def check_protected(names: Sequence[str], manager: lm_eval.tasks.TaskManager | None = None) -> None:
    """Refuse lm-eval's own versions of protected tasks, and groups that hold one.

    Raises:
        ValueError: one of ``names`` would store the questions of a protected task.
    """
    for name in names:
        if name in catalogue.PROTECTED_TASKS:
            continue
        if catalogue.is_protected(name):
            raise ValueError(
                f"tasks={name!r} would store GPQA's questions on the disk, which its authors ask not to do; "
                f"use {', '.join(catalogue.PROTECTED_TASKS)}"
            )
        known = manager is not None and name in manager.task_index
        hidden = sorted(leaf for leaf in _leaves(name, manager) if catalogue.is_protected(leaf)) if known else []
        if hidden:
            raise ValueError(
                f"tasks={name!r} contains {hidden[0]!r}, which would store GPQA's questions on the disk; "
                "name the other tasks of it one by one"
            )


def _check_known(name: str, manager: TaskManager) -> None:
    if name in manager.task_index:
        check_protected([name], manager)
        return
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return
    near = difflib.get_close_matches(name, catalogue.names(), n=3, cutoff=0.6)
    near += [
        other for other in difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6) if other not in near
    ]
    nearest = f"the nearest names are {', '.join(near)}" if near else "no name comes near it"
    raise ValueError(
        f"tasks={name!r} is unknown here and to lm-eval; {nearest} (ours: {', '.join(catalogue.names())}; "
        "`lm_eval ls tasks` lists lm-eval's)"
    )


def _leaves(name: str, manager: Any) -> set[str]:
    """The names below a group or tag of lm-eval's index, itself included."""
    found: set[str] = set()
    waiting: list[Any] = [name]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            below = item.get("task", [])
            waiting += below if isinstance(below, list) else [below]
            item = item.get("group")
        if not isinstance(item, str) or item in found:
            continue
        found.add(item)
        entry = manager.task_index.get(item)
        if entry is not None:
            below = (entry.cfg or {}).get("task", [])
            waiting += below if isinstance(below, list) else []
            if entry.yaml_path is None:  # a tag: its members are in `tags`; a task's `tags` are the tags it bears
                waiting += sorted(entry.tags)
    return found


def _repeated(wanted: Sequence[str], manager: TaskManager, repeats: int) -> list[Spec]:
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ValueError(f"repeats={repeats!r} must be a whole number of at least 1")
    if not set(wanted) & set(catalogue.REPEATED_TASKS):
        raise ValueError(
            f"repeats={repeats!r} is for {', '.join(catalogue.REPEATED_TASKS)}, and "
            f"tasks={','.join(wanted)!r} names none of them; leave repeats unset"
        )
    return [_with_repeats(name, manager, repeats) if name in catalogue.REPEATED_TASKS else name for name in wanted]


def _with_repeats(name: str, manager: TaskManager, repeats: int) -> dict[str, Any]:
    path = manager.task_index[name].yaml_path
    assert path is not None
    config = load_config(Path(path))
    config["repeats"] = repeats
    if name == "humaneval":
        metric = dict(config["metric_list"][0])
        metric["k"] = sorted({1, repeats, *(k for k in (10, 100) if k < repeats)})
        config["metric_list"] = [metric]
        if repeats > 1:
            # The paper's settings for many samples; greedy decoding would give one program over and over.
            config["generation_kwargs"] |= {"do_sample": True, "temperature": 0.2, "top_p": 0.95}
    elif any(step["function"] == "majority_vote" for found in config["filter_list"] for step in found["filter"]):
        first = config["filter_list"][0]
        steps = [step for step in first["filter"] if step["function"] != "take_first"]
        vote = [*steps, {"function": "majority_vote"}, {"function": "take_first"}]
        config["filter_list"] = [first, {"name": f"maj@{repeats}", "filter": vote}]
    return config


def load_config(path: Path) -> dict[str, Any]:
    """The configuration in a task YAML, its ``include`` merged and its ``!function`` names imported."""

    class Loader(yaml.SafeLoader):
        pass

    def imported(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        module, _, function = str(loader.construct_scalar(node)).rpartition(".")
        return getattr(__import__(module, fromlist=[function]), function)

    Loader.add_constructor("!function", imported)
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    included = config.pop("include", None)
    return config if included is None else {**load_config(path.parent / included), **config}
