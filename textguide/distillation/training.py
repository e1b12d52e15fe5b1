"""``textguide.distill``: train an adapter to follow guidance."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from .card import TrainedAdapter
from .objectives import Objective
from .reading import BatchReading, at_all_positions
from .settings import DistillSettings
from .texts import Text

WORK = "training"
"""The folder of an unfinished run inside the adapter's folder: texts and a checkpoint."""
SAVE_EVERY = 10
"""Steps between checkpoints."""
WARM_UP = 0.05
"""The share of the steps in which the learning rate rises."""

Progress = Callable[[str, int, int, float | None], Any]


@dataclass(frozen=True)
class DistillResult(Shown):
    """What :func:`distill` returns.

    Args:
        folder: the folder of the adapter.
        losses: the loss of every step, in nats.
        seconds: the time of this process, texts included.
        resumed: the number of steps that an earlier process had finished.
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
    progress: Progress | None = None,
    **fields_of_settings: Any,
) -> DistillResult:
    """Train a low-rank adapter with which ``model`` follows ``guidance`` in plain decoding.

    An interrupted run is resumed if it is started again with the same arguments, and its result is the same as that of
    an uninterrupted one. Start it with ``accelerate launch`` to use several devices.

    Args:
        model: a decoder-only transformers model; it does not change.
        tokenizer: its tokenizer.
        guidance: as for :func:`textguide.generate`: branches, classifiers, and constraints with
            ``objective="likelihood"``.
        out: folder of the adapter. It gets ``adapter_model.safetensors`` and ``adapter_config.json`` as PEFT writes
            them, a model card, and ``distillation.json`` with all settings.
        prompts: the prompts of the texts, used in turn; None: single words from the vocabulary.
        given: existing texts, for the source ``given``: mappings with ``prompt`` and ``completion`` (texts or token
            ids), or ``text``; and optionally ``weight``.
        settings: how to train; alternatively pass its fields by name.
        models: further models by the names that branches use.
        name: the name of the model in the card; default: its own name.
        overwrite: first remove the adapter, or the unfinished run, in ``out``; other files stay.
        progress: called with the phase (``"writing"`` or ``"training"``), the number of texts or steps that are
            finished, their total number, and the loss.

    Returns:
        The folder and the losses.

    Raises:
        MissingExtraError: the package ``peft`` is not installed.
        ValueError: an argument has an invalid value, or ``out`` has a finished adapter or a run with other settings.

    Example:
        >>> textguide.distill(model, tokenizer, CFG(1.5), "follow", steps=100)
        >>> textguide.generate(model, tokenizer, "The dragon", CFG(1.5, distilled="follow"))
    """
    begun = time.perf_counter()
    low_rank.peft("textguide.distill", "distill")  # before the texts are written, which takes long
    check_model_and_tokenizer(model, tokenizer)
    target = as_guidance(guidance)
    if target is None:
        raise ValueError("guidance=None changes nothing; there is nothing to distil")
    settings = _settings(settings, fields_of_settings)
    settings.check(target)
    base = _decoder(model)
    folder = files.folder(out)
    if (folder / low_rank.CARD).is_file() and not overwrite:
        raise ValueError(f"{folder} has a finished adapter; name another folder, or pass overwrite=True (--overwrite)")
    if prompts is None:
        _check_openings(target, settings)
    identity = {
        "guidance": target.to_dict(),
        "model_fingerprint": model_fingerprint(base),
        **settings.to_dict(),
        "prompts": card.digest(prompts),
        "given": card.digest(list(given)),
    }
    run = _Run(
        base,
        tokenizer,
        target,
        settings,
        models={key: adapter(one).base for key, one in (models or {}).items()},
        work=folder / WORK,
        accelerator=_accelerator(adapter(model).device.type == "cpu", settings.mixed_precision),
        progress=progress or (lambda *_: None),
    )
    if run.accelerator.is_main_process:
        if overwrite:
            card.remove(folder)
            shutil.rmtree(run.work, ignore_errors=True)
        checkpoint.begin(run.work, identity)
    training_texts = run.gather_texts(prompts, given)
    trained = run.train(training_texts)
    if run.accelerator.is_main_process:
        card.finish(
            folder,
            trained,
            target,
            settings,
            model=base,
            name=name or str(getattr(base, "name_or_path", "")) or type(base).__name__,
            texts=training_texts,
            seconds=time.perf_counter() - begun,
        )
        shutil.rmtree(run.work)
    run.accelerator.wait_for_everyone()
    return DistillResult(folder, trained.losses, time.perf_counter() - begun, trained.resumed)


# -- checks --------------------------------------------------------------------------------------------------------


def _settings(settings: DistillSettings | None, values: Mapping[str, Any]) -> DistillSettings:
    """The settings, passed as a whole or by their fields.

    Raises:
        ValueError: both were passed, or a name is not a field.
    """
    if settings is not None and values:
        raise ValueError(f"settings= excludes {', '.join(values)}; put them into it")
    unknown = sorted(set(values) - {field.name for field in fields(DistillSettings)})
    if unknown:
        raise ValueError(f"{unknown[0]}= is neither an argument of distill nor a field of DistillSettings")
    return settings or DistillSettings(**values)


def _decoder(model: Any) -> Any:
    """The transformers model.

    Raises:
        ValueError: it is not a causal decoder.
    """
    known = adapter(model)
    if known.is_encoder_decoder or not known.is_causal:
        raise ValueError(
            f"{known.name} has an encoder or reads the text in both directions; distil into a decoder-only model"
        )
    return known.base


def _check_openings(guidance: Guidance, settings: DistillSettings) -> None:
    """Refuse prompts of one word if guidance compares the prompt with its last token.

    Raises:
        ValueError: texts are continued under guidance, which does nothing after such a prompt.
    """
    sources = set(settings.texts_by_source)
    _, first = settings.guidance_by_step(guidance)[0]
    if settings.positions == "all" or not at_all_positions(first):
        return
    if "guided" in sources:
        what = "guided texts"
    elif settings.positions and sources != {"given"}:
        what = "positions='continuation'"
    else:
        return
    raise ValueError(
        f"{what} need prompts= of several tokens: the last token of a prompt of one word is the whole prompt, and "
        "guidance away from it does nothing"
    )


# -- the run -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A run of training.

    Args:
        model: the teacher, and the model that the adapter is for.
        tokenizer: its tokenizer.
        guidance: what the adapter learns.
        settings: how to train.
        models: further models of the guidance.
        work: the folder of texts and checkpoint.
        accelerator: of accelerate.
        progress: as in :func:`distill`.
    """

    model: Any
    tokenizer: Any
    guidance: Guidance
    settings: DistillSettings
    models: Mapping[str, Any]
    work: Path
    accelerator: Any
    progress: Progress

    def gather_texts(self, prompts: Sequence[Any] | None, given: Sequence[Mapping[str, Any]]) -> list[Text]:
        """The training texts, written or read."""
        done = 0

        def count(new: int) -> None:
            nonlocal done
            done += new
            self.progress("writing", done, self.settings.texts, None)

        # The main process writes the texts, and the others read its files.
        with self.accelerator.main_process_first():
            return texts.gather(
                self.model,
                self.tokenizer,
                self.guidance,
                prompts,
                given,
                self.settings,
                self.work,
                self.models,
                count,
            )

    def train(self, training_texts: Sequence[Text]) -> TrainedAdapter:
        """Train the adapter."""
        library = low_rank.peft("distilling")
        settings = self.settings
        accelerator = self.accelerator
        guidances = settings.guidance_by_step(self.guidance)
        first = guidances[0][1]
        objective = settings.build_objective()
        all_positions = _all_positions(settings, objective, first)
        items = []
        if not all_positions:
            lead = None if objective.needs_prompts else leading([first])
            items = texts.items(self.model, self.tokenizer, training_texts, lead)
        strongest = max((scale for scale, _ in guidances), key=lambda scale: abs(scale - 1.0))

        with low_rank.parameters_as_they_were(self.model), torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            wrapped = _with_new_adapter(library, self.model, settings)
            parameters = _trained_parameters(wrapped)
            optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
            losses = checkpoint.resume(self.work, parameters, optimizer)
            resumed = len(losses)
            prepared, optimizer = accelerator.prepare(wrapped, optimizer)

            def student(ids: Any, mask: Any) -> Any:
                return prepared(input_ids=ids, attention_mask=mask, use_cache=False).logits

            for step in range(resumed, settings.steps):
                scale, guidance = guidances[step % len(guidances)]
                low_rank.set_strength(wrapped, low_rank.strength_of({"scale": strongest}, scale))
                numbers = self._batch(step, len(training_texts))
                reading = BatchReading(
                    student,
                    self.model,
                    [training_texts[number] for number in numbers],
                    [items[number] for number in numbers if items],
                    guidance,
                    scale,
                    all_positions=all_positions,
                    tokenizer=self.tokenizer,
                    models=self.models,
                    device=accelerator.device,
                )
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * _warm_up_and_decay(step, settings.steps)
                loss = objective.loss(reading)
                self._descend(loss, parameters.values(), optimizer, step)
                losses.append(float(accelerator.reduce(loss.detach(), "mean")))
                self._save(parameters, optimizer, losses)
                self.progress("training", step + 1, settings.steps, losses[-1])
            low_rank.set_strength(wrapped, 1.0)
        return TrainedAdapter(
            wrapped,
            losses,
            resumed,
            scale=strongest,
            positions="all" if all_positions else "continuation",
            trained_weights=sum(value.numel() for value in parameters.values()),
            weights=sum(value.numel() for value in self.model.parameters()),
        )

    def _batch(self, step: int, count: int) -> list[int]:
        """The numbers of this process's texts in one step: epoch after epoch, each in its own random order."""
        size = self.settings.batch_size
        orders: dict[int, list[int]] = {}
        numbers = []
        for position in range(step * size, (step + 1) * size):
            epoch = position // count
            if epoch not in orders:
                generator = torch.Generator().manual_seed(self.settings.seed * 7919 + epoch)
                orders[epoch] = torch.randperm(count, generator=generator).tolist()
            numbers.append(orders[epoch][position % count])
        return numbers[self.accelerator.process_index :: self.accelerator.num_processes]

    def _save(self, parameters: Mapping[str, Any], optimizer: Any, losses: list[float]) -> None:
        """Write a checkpoint if it is time for one."""
        steps = len(losses)
        if self.accelerator.is_main_process and (steps % SAVE_EVERY == 0 or steps == self.settings.steps):
            # accelerate wraps the optimizer, and only the inner one has a state for each parameter.
            checkpoint.save(self.work, parameters, getattr(optimizer, "optimizer", optimizer), losses)

    def _descend(self, loss: torch.Tensor, parameters: Iterable[torch.Tensor], optimizer: Any, step: int) -> None:
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"the loss is not finite at step {step + 1}; use a smaller learning_rate")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _all_positions(settings: DistillSettings, objective: Objective, guidance: Guidance) -> bool:
    """Whether every token of a text is trained on as the end of a prompt.

    Raises:
        ValueError: the settings require it, and the guidance does not allow it.
    """
    possible = at_all_positions(guidance)
    if settings.positions == "all" and not possible and objective.name != "likelihood":
        raise ValueError(
            "positions='all' uses every token as the end of a prompt, which needs a guidance that only compares with "
            "the last token and is the same at every step; use positions='continuation'"
        )
    if objective.needs_prompts:
        return False
    return settings.positions == "all" or (settings.positions is None and possible)


def _with_new_adapter(library: Any, model: Any, settings: DistillSettings) -> Any:
    """A ``PeftModel`` of PEFT's ``library`` that shares the weights of ``model``."""
    targets = [name.strip() for name in settings.targets.split(",")]
    config = library.LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        # GPT-2's layers store their weights transposed.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    return library.get_peft_model(low_rank.copy_sharing_weights(model), config).eval()


def _trained_parameters(wrapped: Any) -> dict[str, Any]:
    """The weights of the adapter by name, which become float32 whatever the dtype of the model is."""
    parameters = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    for value in parameters.values():
        value.data = value.data.float()
    return parameters


def _accelerator(cpu: bool, mixed_precision: str) -> Any:
    """The ``Accelerator``; a process can only have one precision."""
    from accelerate import Accelerator

    try:
        return Accelerator(cpu=cpu, mixed_precision=mixed_precision)
    except ValueError as error:
        raise ValueError(
            f"mixed_precision={mixed_precision!r} differs from what this process has trained with before; start "
            "another process for it"
        ) from error


def _warm_up_and_decay(step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the highest."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else (steps - step) / (steps - warm + 1)
