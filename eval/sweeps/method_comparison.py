"""Every method on the same tasks, in one table: ``textguide eval --suite methods``.

Each method runs under a few settings. On every task the first half of the items chooses the setting and the second half
reports it, beside plain decoding on the same items; p-values are adjusted over the methods of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import textguide
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
from textguide.models import bundled
from textguide.support.files import write_json, write_text

from ..reports import drawing
from ..reports import markdown as report
from ..results.run import RunResult, TaskResult
from ..statistics.intervals import Interval, select_scale
from ..statistics.paired import Comparison, adjust, compare_items
from .costs import Cost, token_costs
from .options import SweepOptions
from .sweep import run_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
"""What is tried of each method, chosen before anything was measured."""

ELSEWHERE = {
    "value": "follows a head that its user trains: methods/value.md",
    "gradient-free-classifier": "moves away from prompts that ask for other classes, which tasks do not have",
    "context-aware": "follows a document that its user names",
    "corrsynth": "looks at texts that are written together, and scores none",
    "formula": "contains the others",
    "awrs": "rules out texts rather than steering them: results/constrained",
    "acfg": "is for masked diffusion: results/diffusion",
    "lm": "is for captions: results/captioning",
    "vcd": "changes the image: methods/vcd.md",
    "reward": "asks a reward model, and none comes along; with a classifier's log-probability as reward it is caif",
}
"""Methods that have no row, and why."""

for _name, _method in Guidance.registry.items():  # methods that say themselves what is tried of them
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
"""How questions are answered: not more than these, behind four that are, since text costs a hundred times what a score
does and SmolLM2 gives no answer without an example. In bfloat16, unless the model is given another dtype."""

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
"""Methods that steer to a good mood, and those that draw several texts for one answer."""

MODELS = {
    "contrastive": {"amateur": "smollm2-small"},
    "dexperts": {"expert": "smollm2-small-positive", "anti-expert": "smollm2-small-negative"},
    "proxy-tuning": {"tuned": "smollm2-small-positive", "untuned": "smollm2-small"},
    "steering": {},
    "genarm": {"reward": "smollm2-small-positive"},
    "expert-ensemble": {"good": "smollm2-small-positive"},
}
"""The further models of those that need some, or none but a vector of SmolLM2; they have SmolLM2's tokens, and stand
beside that model alone."""


@dataclass(frozen=True)
class Cell:
    """One method on one metric: the setting that the first half chose, on the second half.

    Args:
        setting: label of the setting.
        value: its mean on the second half, with interval.
        against: its difference to plain decoding there.
    """

    setting: str
    value: Interval
    against: Comparison


def compare_methods(
    *,
    output: Path,
    options: SweepOptions | None = None,
    model_args: Mapping[str, Any] | None = None,
    methods: Iterable[str] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Run the suite, and write ``methods.md``, ``methods.json`` and ``methods.png`` beside the runs that they sum up.

    Args:
        output: folder; a killed run goes on where it was.
        options: ``limit`` is the number of items a task; of questions that are answered see :data:`ANSWERED`.
        model_args: as for :func:`run_sweep`.
        methods: names among :data:`SETTINGS`; default: all.
        command: for the report.

    Returns:
        What ``methods.json`` holds.

    Raises:
        ValueError: a method has no settings here.
    """
    arguments = dict(model_args or {})
    is_bundled = arguments.get("pretrained", bundled.NAME) == bundled.NAME
    names = [name for name in SETTINGS if is_bundled or name not in MODELS] if methods is None else list(methods)
    for name in names:
        if name not in SETTINGS:
            why = f"it {ELSEWHERE[name]}" if name in ELSEWHERE else f"use one of {', '.join(SETTINGS)}"
            raise ValueError(f"methods={name!r} has no place in the suite; {why}")
        if name in MODELS and not is_bundled:
            raise ValueError(f"methods={name!r} has what it needs for {bundled.NAME} alone; leave it or the model out")
    chosen = {name: SETTINGS[name] for name in names}
    options = options or SweepOptions()
    runs: list[RunResult] = []
    for folder, tasks in PARTS.items():
        here, dtype = options, {}
        if folder == "answered":
            most: int = ANSWERED["limit"]
            here = replace(options, **{**ANSWERED, "limit": min(options.limit or most, most)})
            dtype = {"dtype": "bfloat16"}
        kept = [name for name in names if folder == "continued" or name not in ONLY_CONTINUED]
        # Methods with further models run by themselves: who has no use for them need not load them.
        for suffix, part in (
            ("", [name for name in kept if name not in MODELS]), ("-models", [name for name in kept if name in MODELS])
        ):  # fmt: skip
            models = {name: model for method in part for name, model in MODELS.get(method, {}).items()}
            if not part:
                continue
            settings = [None, *(setting for name in part for setting in chosen[name])]
            run = run_sweep(
                tasks,
                settings,
                output=output / (folder + suffix),
                options=here,
                model_args=dtype | arguments | ({"models": models} if models else {}),
                command=command,
            )
            assert run is not None
            runs.append(run)
    results = {(task.task, task.label): task for run in runs for task in run.tasks}
    table = {column: _column(results, chosen, *column) for column in COLUMNS}
    costs = _costs(chosen, arguments)
    plain = {column: _plain(results[column[0], "plain"], column[1]) for column in COLUMNS}
    found = {
        "command": command,
        "versions": runs[0].versions,
        "machine": runs[0].machine,
        "items": {column[0]: len(results[column[0], "plain"].items[column[1]]) for column in COLUMNS},
        "plain": {"/".join(column): value._asdict() for column, value in plain.items()},
        "methods": {
            name: {
                "/".join(column): {
                    "setting": cell.setting, "value": cell.value._asdict(), "difference": cell.against.difference,
                    "low": cell.against.low, "high": cell.against.high, "p_holm": cell.against.p_holm,
                }
                for column in COLUMNS if (cell := table[column].get(name)) is not None
            }
            for name in names
        },
        "cost": {name: vars(cost) for name, cost in costs.items()},
    }  # fmt: skip
    write_json(output / "methods.json", found)
    text = markdown(table, plain, costs, names, found)
    if drawing.available():
        drawing.save(draw(table, names), output / "methods.png")
        text += "\n![differences to plain decoding](methods.png)\n"
    write_text(output / "methods.md", text)
    return found


