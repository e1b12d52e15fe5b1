"""Scoring a model under many guidances on lm-eval's tasks, with likelihoods from one pass for all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from textguide import tasks as task_room
from textguide.guidance import Guidance, as_guidance

from ..lm_eval_models.guided_lm import GuidedLM
from ..reports.run_folder import write_run
from ..results.folder import claim
from ..results.journal import Journal
from ..results.machine import environment
from ..results.run import RunResult, TaskResult, as_guidances
from ..statistics.measures import MetricValue, measure
from .options import SweepOptions, described, identity_of, labels_of
from .priors import METRIC, prior_matched

# Metrics whose value is no mean over items, and how it is made from them.
KINDS = {
    "perplexity": "perplexity",
    "word_perplexity": "perplexity",
    "byte_perplexity": "perplexity",
    "bits_per_byte": "bits",
}


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

    Likelihood tasks run the model once for all settings; generation tasks once a setting.

    Args:
        tasks: task names.
        settings: guidances, or what :func:`textguide.generate` takes as one; None is plain decoding.
        output: results folder. A killed run with the same arguments goes on where it was. None keeps nothing.
        options: see :class:`SweepOptions`.
        model_args: arguments of :class:`GuidedLM` beside ``settings``: ``pretrained``, ``batch_size``, ``uncond``…;
            with ``backend="diffusion"`` those of :class:`DiffusionLM`, with ``backend="vllm"`` those of
            :class:`VLLMGuidedLM`.
        command: the command line, for the report.

    Returns:
        The result, also written to ``output``; None in a process that does not report (``accelerate launch``).

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.
    """
    options = options or SweepOptions()
    settings = [as_guidance(setting) for setting in settings]
    labels = labels_of(settings)
    specs, manager = task_room.resolve(list(tasks), options.data, options.repeats)
    task_room.check_run_options(list(tasks))
    arguments = dict(model_args or {})
    identity = identity_of(tasks, settings, options, arguments)
    if output is not None:
        claim(output, identity)
    lm = model_for(settings, options.seed, arguments, specs, manager)
    with _memo(lm, output, identity):
        runs = []
        for number in range(len(settings)):
            lm.current = number
            runs.append(evaluate(lm, specs, manager, options))
    if any(run is None for run in runs):
        return None
    results = [
        _task_result(name, labels[n], settings[n], run, lm, n) for n, run in enumerate(runs) for name in run["samples"]
    ]
    if not results:
        raise ValueError(f"tasks={','.join(tasks)}: no item was evaluated; raise limit or choose other tasks")
    versions, machine = environment()
    result = RunResult(
        tasks=results,
        guidances=as_guidances(list(zip(labels, settings, strict=True))),
        identity=identity,
        fingerprints=identity["fingerprints"],
        seed=options.seed,
        versions=versions,
        machine={**machine, "device": str(lm.device), "dtype": str(lm.model.dtype)},
        command=command,
        notes=[*_notes(lm, labels), *_short(results, options.limit)],
        lm_eval=_theirs(runs[0], arguments, options),
        select_on=options.select_on if len(settings) > 1 else None,
    )
    _drop_paths(result.lm_eval)
    if output is not None:
        samples = None
        if options.log_samples:
            samples = [
                {"label": labels[n], "task": name, **sample}
                for n, run in enumerate(runs)
                for name, rows in run["samples"].items()
                for sample in rows
            ]
        write_run(result, output, samples=samples, plots=options.plots)
    return result


def model_for(settings: Sequence[Any], seed: int, arguments: Mapping[str, Any], specs: Any, manager: Any) -> Any:
    """lm-eval's model: ``backend="diffusion"`` for a masked diffusion model, ``"vllm"`` for an engine, else one that
    reads left to right. It knows the tasks where an unconditional context leaves out what they say."""
    options = {name: value for name, value in arguments.items() if name != "backend"}
    lm = _class_of(arguments.get("backend"))(settings=settings, seed=seed, **options)
    if lm.uncond != "last-token":
        lm.tasks = dict(manager.load(specs)["tasks"])
    return lm


def _class_of(backend: str | None) -> Any:
    if backend == "diffusion":
        from ..lm_eval_models.diffusion_lm import DiffusionLM

        return DiffusionLM
    if backend == "vllm":
        from ..lm_eval_models.vllm_lm import VLLMGuidedLM

        return VLLMGuidedLM
    return GuidedLM


