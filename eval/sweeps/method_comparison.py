"""Every method on the same tasks, in one table: ``textguide eval --suite methods``.

Each method runs under a few settings. On every task, the setting is chosen on the first half of the items and reported
on the second half, next to plain decoding on the same items; p-values are adjusted over the methods of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from textguide.guidance import (
    APG,
    CAIF,
    CFG,
    NAG,
    SLED,
    AnnealedCFG,
    BetaCFG,
    Composed,
    ContrastiveDecoding,
    DeCoRe,
    DExperts,
    DoLa,
    DynamicCFG,
    EAGer,
    ExpertEnsemble,
    FeynmanKac,
    GenARM,
    Guidance,
    IndependentCondition,
    InstructionContrastive,
    PowerSampling,
    ProxyTuning,
    S2Guidance,
    Steering,
    TokenPerturbation,
)
from textguide.guidance.spec import label as label_of
from textguide.guidance.spec import parse
from textguide.models import bundled, load
from textguide.support.files import write_json, write_text

from ..reports import drawing
from ..reports.markdown import method_report
from ..results.run import RunResult, TaskResult
from ..statistics.intervals import Interval, select_scale
from ..statistics.paired import Comparison, adjust, compare_items
from .costs import Cost, token_costs
from .options import SweepOptions
from .sweep import run_sweep

SETTINGS: dict[str, tuple[Guidance, ...]] = {
    "cfg": (CFG(1.25), CFG(1.5), CFG(2.0)),
    "apg": (APG(1.5), APG(2.0), APG(3.0)),
    "beta-cfg": (BetaCFG(1.5), BetaCFG(1.25, power=0.0), BetaCFG(1.0, a=1.0, b=1.0)),
    "nag": (NAG(3.0), NAG(5.0), NAG(8.0)),
    "annealed": (AnnealedCFG(1.5), AnnealedCFG(2.0), AnnealedCFG(3.0)),
    "dynamic": (DynamicCFG(budget=0.1), DynamicCFG(budget=0.5), DynamicCFG(budget=1.0)),
    "independent-condition": (IndependentCondition(1.25), IndependentCondition(1.5), IndependentCondition(2.0)),
    "token-perturbation": (TokenPerturbation(1.25), TokenPerturbation(1.5), TokenPerturbation(2.0)),
    "instruction-contrastive": (InstructionContrastive(1.25), InstructionContrastive(1.5), InstructionContrastive(2.0)),
    "dola": (DoLa(), DoLa(beta=0.25), DoLa(0.0, beta=0.25)),
    "decore": (DeCoRe(), DeCoRe(cap=1.0), DeCoRe(0.5, count=30)),
    "sled": (SLED(), SLED(0.5), SLED(1.0, None)),
    "s2": (S2Guidance(1.5), S2Guidance(1.0), S2Guidance(1.0, weight=0.5)),
    "caif": (CAIF("sentiment", "positive", 3.0), CAIF("sentiment", "positive", 10.0)),
    "contrastive": (ContrastiveDecoding(), ContrastiveDecoding(beta=0.5), ContrastiveDecoding(0.0, beta=0.25)),
    "dexperts": (DExperts(1.0), DExperts(2.0)),
    "proxy-tuning": (ProxyTuning(1.0), ProxyTuning(2.0)),
    "steering": tuple(Steering("smollm2-positive", 18, strength) for strength in (2.0, 4.0, 8.0)),
    "genarm": (GenARM(beta=2.0), GenARM(beta=1.0)),
    "expert-ensemble": (ExpertEnsemble(("good",)), ExpertEnsemble(("good",), (1.0, 9.0))),
    "feynman-kac": (Composed((CFG(1.5), FeynmanKac(particles=4))),),
    "power-sampling": (PowerSampling(2.0, 4), PowerSampling(4.0, 4)),
    "eager": (EAGer(2.2, max_branches=4),),
}
"""The settings of each method, which were fixed before anything was measured."""

ELSEWHERE = {
    "value": "needs a head that its user trains: methods/value.md",
    "gradient-free-classifier": "needs prompts that describe other classes, which tasks do not have",
    "context-aware": "needs a document, which its user chooses",
    "corrsynth": "contrasts texts that are written together, and cannot score single texts",
    "formula": "contains the other methods",
    "awrs": "rules out texts instead of steering them: results/constrained",
    "acfg": "is for masked diffusion: results/diffusion",
    "lm": "is for captions: results/captioning",
    "vcd": "changes the image: methods/vcd.md",
    "reward": "needs a reward model, and none is bundled; with a classifier's log-probability as reward it is caif",
}
"""Methods that are not in the suite, and the reason."""

for _name, _method in Guidance.registry.items():
    # Newer methods describe their settings, or the reason for having none, in their class.
    _compared = _method.about.compared if hasattr(_method, "about") else ()
    if isinstance(_compared, str):
        ELSEWHERE[_name] = _compared
    elif _compared:
        SETTINGS[_name] = tuple(parse(text) for text in _compared)

PARTS = {
    "scored": ("lambada_openai", "arc_easy", "piqa"),
    "answered": ("triviaqa",),
    "continued": ("continuations_positive",),
}
"""The tasks, by the folder of their run."""

ANSWERED: dict[str, Any] = {"limit": 100, "num_fewshot": 4, "gen_kwargs": {"max_gen_toks": 16}}
"""Options of triviaqa: few items, since writing a text costs a hundred times as much as scoring one, and four examples,
since SmolLM2 does not answer without them. The dtype is bfloat16, unless the model arguments name another one."""

COLUMNS = (
    ("lambada_openai", "acc,none"), ("arc_easy", "acc,none"), ("piqa", "acc,none"),
    ("triviaqa", "exact_match,remove_whitespace"), ("continuations_positive", "positive,all"),
    ("continuations_positive", "distinct_2,all"),
)  # fmt: skip
ONLY_CONTINUED = (
    "caif",
    "dexperts",
    "proxy-tuning",
    "genarm",
    "expert-ensemble",
    "feynman-kac",
    "power-sampling",
    "eager",
)
"""Methods that run only on continuations: those that steer towards positive texts, and those that draw several texts
for one answer."""

MODELS = {
    "contrastive": {"amateur": "smollm2-small"},
    "dexperts": {"expert": "smollm2-small-positive", "anti-expert": "smollm2-small-negative"},
    "proxy-tuning": {"tuned": "smollm2-small-positive", "untuned": "smollm2-small"},
    "steering": {},
    "genarm": {"reward": "smollm2-small-positive"},
    "expert-ensemble": {"good": "smollm2-small-positive"},
}
"""Methods that only work with SmolLM2, and their further models, which have SmolLM2's vocabulary (steering needs a
vector of that model instead)."""


@dataclass(frozen=True)
class Cell:
    """One method on one metric: the setting that was chosen on the first half of the items, on the second half.

    Args:
        setting: label of the setting.
        value: its mean on the second half, with interval.
        against: its difference to plain decoding there.
    """

    setting: str
    value: Interval
    against: Comparison

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in ``methods.json``."""
        return {
            "setting": self.setting,
            "value": self.value._asdict(),
            "difference": self.against.difference,
            "low": self.against.low,
            "high": self.against.high,
            "p_holm": self.against.p_holm,
        }