def _column(
    results: Mapping[tuple[str, str], TaskResult], chosen: Mapping[str, Sequence[Guidance]], task: str, metric: str
) -> dict[str, Cell]:
    base = results[task, "plain"].items[metric]
    half = len(base) // 2
    cells = []
    for name, settings in chosen.items():
        labels = [label_of(setting) for setting in settings]
        values = {label: results[task, label].items[metric] for label in labels if (task, label) in results}
        if values:
            best = select_scale(values, "first-half")
            against = compare_items(
                values[best.label][half:], base[half:], task=task, metric=metric, label=name, baseline="plain"
            )
            cells.append(Cell(best.label, best.reported, against))
    adjusted = adjust([cell.against for cell in cells])
    return {each.label: replace(cell, against=each) for cell, each in zip(cells, adjusted, strict=True)}


def _plain(result: TaskResult, metric: str) -> Interval:
    return select_scale({"plain": result.items[metric]}, "first-half").reported


def _costs(chosen: Mapping[str, Sequence[Guidance]], model_args: dict[str, Any]) -> dict[str, Cost]:
    """Seconds and rows a token, each method once, plain first and alternating: medians of three."""
    source = model_args.get("pretrained", bundled.NAME)
    tokenizer = model_args.get("tokenizer")
    model = source
    if isinstance(source, str):
        model, tokenizer = textguide.load(source, device=model_args.get("device"), dtype=model_args.get("dtype"))
    load = {name: model for method in chosen for name, model in MODELS.get(method, {}).items()}
    further = {name: textguide.load(one, device=str(model.device), dtype=model.dtype)[0] for name, one in load.items()}
    words = ("dragon", "river", "letter", "clock", "garden", "bridge", "song", "door")
    prompts = [f"The {word} was the first thing that" for word in words]
    ways = {"plain": (model, None), **{name: (model, settings[0]) for name, settings in chosen.items()}}
    return token_costs(ways, tokenizer, prompts, further)