def evaluate(
    lm: GuidedLM, specs: Any, manager: Any, options: SweepOptions, predict_only: bool = False
) -> dict[str, Any]:
    """lm-eval's results under the current setting; with ``predict_only`` answers are not judged."""
    import lm_eval

    some: dict[str, Any] = {"limit": options.limit}
    if options.first:
        assert options.limit is not None
        rows = list(range(options.first, options.first + options.limit))
        some = {"samples": dict.fromkeys(manager.load(specs)["tasks"], rows)}
    with _quiet():
        return lm_eval.simple_evaluate(
            model=lm,
            tasks=specs,
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            gen_kwargs=options.gen_kwargs,
            **some,
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


def _task_result(
    name: str, label: str, setting: Guidance | None, run: dict[str, Any], lm: GuidedLM, number: int
) -> TaskResult:
    raw = {key: value for key, value in run["results"][name].items() if key != "alias"}
    rows: dict[str, list[dict[str, Any]]] = {}
    for sample in sorted(run["samples"][name], key=lambda sample: sample["doc_id"]):
        rows.setdefault(str(sample.get("filter", "none")), []).append(sample)
    better = run.get("higher_is_better", {}).get(name, {})
    metrics: dict[str, MetricValue] = {}
    items: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for key in sorted((k for k in raw if "," in k and "_stderr" not in k), key=_rank):
        metric, filtered = key.split(",", 1)
        samples = rows.get(filtered, [])
        values, sizes = _values(metric, samples)
        higher = better.get(metric)
        if values is not None:
            found = measure(values, kind=KINDS.get(metric, "mean"), weights=sizes, higher_is_better=higher)
            if _agree(found.value, raw[key]):
                metrics[key], items[key] = found, values
                if sizes is not None:
                    weights[key] = sizes
                continue
        stderr = raw.get(f"{metric}_stderr,{filtered}")
        metrics[key] = MetricValue.given(
            float(raw[key]), stderr if isinstance(stderr, float) else None, len(samples), higher
        )
    first = next(iter(rows.values()))
    extra: dict[str, Any] = {}
    effect = lm.effect(number)
    if effect is not None:
        extra["effect"] = effect.to_dict()
    matched = prior_matched(first) if "acc,none" in items else None
    if matched is not None:
        items[f"{METRIC},none"] = matched.right
        metrics[f"{METRIC},none"] = measure(matched.right)
        extra["prior"] = {"before": matched.prior, "log_weights": matched.weights}
    return TaskResult(
        task=name,
        label=label,
        scale=getattr(setting, "scale", 1.0 if setting is None else None),
        metrics=metrics,
        items=items,
        weights=weights,
        item_ids=_ids(first),
        confidences=_confidences(first),
        raw=raw,
        extra=extra,
    )


def _values(metric: str, samples: list[dict[str, Any]]) -> tuple[Any, Any]:
    """One number an item, and its weight; None where the metric is not made of such numbers."""
    found = [sample.get(metric) for sample in samples]
    if not found:
        return None, None
    sign = -1.0 if metric in KINDS else 1.0
    if all(isinstance(value, (bool, int, float)) for value in found):
        return sign * np.asarray(found, dtype=np.float64), None
    if metric in KINDS and all(isinstance(value, (tuple, list)) and len(value) == 2 for value in found):
        pairs = np.asarray(found, dtype=np.float64)
        return sign * pairs[:, 0], pairs[:, 1]
    return None, None


def _agree(ours: float | None, theirs: Any) -> bool:
    """Whether the mean over items is what lm-eval reports; if not, the metric is of another kind."""
    if ours is None or not isinstance(theirs, (int, float)):
        return False
    return math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-9)


def _rank(key: str) -> tuple[int, str]:
    """Accuracies first: the first metric is the one that plots and the choice of a setting use."""
    metric = key.split(",", 1)[0]
    return (2 if metric in KINDS else 1 if metric.endswith("_norm") else 0, "" if metric == "acc" else key)


def _ids(samples: list[dict[str, Any]]) -> tuple[str, ...]:
    hashes = [str(sample.get("doc_hash", "")) for sample in samples]
    if len(set(hashes)) == len(hashes):
        return tuple(hashes)
    return tuple(str(sample["doc_id"]) for sample in samples)


