"""Captioning as a task: captions under every setting, compared with people's and judged by a dual encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import textguide
from textguide.captioning import read_image
from textguide.guidance import Guidance, as_guidance
from textguide.guidance.spec import label as label_of

from ..reports.run_folder import write_run
from ..results.folder import claim
from ..results.journal import Journal
from ..results.machine import environment
from ..results.run import RunResult, TaskResult, as_guidances
from ..statistics.measures import MetricValue, measure
from . import data as caption_data
from . import judge as caption_judge
from . import metrics as caption_metrics
from . import plots as caption_plots
from .data import Picture

TASK = "captioning"
RESAMPLES = 2000


@dataclass(frozen=True)
class CaptioningOptions:
    """How captions are made and judged.

    Args:
        unconditional: see :func:`textguide.caption`.
        prompt: a text for every picture; None: the model's own way.
        max_new_tokens: longest caption.
        batch_size: pictures captioned at once.
        limit: pictures; None: all.
        seed: of sampling and the bootstrap.
        generation: more options of transformers' generate, such as a temperature.
        contact_sheet: pictures shown in ``captions.html``; 0 writes none.
        java: compute METEOR and SPICE where Java and their files are there.
    """

    unconditional: str = "blank"
    prompt: str | None = None
    max_new_tokens: int = 40
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    generation: Mapping[str, Any] | None = None
    contact_sheet: int = 24
    java: bool = True


def run_captioning(
    data: str | Path,
    settings: Sequence[Guidance | None],
    model: Any,
    processor: Any,
    *,
    judge: tuple[Any, Any] | None = None,
    language_model: tuple[Any, Any] | None = None,
    output: Path | None = None,
    options: CaptioningOptions | None = None,
    names: Mapping[str, str] | None = None,
    command: str = "",
) -> RunResult:
    """Caption the pictures of ``data`` under every setting and measure what came of it.

    CIDEr is the primary metric; R@1, R@5 and R@10 (the share of captions by which the judge finds their picture among
    all), CLIPScore and RefCLIPScore need a judge. Intervals are over pictures.

    Args:
        data: see :func:`textguide.eval.captions.data.read`.
        settings: guidances; None captions plainly.
        model: a captioner, and ``processor`` its processor.
        judge: a dual encoder with its processor.
        language_model: a text-only model with its tokenizer, for :class:`textguide.LMGuidance`.
        output: results folder; a killed run with the same arguments goes on where it was.
        options: see :class:`CaptioningOptions`.
        names: what the model, the judge and the text-only model are called in the report.
        command: the command line, for the report.

    Returns:
        The result. Pictures that cannot be read are left out, and named in its notes.

    Raises:
        ValueError: the data cannot be understood, or no picture of it can be read.
    """
    options = options or CaptioningOptions()
    pictures = caption_data.read(data)[: options.limit]
    settings = [as_guidance(setting) for setting in settings]
    labels = [label_of(setting) for setting in settings]
    images, notes = _readable(pictures)
    pictures = [picture for picture in pictures if picture.name in images]
    if not pictures:
        raise ValueError(f"--data {data}: no picture can be read; {notes[0] if notes else 'there is none'}")
    identity = _identity(pictures, settings, options, names or {}, model)
    if output is not None:
        claim(output, identity)
    captions = _captions(pictures, images, settings, model, processor, language_model, options, identity, output)
    results = []
    eyes = None if judge is None else caption_judge.DualEncoder(*judge)
    shown = None if eyes is None else eyes.images([images[picture.name] for picture in pictures])
    people = [list(picture.references) for picture in pictures]
    spoken = None if eyes is None else [eyes.texts(row) for row in people]
    for label, setting in zip(labels, settings, strict=True):
        texts = captions[label]
        metrics, items = reference_metrics(texts, people, options.seed, options.java)
        if eyes is not None and shown is not None and spoken is not None:
            judged, judged_items = _judged(eyes, shown, spoken, texts, options.seed)
            metrics, items = {**metrics, **judged}, {**items, **judged_items}
        ids = tuple(_digest(picture.name, *picture.references) for picture in pictures)
        scale = getattr(setting, "scale", None) if setting is not None else 1.0
        extra = {"captions": dict(zip([p.name for p in pictures], texts, strict=True))}
        results.append(TaskResult(TASK, label, scale, metrics, items, item_ids=ids, extra=extra))
    if judge is None:
        notes.append("No judge was given (--judge), so there is no CLIPScore and no retrieval.")
    missing = [name for name in caption_metrics.NEEDS_JAVA if f"{name.lower()},none" not in results[0].metrics]
    if missing:
        notes.append(f"Left out, for they need Java and files of their own: {', '.join(missing)}.")
    notes.append(f"The branch without an image saw: {options.unconditional}.")
    versions, machine = environment()
    result = RunResult(
        tasks=results,
        guidances=as_guidances(list(zip(labels, settings, strict=True))),
        identity=identity,
        fingerprints=identity["fingerprints"],
        seed=options.seed,
        versions=versions,
        machine={**machine, "device": str(model.device), "dtype": str(model.dtype)},
        command=command,
        notes=notes,
        lm_eval={
            "config": {
                "model": "textguide-captioning",
                "model_args": dict(names or {}),
                "batch_size": options.batch_size,
                "device": str(model.device),
                "limit": options.limit,
                "bootstrap_iters": 0,
                "gen_kwargs": {"max_new_tokens": options.max_new_tokens},
                "random_seed": options.seed,
            }
        },
        select_on=None,
    )
    if output is not None:
        samples = [
            {"label": label, "image": picture.name, "caption": text, "references": picture.references}
            for label in labels
            for picture, text in zip(pictures, captions[label], strict=True)
        ]
        write_run(result, output, samples=samples)
        caption_plots.illustrate(result, output, pictures, images, captions, options.contact_sheet)
    return result


def reference_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0, java: bool = False
) -> tuple[dict[str, MetricValue], dict[str, Any]]:
    """Everything that needs no judge: the metrics, CIDEr first, and one number a picture where there is one."""
    scores = caption_metrics.reference_scores(captions, references)
    items = {"cider,none": scores.cider, "rouge_l,none": scores.rouge_l, "words,none": scores.length}
    judged = caption_metrics.java_metrics(captions, references) if java else {}
    items |= {f"{name},none": values for name, values in judged.items()}
    metrics = {name: measure(values, seed=seed) for name, values in items.items()}
    count = len(captions)
    chance = np.random.default_rng(seed)
    weights = chance.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)
    for order in caption_metrics.ORDERS:
        value, drawn = float(scores.bleu(order)[0]), scores.bleu(order, weights)
        low, high = np.quantile(drawn, [0.025, 0.975])
        metrics[f"bleu_{order},none"] = MetricValue(
            value, float(drawn.std()), float(low), float(high), count, kind="given"
        )
    for n in (1, 2):
        metrics[f"distinct_{n},none"] = MetricValue.given(caption_metrics.distinct(captions, n), n=count)
    metrics["vocabulary,none"] = MetricValue.given(caption_metrics.vocabulary_size(captions), n=count)
    return metrics, items


def _judged(
    eyes: caption_judge.DualEncoder, shown: Any, spoken: Any, texts: Sequence[str], seed: int
) -> tuple[dict[str, MetricValue], dict[str, Any]]:
    said = eyes.texts([text or "." for text in texts])
    scores = caption_judge.clip_score(shown, said)
    rank = caption_judge.ranks(shown, said)
    items = {f"recall_at_{k},none": (rank <= k).astype(np.float64) for k in caption_judge.RANKS}
    items |= {
        "clip_score,none": scores,
        "ref_clip_score,none": caption_judge.ref_clip_score(scores, said, spoken),
    }
    return {name: measure(values, seed=seed) for name, values in items.items()}, items


def _readable(pictures: Sequence[Picture]) -> tuple[dict[str, Any], list[str]]:
    images, notes = {}, []
    for picture in pictures:
        try:
            images[picture.name] = read_image(picture.path, picture.name)
        except ValueError as error:
            notes.append(f"Left out: {' '.join(str(error).split())}".replace(str(picture.path), picture.name))
    return images, notes


def _captions(
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    settings: Sequence[Guidance | None],
    model: Any,
    processor: Any,
    language_model: tuple[Any, Any] | None,
    options: CaptioningOptions,
    identity: Mapping[str, Any],
    output: Path | None,
) -> dict[str, list[str]]:
    """Setting → captions, from the journal where it has them."""
    from rich.progress import Progress

    journal = None if output is None else Journal.open(output / "journal.jsonl", identity)
    done: dict[str, Any] = {} if journal is None else dict(journal.done)
    try:
        with Progress(transient=True) as bar:
            task = bar.add_task("captioning", total=len(settings) * len(pictures))
            for setting in settings:
                label = label_of(setting)
                for start in range(0, len(pictures), options.batch_size):
                    rows = pictures[start : start + options.batch_size]
                    key = f"{label}:{start}"
                    if key not in done:
                        out = textguide.caption(
                            model,
                            processor,
                            [images[picture.name] for picture in rows],
                            setting,
                            prompts=options.prompt,
                            unconditional=options.unconditional,
                            language_model=language_model,
                            max_new_tokens=options.max_new_tokens,
                            seed=options.seed,
                            **(options.generation or {}),
                        )
                        done[key] = [text.strip() for text in out.texts]
                        if journal is not None:
                            journal.append(key, done[key])
                    bar.update(task, advance=len(rows))
    finally:
        if journal is not None:
            journal.close()
    starts = range(0, len(pictures), options.batch_size)
    return {
        label_of(setting): [text for start in starts for text in done[f"{label_of(setting)}:{start}"]]
        for setting in settings
    }


def _identity(
    pictures: Sequence[Picture],
    settings: Sequence[Guidance | None],
    options: CaptioningOptions,
    names: Mapping[str, str],
    model: Any,
) -> dict[str, Any]:
    fingerprints = {label_of(setting): "" if setting is None else setting.fingerprint for setting in settings}
    content = _digest(*(text for picture in pictures for text in (picture.name, *picture.references)))
    return {
        "tasks": [TASK],
        "model": names.get("model", type(model).__name__),
        "judge": names.get("judge"),
        "language_model": names.get("language_model"),
        "guidances": {label_of(setting): None if setting is None else setting.to_dict() for setting in settings},
        "fingerprints": {**fingerprints, "data": content},
        "pictures": len(pictures),
        "unconditional": options.unconditional,
        "prompt": options.prompt,
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "generation": dict(options.generation or {}),
        "seed": options.seed,
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
