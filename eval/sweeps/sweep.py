"""The runner of tasks under many guidances: likelihoods under all of them come from one pass, texts from one run each.

:func:`run_sweep`, :func:`~textguide.eval.plan_sweep`, tuning and the comparison of methods are all made of it.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from textguide import tasks as task_room
from textguide.guidance import Guidance, as_guidance, split
from textguide.models.hub import offline_if_unreachable

from ..lm_eval_models.guided_lm import GuidedLM
from ..reports import drawing
from ..reports.run_folder import write_run
from ..results.folder import claim
from ..results.journal import JOURNAL, Journal
from ..results.run import RunResult, TaskResult, as_guidances, labels_of
from .options import SweepOptions
from .task_results import task_result

_NOT_IN_IDENTITY = ("data", "log_samples", "select_on", "plots")
"""Options that do not change an answer."""
_COPIED = (
    "configs", "versions", "n-samples", "n-shot", "higher_is_better", "groups", "group_subtasks", "git_hash",
    "transformers_version", "lm_eval_version",
)  # fmt: skip
"""Keys of lm-eval's results that are written unchanged."""


def run_sweep(
    tasks: Sequence[str],
    settings: Sequence[Guidance | None],
    *,
    output: Path | None = None,
    options: SweepOptions | None = None,
    model_args: Mapping[str, Any] | None = None,
    command: str = "",
) -> RunResult | None:
    """Evaluate ``tasks`` under every setting.

    Likelihood tasks run the model once for all settings, generation tasks once per setting.

    Args:
        tasks: names of tasks.
        settings: guidances, or what :func:`textguide.generate` accepts as one; None is plain decoding.
        output: results folder; an unfinished run with the same arguments is resumed. None: nothing is written.
        options: see :class:`SweepOptions`.
        model_args: arguments of :class:`GuidedLM` besides ``settings``: ``pretrained``, ``batch_size``, ``uncond``…;
            with ``backend="diffusion"`` those of :class:`DiffusionLM`, with ``backend="vllm"`` those of
            :class:`VLLMGuidedLM`.
        command: the command line, for the report.

    Returns:
        The result, also written to ``output``; None in a process that does not report (``accelerate launch``).

    Raises:
        ValueError: an argument is invalid; the message names it.
        MissingExtraError: a package that a task or the plots need is not installed.
    """
    sweep = Sweep.of(tasks, settings, options, model_args)
    task_room.check_run_options(list(tasks))
    if sweep.options.plots:
        drawing.require()
    if output is not None:
        claim(output, sweep.identity)
    lm = sweep.model()
    with _journal(lm, output, sweep.identity):
        runs = []
        for number in range(len(sweep.settings)):
            lm.current = number
            runs.append(sweep.evaluate(lm))
    if any(run is None for run in runs):
        return None
    result = sweep.result(lm, runs, command)
    if output is not None:
        samples = sweep.samples(runs) if sweep.options.log_samples else None
        write_run(result, output, samples=samples, plots=sweep.options.plots)
    return result