def _confidences(samples: list[dict[str, Any]]) -> Any:
    """The probability of the chosen answer among the choices, for multiple choice; else None."""
    confidences = []
    for sample in samples:
        answers = sample.get("filtered_resps", [])
        if len(answers) < 2 or not all(isinstance(a, (tuple, list)) and len(a) == 2 for a in answers):
            return None
        scores = np.asarray([float(a[0]) for a in answers])
        if not np.isfinite(scores).any():
            return None
        shares = np.exp(scores - scores.max())
        confidences.append(float(shares.max() / shares.sum()))
    return np.asarray(confidences)


@contextmanager
def _memo(lm: GuidedLM, output: Path | None, identity: dict[str, Any]) -> Iterator[None]:
    if output is None:
        yield
        return
    # One journal a process: under accelerate each has its own share of the requests.
    path = output if lm.world_size == 1 else output / f"process-{lm.rank}"
    path.mkdir(parents=True, exist_ok=True)
    with Journal.open(path / "journal.jsonl", identity) as journal:
        if journal.resumed and lm.rank == 0:
            logging.getLogger("textguide").warning("going on with %d answers of an earlier run", journal.resumed)
        lm.use_memo(journal)
        yield


def _notes(lm: GuidedLM, labels: Iterable[str]) -> list[str]:
    notes = []
    if lm.uncond != "last-token":
        notes.append(f"The unconditional branch reads the {lm.uncond} version of each request.")
    if lm.truncated:
        notes.append(f"{lm.truncated} contexts were longer than the model and cut from the left.")
    for number, label in enumerate(labels):
        effect = lm.effect(number)
        if effect is not None and effect.guided_steps:
            notes.append(f"While generating under {label}: {effect}.")
    return notes


def _short(results: Iterable[TaskResult], limit: int | None) -> list[str]:
    """Tasks that have fewer items than were asked for."""
    sizes = {result.task: result.metrics[result.primary].n for result in results}
    return [
        f"{task} has {size} items, and all of them were used: fewer than the limit of {limit}."
        for task, size in sizes.items()
        if limit is not None and 0 < size < limit
    ]


_KEPT = (
    "configs", "versions", "n-samples", "n-shot", "higher_is_better", "groups", "group_subtasks", "git_hash",
    "transformers_version", "lm_eval_version",
)  # fmt: skip
"""What of lm-eval's results is kept as it is."""


def _theirs(run: Mapping[str, Any], arguments: Mapping[str, Any], options: SweepOptions) -> dict[str, Any]:
    """What lm-eval's own files hold beside ``results``; ``config`` has every setting of the run."""
    seed = options.seed
    config = {
        "model": f"textguide{'-' + arguments['backend'] if 'backend' in arguments else ''}",
        "model_args": {k: described(value) for k, value in arguments.items() if k not in ("batch_size", "device")},
        "batch_size": described(arguments.get("batch_size", 1)),
        "batch_sizes": [],
        "device": described(arguments.get("device")),
        "use_cache": None,
        "limit": options.limit,
        "num_fewshot": options.num_fewshot,
        "bootstrap_iters": 0,
        "gen_kwargs": options.gen_kwargs,
        "random_seed": seed, "numpy_seed": seed, "torch_seed": seed, "fewshot_seed": seed,
        "apply_chat_template": options.apply_chat_template,
        "system_instruction": options.system_instruction,
    }  # fmt: skip
    chat = {"system_instruction": options.system_instruction, "fewshot_as_multiturn": options.apply_chat_template}
    return {**{key: run[key] for key in _KEPT if key in run}, **chat, "config": config}


def _drop_paths(lm_eval: dict[str, Any]) -> None:
    """Leave the folders of this machine out of what is written."""
    for config in lm_eval.get("configs", {}).values():
        for values in (config.get("metadata"), config.get("dataset_kwargs")):
            if isinstance(values, dict):
                values.pop("data", None)
                if "config_source" in values:
                    values["config_source"] = Path(str(values["config_source"])).name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notices off the terminal; its warnings pass. It would also ask pip for every package, for each
    setting anew, which takes seconds and is not kept."""
    from torch.utils import collect_env

    logger = logging.getLogger("lm_eval")
    before, described = logger.level, collect_env.get_pretty_env_info
    logger.setLevel(logging.ERROR)
    collect_env.get_pretty_env_info = str
    try:
        yield
    finally:
        logger.setLevel(before)
        collect_env.get_pretty_env_info = described