def compare_methods(
    *,
    output: Path,
    options: SweepOptions | None = None,
    model_args: Mapping[str, Any] | None = None,
    methods: Iterable[str] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run the suite, and write ``methods.md``, ``methods.json`` and ``methods.png`` next to the runs of the suite.

    Args:
        output: folder; an unfinished suite is resumed.
        options: ``limit`` is the number of items per task, at most that of :data:`ANSWERED` for triviaqa.
        model_args: as for :func:`run_sweep`.
        methods: names in :data:`SETTINGS`; default: all.
        command: the command line, for the report.

    Returns:
        The content of ``methods.json``.

    Raises:
        ValueError: a method is not in the suite.
    """
    arguments = dict(model_args or {})
    names = _names(methods, arguments)
    runs = _runs(names, output, options or SweepOptions(), arguments, command)
    results = {(task.task, task.label): task for run in runs for task in run.tasks}
    costs = _costs(names, arguments)
    plain = {}
    items = {}
    cells: dict[str, dict[str, Any]] = {name: {} for name in names}
    for task, metric in COLUMNS:
        values = results[task, "plain"].items[metric]
        items[task] = len(values)
        plain[f"{task}/{metric}"] = select_scale({"plain": values}, "first-half").reported._asdict()
        for name, cell in _column(results, names, task, metric).items():
            cells[name][f"{task}/{metric}"] = cell.to_dict()
    comparison = {
        "command": command,
        "versions": runs[0].versions,
        "machine": runs[0].machine,
        "items": items,
        "plain": plain,
        "methods": cells,
        "cost": {name: vars(cost) for name, cost in costs.items()},
    }
    write_json(output / "methods.json", comparison)
    report = method_report(comparison, ELSEWHERE, ANSWERED["num_fewshot"])
    if drawing.available():
        drawing.save(drawing.draw_differences(comparison), output / "methods.png")
        report += "\n![differences to plain decoding](methods.png)\n"
    write_text(output / "methods.md", report)
    return comparison


def _names(methods: Iterable[str] | None, model_args: Mapping[str, Any]) -> list[str]:
    """The methods to compare.

    Raises:
        ValueError: a method is not in the suite, or needs the further models of another model.
    """
    is_bundled = model_args.get("pretrained", bundled.NAME) == bundled.NAME
    if methods is None:
        return [name for name in SETTINGS if is_bundled or name not in MODELS]
    names = list(methods)
    for name in names:
        if name in ELSEWHERE:
            raise ValueError(f"methods={name!r} is not in the suite, because it {ELSEWHERE[name]}")
        if name not in SETTINGS:
            raise ValueError(f"methods={name!r} is not in the suite; use one of {', '.join(SETTINGS)}")
        if name in MODELS and not is_bundled:
            raise ValueError(
                f"methods={name!r} needs further models that exist only for {bundled.NAME}; leave out the method or "
                "--model"
            )
    return names


def _runs(
    names: Sequence[str], output: Path, options: SweepOptions, model_args: Mapping[str, Any], command: str
) -> list[RunResult]:
    """One sweep per part of the tasks, and another one for the methods that need further models."""
    runs = []
    for folder, tasks in PARTS.items():
        part_options = options
        part_args = dict(model_args)
        if folder == "answered":
            limit = min(options.limit or ANSWERED["limit"], ANSWERED["limit"])
            part_options = replace(options, **{**ANSWERED, "limit": limit})
            part_args = {"dtype": "bfloat16", **part_args}
        members = [name for name in names if folder == "continued" or name not in ONLY_CONTINUED]
        for suffix, methods in _by_models(members).items():
            models = _models(methods)
            run = run_sweep(
                tasks,
                [None, *(setting for name in methods for setting in SETTINGS[name])],
                output=output / (folder + suffix),
                options=part_options,
                model_args={**part_args, "models": models} if models else part_args,
                command=command,
            )
            assert run is not None
            runs.append(run)
    return runs


def _by_models(names: Sequence[str]) -> dict[str, list[str]]:
    """The methods by the suffix of their folder: those that need further models run separately, so that the others do
    not load them."""
    groups: dict[str, list[str]] = {"": [], "-models": []}
    for name in names:
        groups["-models" if name in MODELS else ""].append(name)
    return {suffix: group for suffix, group in groups.items() if group}


def _models(methods: Iterable[str]) -> dict[str, str]:
    """The further models of some methods, by the name that the methods use."""
    return {name: model for method in methods for name, model in MODELS.get(method, {}).items()}


def _column(
    results: Mapping[tuple[str, str], TaskResult], names: Sequence[str], task: str, metric: str
) -> dict[str, Cell]:
    """The methods that have a metric, each under the setting that is best on the first half of the items."""
    base = results[task, "plain"].items[metric]
    half = len(base) // 2
    chosen = []
    comparisons = []
    for name in names:
        labels = [label_of(setting) for setting in SETTINGS[name]]
        values = {label: results[task, label].items[metric] for label in labels if (task, label) in results}
        if not values:
            continue
        best = select_scale(values, "first-half")
        chosen.append(best)
        comparisons.append(
            compare_items(
                values[best.label][half:], base[half:], task=task, metric=metric, label=name, baseline="plain"
            )
        )
    cells = {}
    for best, comparison in zip(chosen, adjust(comparisons), strict=True):
        cells[comparison.label] = Cell(best.label, best.reported, comparison)
    return cells


def _costs(names: Sequence[str], model_args: Mapping[str, Any]) -> dict[str, Cost]:
    """Seconds and rows per token of plain decoding and of each method's first setting."""
    model = model_args.get("pretrained", bundled.NAME)
    tokenizer = model_args.get("tokenizer")
    if isinstance(model, str):
        model, tokenizer = load(model, device=model_args.get("device"), dtype=model_args.get("dtype"))
    models = {}
    for name, source in _models(names).items():
        models[name] = load(source, device=str(model.device), dtype=model.dtype)[0]
    words = ("dragon", "river", "letter", "clock", "garden", "bridge", "song", "door")
    prompts = [f"The {word} was the first thing that" for word in words]
    ways = {"plain": (model, None), **{name: (model, SETTINGS[name][0]) for name in names}}
    return token_costs(ways, tokenizer, prompts, models)