@dataclass(frozen=True)
class Sweep:
    """Tasks under settings, before anything is measured.

    Args:
        tasks: names of the tasks.
        settings: the guidances; None is plain decoding.
        labels: a name for each setting.
        options: how the sweep is run.
        model_args: arguments of the model.
        specs: the tasks as lm-eval accepts them.
        manager: lm-eval's task manager, which knows the tasks.
    """

    tasks: tuple[str, ...]
    settings: tuple[Guidance | None, ...]
    labels: tuple[str, ...]
    options: SweepOptions
    model_args: Mapping[str, Any]
    specs: Any
    manager: Any

    @classmethod
    def of(
        cls,
        tasks: Sequence[str],
        settings: Sequence[Any],
        options: SweepOptions | None,
        model_args: Mapping[str, Any] | None,
    ) -> Sweep:
        """The sweep that these arguments describe; see :func:`run_sweep`.

        Raises:
            ValueError: a task is unknown, or a setting occurs twice.
        """
        options = options or SweepOptions()
        guidances = [as_guidance(setting) for setting in settings]
        labels = labels_of(guidances)
        specs, manager = task_room.resolve(list(tasks), options.data, options.repeats)
        return cls(tuple(tasks), tuple(guidances), tuple(labels), options, dict(model_args or {}), specs, manager)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that two runs must share to be the same run, in JSON values. The batch size is not part of it."""
        described = {key: value for key, value in vars(self.options).items() if key not in _NOT_IN_IDENTITY}
        # Runs that were started before these options existed have identities without them.
        if self.options.gen_kwargs is None:
            del described["gen_kwargs"]
        if not self.options.first:
            del described["first"]
        labelled = list(zip(self.labels, self.settings, strict=True))
        return {
            "tasks": sorted(self.tasks),
            "guidances": as_guidances(labelled),
            "fingerprints": {label: setting.fingerprint for label, setting in labelled if setting is not None},
            "model": model_identity(self.model_args),
            **self._adapters(),
            **described,
        }

    def _adapters(self) -> dict[str, Any]:
        """Hashes of the adapters, since an adapter may be trained again under the same name."""
        folders = {getattr(split(setting).branching, "distilled", None) for setting in self.settings}
        folders.add(self.model_args.get("peft"))
        hashes = {}
        for folder in sorted(folder for folder in folders if folder):
            files = [path for path in sorted(Path(folder).glob("adapter_*")) if path.is_file()]
            content = b"".join(path.read_bytes() for path in files)
            hashes[folder] = hashlib.sha256(content).hexdigest()[:16]
        return {"adapters": hashes} if hashes else {}

    def model(self) -> Any:
        """lm-eval's model: for a masked diffusion model (``backend="diffusion"``), a vLLM engine (``"vllm"``), or a
        model that reads from left to right."""
        arguments = {name: value for name, value in self.model_args.items() if name != "backend"}
        lm = _model_class(self.model_args.get("backend"))(settings=self.settings, seed=self.options.seed, **arguments)
        if lm.uncond != "last-token":
            # Only a task knows which part of its requests an unconditional context leaves out.
            lm.tasks = dict(self.manager.load(self.specs)["tasks"])
        return lm

    def evaluate(self, lm: Any, predict_only: bool = False) -> dict[str, Any]:
        """lm-eval's results under the model's current setting.

        Args:
            lm: what :meth:`model` returned.
            predict_only: do not judge the answers.
        """
        import lm_eval

        options = self.options
        items: dict[str, Any] = {"limit": options.limit}
        if options.first:
            assert options.limit is not None
            numbers = list(range(options.first, options.first + options.limit))
            items = {"samples": dict.fromkeys(self.manager.load(self.specs)["tasks"], numbers)}
        with _quiet(), offline_if_unreachable():
            return lm_eval.simple_evaluate(
                model=lm,
                tasks=self.specs,
                task_manager=self.manager,
                num_fewshot=options.num_fewshot,
                gen_kwargs=options.gen_kwargs,
                **items,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=options.apply_chat_template,
                fewshot_as_multiturn=options.apply_chat_template,
                system_instruction=options.system_instruction,
                random_seed=options.seed,
                numpy_random_seed=options.seed,
                torch_random_seed=options.seed,
                fewshot_random_seed=options.seed,
                confirm_run_unsafe_code=options.confirm_run_unsafe_code or predict_only,
                predict_only=predict_only,
            )

    def result(self, lm: Any, runs: Sequence[dict[str, Any]], command: str) -> RunResult:
        """The result of the sweep.

        Args:
            lm: what :meth:`model` returned.
            runs: what :meth:`evaluate` returned, by setting.
            command: the command line, for the report.

        Raises:
            ValueError: no item was evaluated.
        """
        results = []
        for number, run in enumerate(runs):
            for name in run["samples"]:
                results.append(task_result(name, self.labels[number], self.settings[number], run, lm.effect(number)))
        if not results:
            raise ValueError(f"tasks={','.join(self.tasks)}: no item was evaluated; raise limit or choose other tasks")
        return RunResult.of(
            results,
            self.settings,
            self.identity,
            device=lm.device,
            dtype=lm.model.dtype,
            seed=self.options.seed,
            command=command,
            notes=[*_notes(lm, self.labels), *_limit_notes(results, self.options.limit)],
            lm_eval=self._lm_eval(runs[0]),
            select_on=self.options.select_on if len(self.settings) > 1 else None,
        )

    def samples(self, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """lm-eval's samples of all settings."""
        samples = []
        for label, run in zip(self.labels, runs, strict=True):
            for name, rows in run["samples"].items():
                for row in rows:
                    samples.append({"label": label, "task": name, **row})
        return samples

    def _lm_eval(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """What lm-eval's own files hold besides ``results``; ``config`` has every setting of the run."""
        options = self.options
        backend = self.model_args.get("backend")
        arguments = {key: value for key, value in self.model_args.items() if key not in ("batch_size", "device")}
        config = {
            "model": "textguide" if backend is None else f"textguide-{backend}",
            "model_args": {key: described(value) for key, value in arguments.items()},
            "batch_size": described(self.model_args.get("batch_size", 1)),
            "batch_sizes": [],
            "device": described(self.model_args.get("device")),
            "use_cache": None,
            "limit": options.limit,
            "num_fewshot": options.num_fewshot,
            "bootstrap_iters": 0,
            "gen_kwargs": options.gen_kwargs,
            "random_seed": options.seed,
            "numpy_seed": options.seed,
            "torch_seed": options.seed,
            "fewshot_seed": options.seed,
            "apply_chat_template": options.apply_chat_template,
            "system_instruction": options.system_instruction,
        }
        values = {
            **{key: run[key] for key in _COPIED if key in run},
            "system_instruction": options.system_instruction,
            "fewshot_as_multiturn": options.apply_chat_template,
            "config": config,
        }
        _drop_paths(values)
        return values


def model_identity(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model that may change its answers, in JSON values."""
    unimportant = ("batch_size", "device", "tokenizer")
    return {key: described(value) for key, value in model_args.items() if key not in unimportant}


def described(value: Any) -> Any:
    """An argument in JSON values; an object is represented by the name of its class."""
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in sorted(value.items())}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(type(value).__name__)


def _model_class(backend: str | None) -> Any:
    if backend == "diffusion":
        from ..lm_eval_models.diffusion_lm import DiffusionLM

        return DiffusionLM
    if backend == "vllm":
        from ..lm_eval_models.vllm_lm import VLLMGuidedLM

        return VLLMGuidedLM
    return GuidedLM


@contextmanager
def _journal(lm: Any, output: Path | None, identity: dict[str, Any]) -> Iterator[None]:
    """Let the model keep its answers in the journal of the folder."""
    if output is None:
        yield
        return
    # One journal per process: under accelerate each has its own share of the requests.
    path = output if lm.world_size == 1 else output / f"process-{lm.rank}"
    path.mkdir(parents=True, exist_ok=True)
    with Journal.open(path / JOURNAL, identity) as journal:
        if journal.resumed and lm.rank == 0:
            logging.getLogger("textguide").warning("resuming an earlier run with %d answers", journal.resumed)
        lm.use_memo(journal)
        yield


def _notes(lm: Any, labels: Iterable[str]) -> list[str]:
    notes = []
    if lm.uncond != "last-token":
        notes.append(f"The unconditional branch reads the {lm.uncond} version of each request.")
    if lm.truncated:
        notes.append(f"{lm.truncated} contexts were longer than the model's context window and cut from the left.")
    for number, label in enumerate(labels):
        effect = lm.effect(number)
        if effect is not None and effect.changes_distributions:
            notes.append(f"While generating under {label}: {effect}.")
    return notes


def _limit_notes(results: Iterable[TaskResult], limit: int | None) -> list[str]:
    """Tasks that have fewer items than the limit."""
    sizes = {result.task: result.metrics[result.primary].n for result in results}
    notes = []
    for task, size in sizes.items():
        if limit is not None and 0 < size < limit:
            notes.append(f"{task} has {size} items, and all of them were used: fewer than the limit of {limit}.")
    return notes


def _drop_paths(lm_eval: dict[str, Any]) -> None:
    """Remove the folders of this machine from lm-eval's configurations."""
    for config in lm_eval.get("configs", {}).values():
        for values in (config.get("metadata"), config.get("dataset_kwargs")):
            if isinstance(values, dict):
                values.pop("data", None)
                if "config_source" in values:
                    values["config_source"] = Path(str(values["config_source"])).name


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide lm-eval's notices but not its warnings, and keep it from describing the environment.

    For every setting it would ask pip for all installed packages, which takes seconds, and the answer is not used. It
    would also let git complain if the folder is not a repository.
    """
    from lm_eval import evaluator
    from torch.utils import collect_env

    logger = logging.getLogger("lm_eval")
    level = logger.level
    describe = collect_env.get_pretty_env_info
    commit = evaluator.get_git_commit_hash
    logger.setLevel(logging.ERROR)
    collect_env.get_pretty_env_info = str
    evaluator.get_git_commit_hash = _commit
    try:
        yield
    finally:
        logger.setLevel(level)
        collect_env.get_pretty_env_info = describe
        evaluator.get_git_commit_hash = commit


def _commit() -> str | None:
    """The commit of the current folder; None if it is not in a repository."""
    try:
        described = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, OSError):
        return None
    return described.stdout.strip()