def markdown(
    table: Mapping[tuple[str, str], Mapping[str, Cell]],
    plain: Mapping[tuple[str, str], Interval],
    costs: Mapping[str, Cost],
    names: Sequence[str],
    found: Mapping[str, Any],
) -> str:
    """The report."""
    header = ["method", *(f"{task} {metric.split(',')[0]}" for task, metric in COLUMNS), "rows a token", "ms a token"]
    rows = [["plain", *(report.number(plain[column].mean) for column in COLUMNS), *_cost(costs["plain"])]]
    for name in names:
        cells = [table[column].get(name) for column in COLUMNS]
        rows.append([name, *("–" if cell is None else _cell(cell) for cell in cells), *_cost(costs[name])])
    lines = [
        "# Every method on the same items\n",
        "Each method's setting was chosen on the first half of a task's items and is reported on the second, with its "
        "difference to plain decoding there (95% interval, paired bootstrap). `*`: p below .05 after Holm's "
        "correction over the methods of the column (McNemar's test where items are right or wrong).\n",
        report.table(header, rows),
        "\nItems: "
        + ", ".join(f"{task} {count}" for task, count in found["items"].items())
        + ". Questions of triviaqa "
        f"are answered behind {ANSWERED['num_fewshot']} examples, in bfloat16 unless another dtype was asked for; "
        "continuations_positive draws four texts each. Rows a token: those that a model, or a part of one, read for "
        "one that was written; small models count as others do.\n",
        "## The chosen settings\n",
        report.table(
            ["method", *(f"{task} {metric.split(',')[0]}" for task, metric in COLUMNS)],
            [
                [name, *("–" if (cell := table[column].get(name)) is None else cell.setting for column in COLUMNS)]
                for name in names
            ],
        ),
        "\n## Methods without a row\n",
        *(f"* `{name}` {why}." for name, why in ELSEWHERE.items()),
        "\n## How it was made\n",
        f"```\n{found['command']}\n```\n",
        ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".\n",
    ]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    against = cell.against
    star = "*" if against.p_holm is not None and against.p_holm < 0.05 else ""
    shown = [report.number(value, signed=True) for value in (against.difference, against.low, against.high)]
    return f"{report.number(cell.value.mean)}{star} ({shown[0]} [{shown[1]}, {shown[2]}])"


def _cost(cost: Cost) -> list[str]:
    return [f"{cost.passes:.2f}", f"{1e3 * cost.seconds:.1f}"]


@drawing.styled
def draw(table: Mapping[tuple[str, str], Mapping[str, Cell]], names: Sequence[str]) -> Figure:
    """Differences to plain decoding with their intervals, a panel for each metric, three beside each other.

    A method whose chosen setting changes no item stands as a grey ring: there is no interval to draw.
    """
    figure, panels = drawing.grid(len(COLUMNS), 0.75 + 0.165 * len(names), 3)
    for number, (axes, column) in enumerate(zip(panels, COLUMNS, strict=True)):
        rows = [(name, table[column].get(name)) for name in names]
        axes.axvline(0, color=drawing.GREY, linestyle="--", linewidth=1)
        for place, (_, cell) in enumerate(rows):
            if cell is None:
                continue
            against = cell.against
            sure = against.p_holm is not None and against.p_holm < 0.05
            same = against.low == against.high == 0
            colour = drawing.GREY if same else drawing.COLOURS[1] if against.difference < 0 else drawing.COLOURS[0]
            ends = [against.low, against.high]
            axes.plot(ends, [place, place], color=colour, alpha=0.35, linewidth=3.6, solid_capstyle="butt")
            filled = colour if sure else "white"
            axes.plot(against.difference, place, "o", markersize=4, color=colour, markerfacecolor=filled)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), names if number % 3 == 0 else [""] * len(rows), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{column[0]}\n{column[1].split(',')[0].replace('_', ' ')}", fontsize=8.5)
    figure.supxlabel(
        "difference to plain decoding (dashed: none); bars: 95% intervals; filled: p below .05 after Holm; "
        "grey: no item changed",
        fontsize=7.6, color=drawing.GREY,
    )  # fmt: skip
    return figure
