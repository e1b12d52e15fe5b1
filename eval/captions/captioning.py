"""Captioning as a task: captions under every setting, compared with those of people and judged by a dual encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textguide import captioning
from textguide.guidance import Guidance, as_guidance
from textguide.support.files import write_text

from ..reports import drawing
from ..reports.run_folder import write_run
from ..results.folder import REPORT, claim
from ..results.journal import JOURNAL, Journal, Memory
from ..results.run import RunResult, TaskResult, labels_of
from ..statistics.measures import MetricValue, measure
from . import data as caption_data
from . import judge as caption_judge
from . import metrics as caption_metrics
from .contact_sheet import SHEET, write_contact_sheet
from .data import Picture
from .options import CaptioningOptions

TASK = "captioning"
RESAMPLES = 2000


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
    """Caption the pictures of ``data`` under every setting, and measure the captions.

    CIDEr is the primary metric. R@1, R@5 and R@10 (the share of captions by which the judge finds their picture among
    all), CLIPScore and RefCLIPScore need a judge. Intervals are over pictures.

    Args:
        data: see :func:`textguide.eval.captions.data.read`.
        settings: guidances; None captions without guidance.
        model: a captioner.
        processor: its processor.
        judge: a dual encoder with its processor.
        language_model: a text-only model with its tokenizer, for :class:`textguide.LMGuidance`.
        output: results folder; an unfinished run with the same arguments is resumed. None: nothing is written.
        options: see :class:`CaptioningOptions`.
        names: names of the ``model``, the ``judge`` and the ``language_model`` in the report.
        command: the command line, for the report.

    Returns:
        The result. Pictures that cannot be read are left out, and its notes name them.

    Raises:
        ValueError: the data cannot be read as pictures with captions, or no picture can be read.
    """
    caption_metrics.require()  # before the pictures are captioned, which takes long
    options = options or CaptioningOptions()
    names = names or {}
    settings = [as_guidance(setting) for setting in settings]
    pictures, images, notes = _readable(caption_data.read(data)[: options.limit])
    if not pictures:
        raise ValueError(f"--data {data}: no picture can be read; {notes[0] if notes else 'there is none'}")
    identity = _identity(pictures, settings, options, names, model)
    if output is not None:
        claim(output, identity)
    journal = Memory() if output is None else Journal.open(output / JOURNAL, identity)
    with journal:
        captions = _captions(pictures, images, settings, model, processor, language_model, options, journal)
    results = _task_results(pictures, images, settings, captions, judge, options)
    notes += _notes(results[0], judge is not None, options)
    result = RunResult.of(
        results,
        settings,
        identity,
        device=model.device,
        dtype=model.dtype,
        seed=options.seed,
        command=command,
        notes=notes,
        lm_eval={"config": _config(model, names, options)},
        select_on=None,
    )
    if output is not None:
        _write(result, output, pictures, images, captions, options.contact_sheet)
    return result


def _readable(pictures: Sequence[Picture]) -> tuple[list[Picture], dict[str, Any], list[str]]:
    """The pictures that can be read, their images by name, and a note for each of the others."""
    images: dict[str, Any] = {}
    notes = []
    for picture in pictures:
        try:
            images[picture.name] = captioning.read_image(picture.path, picture.name)
        except ValueError as error:
            notes.append(f"Left out: {' '.join(str(error).split())}".replace(str(picture.path), picture.name))
    return [picture for picture in pictures if picture.name in images], images, notes


def _identity(
    pictures: Sequence[Picture],
    settings: Sequence[Guidance | None],
    options: CaptioningOptions,
    names: Mapping[str, str],
    model: Any,
) -> dict[str, Any]:
    """Everything that two runs must share to be the same run."""
    labels = labels_of(settings)
    content = _digest(*(text for picture in pictures for text in (picture.name, *picture.references)))
    guidances = {}
    fingerprints = {}
    for label, setting in zip(labels, settings, strict=True):
        guidances[label] = None if setting is None else setting.to_dict()
        fingerprints[label] = "" if setting is None else setting.fingerprint
    return {
        "tasks": [TASK],
        "model": names.get("model", type(model).__name__),
        "judge": names.get("judge"),
        "language_model": names.get("language_model"),
        "guidances": guidances,
        "fingerprints": {**fingerprints, "data": content},
        "pictures": len(pictures),
        "unconditional": options.unconditional,
        "prompt": options.prompt,
        "max_new_tokens": options.max_new_tokens,
        # Rounding, and with it a caption, may depend on the batch.
        "batch_size": options.batch_size,
        "generation": dict(options.generation or {}),
        "seed": options.seed,
    }


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _captions(
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    settings: Sequence[Guidance | None],
    model: Any,
    processor: Any,
    language_model: tuple[Any, Any] | None,
    options: CaptioningOptions,
    journal: Memory,
) -> dict[str, list[str]]:
    """Captions by label, one per picture; batches that the journal has are not captioned again."""
    from rich.progress import Progress

    captions: dict[str, list[str]] = {}
    with Progress(transient=True) as bar:
        task = bar.add_task("captioning", total=len(settings) * len(pictures))
        for label, setting in zip(labels_of(settings), settings, strict=True):
            captions[label] = []
            for start in range(0, len(pictures), options.batch_size):
                batch = [images[picture.name] for picture in pictures[start : start + options.batch_size]]

                def caption(batch: list[Any] = batch, setting: Guidance | None = setting) -> list[str]:
                    result = captioning.caption(
                        model,
                        processor,
                        batch,
                        setting,
                        prompts=options.prompt,
                        unconditional=options.unconditional,
                        language_model=language_model,
                        max_new_tokens=options.max_new_tokens,
                        seed=options.seed,
                        **(options.generation or {}),
                    )
                    return [text.strip() for text in result.texts]

                captions[label] += journal.record(f"{label}:{start}", caption)
                bar.update(task, advance=len(batch))
    return captions


def _task_results(
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    settings: Sequence[Guidance | None],
    captions: Mapping[str, Sequence[str]],
    judge: tuple[Any, Any] | None,
    options: CaptioningOptions,
) -> list[TaskResult]:
    """The metrics of every setting's captions."""
    references = [list(picture.references) for picture in pictures]
    ids = tuple(_digest(picture.name, *picture.references) for picture in pictures)
    judged = None if judge is None else _Judge(judge, [images[picture.name] for picture in pictures], references)
    results = []
    for label, setting in zip(labels_of(settings), settings, strict=True):
        texts = captions[label]
        metrics, items = reference_metrics(texts, references, options.seed, options.java)
        if judged is not None:
            items_of_judge = judged.items(texts)
            items |= items_of_judge
            metrics |= {name: measure(values, seed=options.seed) for name, values in items_of_judge.items()}
        scale = 1.0 if setting is None else getattr(setting, "scale", None)
        extra = {"captions": dict(zip([picture.name for picture in pictures], texts, strict=True))}
        results.append(TaskResult(TASK, label, scale, metrics, items, item_ids=ids, extra=extra))
    return results


