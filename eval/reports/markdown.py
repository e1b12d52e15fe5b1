"""All Markdown of the evaluation room: numbers and tables, the report of a run, and that of a comparison of methods."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..results.run import RunResult
    from ..statistics.measures import MetricValue
    from ..statistics.paired import Comparison


def markdown(run: RunResult, pictures: Sequence[str] = ()) -> str:
    """The report of a run: values, comparisons with the plain setting, the best scales, notes, and how it was made.

    Args:
        run: the run, which is analysed first.
        pictures: file names of plots in the folder of the report.
    """
    run.analyse()
    model = run.identity.get("model")
    if isinstance(model, dict):  # the arguments of the model
        model = model.get("pretrained")
    parts = [f"# Evaluation of {model}" if model else "# Evaluation", _values(run)]
    if run.comparisons:
        parts += ["## Against no guidance", _comparisons(run)]
    if run.selections:
        parts += ["## The best scale", "\n".join(_selections(run))]
    parts += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in pictures if name.endswith(".png")]
    if pictures and len(run.task_names) > MOST_TASKS:
        parts.append(f"The pictures show the first {MOST_TASKS} of {len(run.task_names)} tasks.")
    notes = [*_truncations(run), *_infinite(run), *_missing(run), *run.notes]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    parts += ["## How it was made", _provenance(run)]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table.

    Args:
        header: names of the columns.
        rows: the cells.
        align: ``l`` or ``r`` per column; columns beyond its end are aligned to the right.
    """
    rule = [":--" if column < len(align) and align[column] == "l" else "--:" for column in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, or two from 10 on; a dash for None."""
    if value is None:
        return "–"
    digits = ".2e"
    if round(abs(value), 3) < 10:
        digits = ".3f"
    elif abs(value) < 1e5:
        digits = ".2f"
    text = format(value, f"+{digits}" if signed else digits)
    return f"−{text[1:]}" if text.startswith("-") else text


def interval(value: MetricValue | None) -> str:
    """``value [low, high]``."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return number(value.value)
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def p_value(p: float | None) -> str:
    """Three decimals; ``<0.001`` below."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def metric_name(name: str, higher_is_better: bool | None = None) -> str:
    """lm-eval's ``acc,none`` as ``acc``, with an arrow that points to better values."""
    metric, _, filter_name = name.partition(",")
    shown = metric if filter_name in ("", "none") else f"{metric} ({filter_name})"
    return shown if higher_is_better is None else f"{shown} {'↑' if higher_is_better else '↓'}"


def comparison_cells(comparison: Comparison) -> list[str]:
    """The cells of :data:`COMPARISON_HEADER`."""
    flips = "–" if comparison.gained is None else f"+{comparison.gained} −{comparison.lost}"
    ends = f"[{number(comparison.low, True)}, {number(comparison.high, True)}]"
    return [
        f"{number(comparison.difference, True)} {ends}",
        p_value(comparison.p),
        flips,
        p_value(comparison.p_mcnemar),
        p_value(comparison.p_holm),
        str(comparison.n),
    ]


MOST_TASKS = 12
"""Largest number of tasks in a picture, which shows the first ones of a run."""
COMPARISON_HEADER = ["difference", "p (bootstrap)", "gained, lost", "p (McNemar)", "p (Holm)", "items"]


def _values(run: RunResult) -> str:
    columns: dict[tuple[str, str], bool] = {}
    for result in run.tasks:
        for name, value in result.metrics.items():
            columns.setdefault((result.task, name), value.higher_is_better)
    header = ["guidance", "γ"]
    header += [f"{task}: {metric_name(name, better)}" for (task, name), better in columns.items()]
    rows = []
    for label in run.labels:
        entries = {result.task: result for result in run.tasks if result.label == label}
        scales = {result.scale for result in entries.values() if result.scale is not None}
        row = [label, f"{scales.pop():g}" if len(scales) == 1 else "–"]
        for task, name in columns:
            row.append(interval(entries[task].metrics.get(name)) if task in entries else "–")
        rows.append(row)
    caption = f"Values with {run.confidence:.0%} intervals (Wilson for right and wrong, bootstrap for other values)."
    return f"{table(header, rows, 'l')}\n\n{caption}"


def _comparisons(run: RunResult) -> str:
    rows = [
        [entry.task, metric_name(entry.metric), entry.label, *comparison_cells(entry)]
        for entry in run.comparisons or ()
    ]
    baseline = run.comparisons[0].baseline if run.comparisons else ""
    nats = any(value.kind in ("perplexity", "bits") for result in run.tasks for value in result.metrics.values())
    caption = (
        f"Guided minus {baseline} on the same items, with {run.confidence:.0%} intervals of the paired "
        "bootstrap. Gained and lost count the items that are right under only one of the two. Holm's p "
        "is adjusted for the number of settings compared on a task."
    )
    if nats:
        caption += " Differences of perplexities are in nats per item, and below 0 is better."
    return f"{table(['task', 'metric', 'guidance', *COMPARISON_HEADER], rows, 'lll')}\n\n{caption}"


def _selections(run: RunResult) -> list[str]:
    lines = []
    for task, choice in (run.selections or {}).items():
        entry = run.get(task, choice.label)
        name = metric_name(entry.primary) if entry else ""
        figure = f"{number(choice.reported.mean)} [{number(choice.reported.low)}, {number(choice.reported.high)}]"
        if choice.on == "all":
            line = f"- **{task}**: {choice.label} has the best {name}, {figure}. Note: {choice.warning}."
        else:
            chosen = choice.on.replace("-", " ")
            line = (
                f"- **{task}**: {choice.label} has the best {name} on the {chosen} "
                f"({number(choice.selected_value)}, {choice.n_selected} items). "
                f"On the other {choice.n_reported} items it has {figure}."
            )
            if choice.difference is not None:
                difference, low, high, p = choice.difference
                shown_p = p_value(p)
                equals = "" if shown_p.startswith("<") else "= "
                line += (
                    f" Against {run.plain_label} on those items: {number(difference, True)} "
                    f"[{number(low, True)}, {number(high, True)}], p {equals}{shown_p}."
                )
        lines.append(line)
    return lines


def _truncations(run: RunResult) -> list[str]:
    notes = []
    for result in run.tasks:
        if result.truncated:
            contexts = f"{result.truncated} contexts were longer than the model's context window"
            notes.append(f"{result.task}, {result.label}: {contexts} and were cut.")
    return notes


def _infinite(run: RunResult) -> list[str]:
    notes = []
    for result in run.tasks:
        for name, value in result.metrics.items():
            if value.value is None and value.kind in ("perplexity", "bits"):
                notes.append(
                    f"{result.task}, {result.label}: {metric_name(name)} is infinite, because an item has likelihood "
                    "0; it is left out of comparisons."
                )
    return notes


def _missing(run: RunResult) -> list[str]:
    missing = [f"{task} under {label}" for task in run.task_names for label in run.labels if not run.get(task, label)]
    return [f"Not measured: {', '.join(missing)}."] if missing else []


def _provenance(run: RunResult) -> str:
    lines = [f"- date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(run.date))}", f"- seed: {run.seed}"]
    for title, values in (
        ("versions", run.versions),
        ("machine", run.machine),
        ("fingerprints", run.fingerprints),
    ):
        if values:
            lines.append(f"- {title}: {_pairs(values)}")
    for label, guidance in run.guidances.items():
        changed = {key: value for key, value in (guidance or {}).items() if value is not None}
        lines.append(f"- {label}: {_pairs(changed) if changed else 'no guidance'}")
    text = "\n".join(lines)
    return f"{text}\n\n```\n{run.command}\n```" if run.command else text


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def method_report(comparison: Mapping[str, Any], without_row: Mapping[str, str], shots: int) -> str:
    """The report of a comparison of all methods.

    Args:
        comparison: the content of ``methods.json``.
        without_row: methods that are not in the comparison, and the reasons, which continue "METHOD …".
        shots: number of examples before each question of triviaqa.
    """
    columns = list(comparison["plain"])
    names = []
    for column in columns:
        task, _, metric = column.partition("/")
        names.append(f"{task} {metric.split(',')[0]}")
    plain = [number(comparison["plain"][column]["mean"]) for column in columns]
    rows = [["plain", *plain, *_method_cost(comparison, "plain")]]
    settings = []
    for method, cells in comparison["methods"].items():
        shown = [_method_cell(cells[column]) if column in cells else "–" for column in columns]
        rows.append([method, *shown, *_method_cost(comparison, method)])
        settings.append([method, *(cells[column]["setting"] if column in cells else "–" for column in columns)])
    items = ", ".join(f"{task} {count}" for task, count in comparison["items"].items())
    lines = [
        "# Every method on the same items\n",
        "Each method's setting was chosen on the first half of a task's items and is reported on the second, with its "
        "difference to plain decoding there (95% interval, paired bootstrap). `*`: p below .05 after Holm's "
        "correction over the methods of the column (McNemar's test if items are right or wrong).\n",
        table(["method", *names, "rows per token", "ms per token"], rows),
        f"\nItems: {items}. Questions of triviaqa are answered after {shots} examples, in bfloat16 unless another "
        "dtype was chosen; continuations_positive draws four texts per prompt. Rows per token: those that a model, or "
        "a part of one, read for one token of the text; small models count as much as others.\n",
        "## The chosen settings\n",
        table(["method", *names], settings),
        "\n## Methods without a row\n",
        *(f"* `{method}` {reason}." for method, reason in without_row.items()),
        "\n## How it was made\n",
        f"```\n{comparison['command']}\n```\n",
        ", ".join(f"{name} {version}" for name, version in comparison["versions"].items()) + ".\n",
    ]
    return "\n".join(lines)


def _method_cell(cell: Mapping[str, Any]) -> str:
    star = "*" if cell["p_holm"] is not None and cell["p_holm"] < 0.05 else ""
    difference, low, high = (number(cell[name], signed=True) for name in ("difference", "low", "high"))
    return f"{number(cell['value']['mean'])}{star} ({difference} [{low}, {high}])"


def _method_cost(comparison: Mapping[str, Any], method: str) -> list[str]:
    cost = comparison["cost"][method]
    return [f"{cost['passes']:.2f}", f"{1e3 * cost['seconds']:.1f}"]
