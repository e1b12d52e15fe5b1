"""``textguide.distill``: train an adapter to follow guidance."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..engine.given_texts import leading
from ..forward import low_rank
from ..forward.model_adapter import adapter
from ..forward.steering_vectors import model_fingerprint
from ..guidance import Guidance, as_guidance
from ..support import files
from ..support.checks import check_model_and_tokenizer
from ..support.showing import Block, Line, Shown
from . import card, checkpoint, texts
from .reading import BatchReading, at_all_positions
from .settings import DistillSettings

WORK = "training"
"""Texts and checkpoint of a run that is under way, inside its folder."""
SAVE_EVERY = 10
"""Steps between checkpoints."""
WARM_UP = 0.05


@dataclass(frozen=True)
class DistillResult(Shown):
    """What :func:`distill` made.

    Args:
        folder: of the adapter.
        losses: of every step, nats.
        seconds: of training in this process, texts included.
        resumed: steps that an earlier process had done.
    """

    folder: Path
    losses: list[float]
    seconds: float
    resumed: int = 0

    @property
    def last_loss(self) -> float:
        """The mean over the last tenth of the steps."""
        return card.last_tenth(self.losses)

    def __str__(self) -> str:
        before = f" ({self.resumed} of them before)" if self.resumed else ""
        return (
            f"{len(self.losses)} steps in {self.seconds:.0f} s{before}; loss {self.losses[0]:.4f} at first, "
            f"{self.last_loss:.4f} at the end; wrote {self.folder}"
        )

    def _shown(self) -> tuple[str, Sequence[Block]]:
        return "distilled guidance", [Line(str(self))]


def distill(
    model: Any,
    tokenizer: Any,
    guidance: Any,
    out: str | os.PathLike[str],
    *,
    prompts: Sequence[Any] | None = None,
    given: Sequence[Mapping[str, Any]] = (),
    settings: DistillSettings | None = None,
    models: Mapping[str, Any] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int, float | None], Any] | None = None,
    **fields_of_settings: Any,
) -> DistillResult:
    """Train a low-rank adapter with which ``model`` says by itself what it says under ``guidance``.

    A run that was killed goes on where it was when it is started again with the same arguments, and comes out the same
    as one that was not. On several devices start it with ``accelerate launch``.

    Args:
        model: a decoder-only transformers model; it stays as it is.
        tokenizer: its tokenizer.
        guidance: as for :func:`textguide.generate`: branches, classifiers, and constraints with
            ``objective="likelihood"``.
        out: folder of the adapter: ``adapter_model.safetensors`` and ``adapter_config.json`` as PEFT writes them, a
            card, and ``distillation.json`` with everything that it was made of.
        prompts: what texts begin with, taken in turn; None: openings of one word, from the vocabulary.
        given: texts of others, where the source is ``given``: mappings with ``prompt`` and ``completion`` (texts or
            token ids), or ``text``; and ``weight``.
        settings: how it is trained; or give its fields by name.
        models: further models by the name that branches use.
        name: what the model is called in the card; default: its own name.
        overwrite: remove the adapter, or the run, that is in ``out`` first; other files stay.
        progress: called with what is done (``"writing"``, ``"training"``), how much of how much, and the loss.

    Returns:
        The folder and the losses.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ValueError: an argument has a value that cannot work; ``out`` holds a finished adapter, or a run with other
            settings.

    Example:
        >>> textguide.distill(model, tokenizer, CFG(1.5), "follow", steps=100)
        >>> textguide.generate(model, tokenizer, "The dragon", CFG(1.5, distilled="follow"))
    """
    begun = time.perf_counter()
    check_model_and_tokenizer(model, tokenizer)
    chosen = as_guidance(guidance)
    if chosen is None:
        raise ValueError("guidance=None changes nothing; there is nothing to distil")
    if settings is not None and fields_of_settings:
        raise ValueError(f"settings= excludes {', '.join(fields_of_settings)}; put them into it")
    unknown = sorted(set(fields_of_settings) - {field.name for field in fields(DistillSettings)})
    if unknown:
        raise ValueError(f"{unknown[0]}= is no argument of distill and no field of DistillSettings")
    settings = settings or DistillSettings(**fields_of_settings)
    settings.check(chosen)
    base = adapter(model).base
    if adapter(model).is_encoder_decoder or not adapter(model).is_causal:
        raise ValueError(f"{type(base).__name__} reads sources or both sides; distil into a decoder-only model")
    further = {key: adapter(one).base for key, one in (models or {}).items()}
    folder = files.folder(out)
    work = folder / WORK
    if (folder / low_rank.CARD).is_file() and not overwrite:
        raise ValueError(
            f"{folder} holds a finished adapter; name another folder, or pass overwrite=True (--overwrite)"
        )
    called = name or str(getattr(base, "name_or_path", "")) or type(base).__name__
    identity = {
        "guidance": chosen.to_dict(), "model_fingerprint": model_fingerprint(base), **settings.to_dict(),
        "prompts": card.digest(prompts), "given": card.digest(list(given)),
    }  # fmt: skip
    cpu = adapter(model).device.type == "cpu"
    accelerator = _accelerator(cpu, settings.mixed_precision)
    if accelerator.is_main_process:
        if overwrite:
            card.remove(folder)
            shutil.rmtree(work, ignore_errors=True)
        checkpoint.begin(work, identity)
    if prompts is None and settings.positions != "all" and at_all_positions(settings.taught(chosen)[0][1]):
        behind = "guided texts" if "guided" in settings.shares else "positions='continuation'"
        if "guided" in settings.shares or (settings.positions and set(settings.shares) != {"given"}):
            raise ValueError(
                f"{behind} need prompts= of several tokens: behind an opening of one word the last token is all of the "
                "prompt, and guidance away from it does nothing"
            )
    told = progress or (lambda *_: None)
    done = [0]

    def wrote(count: int) -> None:
        done[0] += count
        told("writing", done[0], settings.texts, None)

    with accelerator.main_process_first():  # the others read what the first has written
        written = texts.gather(base, tokenizer, chosen, prompts, given, settings, work, further, wrote)
    losses, resumed, wrapped, shares = _train(
        base, tokenizer, chosen, written, settings, further, work, accelerator, told
    )
    if accelerator.is_main_process:
        card.finish(
            folder, wrapped, chosen, settings, model=base, name=called, losses=losses, texts=written, shares=shares,
            seconds=time.perf_counter() - begun,
        )  # fmt: skip
        shutil.rmtree(work)
    accelerator.wait_for_everyone()
    return DistillResult(folder, losses, time.perf_counter() - begun, resumed)


def _train(
    model: Any,
    tokenizer: Any,
    guidance: Guidance,
    written: Sequence[texts.Text],
    settings: DistillSettings,
    models: Mapping[str, Any],
    work: Path,
    accelerator: Any,
    told: Callable[[str, int, int, float | None], Any],
) -> tuple[list[float], int, Any, dict[str, Any]]:
    """Losses, how many steps were there before, the model with its adapter, and how many weights are trained."""
    library = low_rank.peft("distilling")
    taught = settings.taught(guidance)
    objective = settings.made()
    every = settings.positions == "all" or (settings.positions is None and at_all_positions(taught[0][1]))
    if every and not at_all_positions(taught[0][1]) and objective.name != "likelihood":
        raise ValueError(
            "positions='all' takes every token for the end of a prompt, which needs guidance away from the last token "
            "alone, the same at every step; use positions='continuation'"
        )
    if objective.needs_prompts:
        every = False
    lead = None if objective.needs_prompts else leading([taught[0][1]])
    read = [] if every else texts.items(model, tokenizer, written, lead)
    with low_rank.parameters_as_they_were(model), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        targets: Any = [one.strip() for one in settings.targets.split(",")]
        config = library.LoraConfig(
            r=settings.rank, lora_alpha=2 * settings.rank, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=targets[0] if targets == ["all-linear"] else targets, fan_in_fan_out=_is_transposed(model),
        )  # fmt: skip
        wrapped = library.get_peft_model(low_rank.copy_sharing_weights(model), config).eval()
        parameters = {key: value for key, value in wrapped.named_parameters() if value.requires_grad}
        for value in parameters.values():
            value.data = value.data.float()
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
        losses = checkpoint.resume(work, parameters, optimizer)
        resumed = len(losses)
        trained, optimizer = accelerator.prepare(wrapped, optimizer)
        strongest = max((scale for scale, _ in taught), key=lambda scale: abs(scale - 1.0))

        def student(ids: Any, mask: Any) -> Any:
            return trained(input_ids=ids, attention_mask=mask, use_cache=False).logits

        rank, world = accelerator.process_index, accelerator.num_processes
        for step in range(resumed, settings.steps):
            scale, at_scale = taught[step % len(taught)]
            low_rank.set_strength(wrapped, low_rank.strength_of({"scale": strongest}, scale))
            chosen = _batch(step, len(written), settings)[rank::world]
            reading = BatchReading(
                student, model, [written[n] for n in chosen], [read[n] for n in chosen if read], at_scale, scale,
                every=every, tokenizer=tokenizer, models=models, device=accelerator.device,
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _height(step, settings.steps)
            loss = objective.loss(reading)
            if not math.isfinite(float(loss.detach())):
                raise ValueError(f"the loss is not finite at step {step + 1}; use a smaller learning_rate")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(accelerator.reduce(loss.detach(), "mean")))
            if accelerator.is_main_process and ((step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps):
                checkpoint.save(work, parameters, getattr(optimizer, "optimizer", optimizer), losses)
            told("training", step + 1, settings.steps, losses[-1])
        low_rank.set_strength(wrapped, 1.0)
        shares = {
            "trained": sum(value.numel() for value in parameters.values()),
            "of": sum(value.numel() for value in model.parameters()),
            "scale": strongest, "positions": "all" if every else "continuation",
        }  # fmt: skip
        return losses, resumed, wrapped, shares


def _accelerator(cpu: bool, mixed_precision: str) -> Any:
    """Accelerate, which a process can have at one precision only."""
    from accelerate import Accelerator

    try:
        return Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    except ValueError as error:
        raise ValueError(
            f"mixed_precision={mixed_precision!r} differs from what this process has trained with before; start "
            "another process for it"
        ) from error


def _is_transposed(model: Any) -> bool:
    """Whether its layers keep their weights the other way round, as GPT-2's do."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _batch(step: int, count: int, settings: DistillSettings) -> list[int]:
    """Numbers of the texts of one step: all texts in an order of their own, again and again."""
    places = range(step * settings.batch_size, (step + 1) * settings.batch_size)
    orders = {
        turn: torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed * 7919 + turn)).tolist()
        for turn in {place // count for place in places}
    }
    return [orders[place // count][place % count] for place in places]


def _height(step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the highest."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm + 1)