def reference_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0, java: bool = False
) -> tuple[dict[str, MetricValue], dict[str, Any]]:
    """The metrics that do not need a judge.

    Args:
        captions: one per picture.
        references: captions by people, one list per picture.
        seed: seed of the bootstrap.
        java: also compute METEOR and SPICE, if Java and their files are installed.

    Returns:
        The values by metric, CIDEr first, and by metric one number per picture, for metrics that are means over
        pictures.
    """
    scores = caption_metrics.reference_scores(captions, references)
    items = {"cider,none": scores.cider, "rouge_l,none": scores.rouge_l, "words,none": scores.length}
    if java:
        items |= {f"{name},none": values for name, values in caption_metrics.java_metrics(captions, references).items()}
    metrics = {name: measure(values, seed=seed) for name, values in items.items()}
    count = len(captions)
    # BLEU is not a mean over captions, so its interval comes from corpora of resampled captions.
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)
    for order in caption_metrics.ORDERS:
        value = float(scores.bleu(order)[0])
        resampled = scores.bleu(order, weights)
        low, high = np.quantile(resampled, [0.025, 0.975])
        metrics[f"bleu_{order},none"] = MetricValue(
            value, float(resampled.std()), float(low), float(high), count, kind="given"
        )
    for n in (1, 2):
        metrics[f"distinct_{n},none"] = MetricValue.given(caption_metrics.distinct(captions, n), n=count)
    metrics["vocabulary,none"] = MetricValue.given(caption_metrics.vocabulary_size(captions), n=count)
    return metrics, items


class _Judge:
    """A dual encoder with the vectors of all pictures and of all captions by people."""

    def __init__(self, judge: tuple[Any, Any], images: Sequence[Any], references: Sequence[Sequence[str]]) -> None:
        self._encoder = caption_judge.DualEncoder(*judge)
        self._images = self._encoder.images(images)
        self._references = [self._encoder.texts(texts) for texts in references]

    def items(self, captions: Sequence[str]) -> dict[str, Any]:
        """By metric one number per caption."""
        # An empty text has no vector; a full stop is the shortest text.
        vectors = self._encoder.texts([text or "." for text in captions])
        scores = caption_judge.clip_score(self._images, vectors)
        ranks = caption_judge.ranks(self._images, vectors)
        items: dict[str, Any] = {f"recall_at_{k},none": (ranks <= k).astype(np.float64) for k in caption_judge.RANKS}
        items["clip_score,none"] = scores
        items["ref_clip_score,none"] = caption_judge.ref_clip_score(scores, vectors, self._references)
        return items


def _notes(result: TaskResult, has_judge: bool, options: CaptioningOptions) -> list[str]:
    notes = []
    if not has_judge:
        notes.append("There is no CLIPScore and no retrieval without a judge (--judge).")
    missing = [name for name in caption_metrics.NEEDS_JAVA if f"{name.lower()},none" not in result.metrics]
    if missing:
        notes.append(f"Left out, because they need Java and their own files: {', '.join(missing)}.")
    notes.append(f"The branch without an image saw: {options.unconditional}.")
    return notes


def _config(model: Any, names: Mapping[str, str], options: CaptioningOptions) -> dict[str, Any]:
    """The settings of the run under lm-eval's keys."""
    return {
        "model": "textguide-captioning",
        "model_args": dict(names),
        "batch_size": options.batch_size,
        "device": str(model.device),
        "limit": options.limit,
        "bootstrap_iters": 0,
        "gen_kwargs": {"max_new_tokens": options.max_new_tokens},
        "random_seed": options.seed,
    }


def _write(
    result: RunResult,
    output: Path,
    pictures: Sequence[Picture],
    images: Mapping[str, Any],
    captions: Mapping[str, Sequence[str]],
    most: int,
) -> None:
    """The results folder, to whose report a plot and a contact sheet of at most ``most`` pictures are added."""
    samples = []
    for label, texts in captions.items():
        for picture, text in zip(pictures, texts, strict=True):
            samples.append({"label": label, "image": picture.name, "caption": text, "references": picture.references})
    write_run(result, output, samples=samples)
    lines = [f"![CIDEr against R@1]({name})" for name in drawing.save_trade(result, output)]
    if most:
        write_contact_sheet(output, pictures, images, captions, most)
        lines.append(f"Pictures with their captions: [{SHEET}]({SHEET}).")
    if lines:
        report = output / REPORT
        write_text(report, report.read_text(encoding="utf-8") + "\n" + "\n\n".join(lines) + "\n")
