"""lm-eval's Hugging Face model under guidance, for one setting or a sweep of them.

Importing this module registers ``textguide`` in lm-eval::

    from textguide.eval import GuidedLM
    lm_eval.simple_evaluate(model="textguide", model_args="pretrained=smollm2,scale=1.5", tasks=["lambada_mini"])
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from textguide.engine import branch_inputs
from textguide.engine.branch_inputs import empty_source
from textguide.engine.custom_generate import GuidedDecoding
from textguide.engine.given_texts import Item, decoder_start, leading
from textguide.guidance import Guidance, split
from textguide.models import bundled, load, small
from textguide.models.adapters import load_further
from textguide.models.loading import checked_device, checked_dtype, explained, locate
from textguide.scoring import score_groups

from .answering import Answering, Generations, settings_of
from .answering import key as answer_key
from .contexts import UNCONDITIONAL, unconditional_context
from .several import one_each
from .stopping import own_criteria

logger = logging.getLogger(__name__)

GENERATIONS_AT_ONCE = 64
"""Number of generation requests whose answers are lost at most if a run is killed."""
AUTO_BATCH_ON_CPU = 16
"""Rows per batch for ``batch_size="auto"`` on a CPU, where running out of memory cannot be measured."""
AUTO_BATCH = 256


@register_model("textguide")
class GuidedLM(Answering, HFLM):
    """lm-eval's ``HFLM`` with guidance as a setting.

    Log-likelihoods are computed and recorded for all ``settings`` together, so that evaluating the next setting on the
    same tasks does not cost a forward pass; choose the setting with :attr:`current`.

    Args:
        pretrained: a name that :func:`textguide.load` accepts, or a model object (with ``tokenizer=``).
        guidance: a guidance, a dict, or text such as ``cfg:scale=1.5`` or JSON. None without ``scale`` is plain
            decoding.
        scale, negative_prompt, schedule, renormalize: shorthand for the fields of :class:`textguide.CFG`;
            ``renormalize=False`` sums ``γ·lc + (1 − γ)·lu`` as the published evaluation does.
        settings: several guidances (None for plain decoding) instead of ``guidance``: a sweep.
        uncond: input of the unconditional branch if the guidance does not have a negative prompt: ``last-token`` of
            the context (as in the paper), ``no-instruction`` (the context without the task's instruction, but with its
            few-shot examples), or ``question-only`` (without both). The latter two need :attr:`tasks`.
        models: further models by the name that guidances use, as objects or as names that :func:`textguide.load`
            accepts: ``{"amateur": "smollm2-small"}``.
        memo: where answers are recorded, such as a journal, with which a run can be resumed; None: only in memory.
        seed: seed of sampled generations.
        **kwargs: arguments of ``HFLM``.

    Raises:
        ValueError: an argument is invalid; the message names it.
        ModelUnavailableError: ``pretrained`` cannot be loaded.

    Attributes:
        current: index into ``settings`` of the one that answers.
        tasks: lm-eval tasks by name, if ``uncond`` needs a task's instruction.
        effects: what guidance did during generation, by setting.
    """

    def __init__(
        self,
        pretrained: Any = bundled.NAME,
        *,
        guidance: Any = None,
        scale: float | None = None,
        negative_prompt: Any = None,
        schedule: str | None = None,
        renormalize: bool | None = None,
        settings: Sequence[Guidance | None] | None = None,
        uncond: str = UNCONDITIONAL[0],
        models: Mapping[str, Any] | None = None,
        memo: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        shorthand = {
            "scale": scale,
            "negative_prompt": negative_prompt,
            "schedule": schedule,
            "renormalize": renormalize,
        }
        self._set_up(settings_of(guidance, settings, shorthand), uncond, seed, memo)
        self._contexts: dict[str, str] = {}
        self._batch_contexts: list[str] = []
        self._generator: torch.Generator | None = None
        if isinstance(pretrained, str):
            kwargs["device"] = str(checked_device(kwargs.get("device")))
            dtype = checked_dtype(kwargs.get("dtype"))
            on_cpu = torch.device(kwargs["device"]).type == "cpu"
            kwargs["dtype"] = dtype or (torch.float32 if on_cpu else "auto")
            if pretrained in small.NAMES and not Path(pretrained).is_dir():
                pretrained, kwargs["tokenizer"] = load(pretrained, device=kwargs["device"], dtype=kwargs["dtype"])
        if isinstance(pretrained, str):
            source = locate(pretrained, dtype)
            with explained(pretrained, source):
                super().__init__(pretrained=str(source), **kwargs)
        else:
            super().__init__(pretrained=pretrained, **kwargs)
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1 and not kwargs.get("tp_plan"):
            # HFLM shares requests between processes only if there are several GPUs.
            self._rank = accelerator.process_index
            self._world_size = accelerator.num_processes
        self.models = load_further(self.model, models or {}, device=str(self.device), dtype=self.model.dtype)
        _separate_caches(self)

    # lm-eval's interface

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval defines it, under the current setting."""
        if self.uncond != UNCONDITIONAL[0]:
            for request in requests:
                context = unconditional_context(self.tasks, request, self.uncond)
                self._contexts[request.args[0]] = context
        before = self.truncated
        answers = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        cut = self.truncated - before
        if cut and self.rank == 0:
            logger.warning(
                "%d contexts were longer than the model's %d tokens and cut from the left", cut, self.max_length
            )
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        keys, missing = self.missing_scores(requests)
        key_of = {id(item): key for key, item in missing.items()}
        bar = tqdm(total=len(missing), desc="log-likelihoods", disable=disable_tqdm or self.rank != 0 or not missing)
        for item, values, greedy in self._score(list(missing.values()), override_bs):
            self._memo.append(key_of[id(item)], {"ll": values, "greedy": greedy})
            bar.update(1)
        bar.close()
        answers = []
        for key, (texts, _, _) in zip(keys, requests, strict=True):
            record = self._memo.done[key]
            answer = (float(record["ll"][self.current]), bool(record["greedy"][self.current]))
            answers.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def missing_scores(self, requests: list[Any]) -> tuple[list[str], dict[str, Item]]:
        """The key of every request of :meth:`_loglikelihood_tokens`, and the items without a recorded answer by key."""
        keys: list[str] = []
        missing: dict[str, Item] = {}
        for number, (texts, context, continuation) in enumerate(requests):
            item = self._item(number, texts, list(context), list(continuation))
            key = answer_key("ll", item.context, item.continuation, item.negatives, item.sources)
            keys.append(key)
            if len(item.sources[0] if item.sources else item.context) < len(context):
                self._cut.add(key)
            if key not in self._memo:
                missing.setdefault(key, item)
        return keys, missing

    def answers(self, requests: Sequence[Any]) -> Generations:
        """The answers to generation requests under the current setting, recorded or missing."""
        names = [answer_key("gen", self.fingerprint, self.seed, *request.args) for request in requests]
        answers = Generations(requests, names, self._memo)
        # Long prompts first: prompts of a batch have similar lengths, and memory runs out in the first batch or never.
        answers.missing.sort(key=lambda number: -len(requests[number].args[0]))
        return answers

    def at_once(self) -> tuple[int, int]:
        """Rows per batch, and generation requests per chunk, which are some full batches."""
        if self.batch_size != "auto":
            rows = int(self.batch_size)
        elif self.device.type == "cpu":
            rows = AUTO_BATCH_ON_CPU
        else:
            rows = AUTO_BATCH
        return rows, max(1, GENERATIONS_AT_ONCE // rows) * rows

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval defines it, under the current setting; answers are recorded chunk by chunk."""
        if self.uncond != UNCONDITIONAL[0]:
            for request in requests:
                self._contexts[request.args[0]] = unconditional_context(self.tasks, request, self.uncond)
        answers = self.answers(requests)
        missing = answers.missing
        _, chunk_size = self.at_once()
        bar = tqdm(total=len(missing), desc="generations", disable=disable_tqdm or self.rank != 0 or not missing)
        for start in range(0, len(missing), chunk_size):
            chunk = missing[start : start + chunk_size]
            self._generator = torch.Generator(self.model.device).manual_seed(answers.seed(self.seed, chunk[0]))
            texts = super().generate_until([requests[number] for number in chunk], disable_tqdm=True)
            for number, text in zip(chunk, texts, strict=True):
                answers.keep(number, text)
            bar.update(len(chunk))
        bar.close()
        return answers.texts()

    def tok_batch_encode(self, strings: Any, *args: Any, **kwargs: Any) -> Any:
        """As in ``HFLM``; records the contexts, since :meth:`_model_generate` only receives their token ids."""
        self._batch_contexts = list(strings)
        return super().tok_batch_encode(strings, *args, **kwargs)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        parts = split(self.setting)
        rows = None
        if parts.branching is not None and self._contexts:
            texts = [self._contexts[text] for text in self._batch_contexts]
            room = self.max_length - (max_length - context.shape[1])
            rows = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in texts]
        several = parts.particles
        if parts.forks:
            # Transformers makes several rows per prompt only for sampling, so the rows of the branches are made here.
            context = context.repeat_interleave(several, 0)
            generation_kwargs["attention_mask"] = generation_kwargs["attention_mask"].repeat_interleave(several, 0)
            rows = None if rows is None else [row for row in rows for _ in range(several)]
        elif several > 1:
            generation_kwargs |= {"num_return_sequences": several, "top_k": generation_kwargs.get("top_k", 0)}
        decoding = GuidedDecoding(
            self.setting,
            tokenizer=self.tokenizer,
            models=self.models,
            generator=self._generator,
            branch_prompts=None if rows is None else [rows],
            warn=False,
            fast=True,
        )
        call = own_criteria(decoding, self.tokenizer, stop)
        sequences = super()._model_generate(context, max_length, stop, custom_generate=call, **generation_kwargs)
        if decoding.effect is not None:
            self.effects.setdefault(self.current, []).append(decoding.effect)
        if several > 1:
            assert decoding.last is not None
            return one_each(decoding.last, several, context.shape[1], self.tokenizer, self._generator)
        return sequences

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        return AUTO_BATCH_ON_CPU if self.device.type == "cpu" else int(super()._detect_batch_size(requests, pos))

    # Scoring

    def _score(self, items: list[Item], override_bs: int | None) -> Iterator[tuple[Item, list[float], list[bool]]]:
        """All settings for all items; a batch that does not fit into the device's memory is halved."""
        size = int(override_bs or self.at_once()[0])
        remaining = {item.number: item for item in items}
        while remaining:
            try:
                for item, values, greedy in self._all_settings(list(remaining.values()), size):
                    del remaining[item.number]
                    yield item, values, greedy
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                torch.cuda.empty_cache()
                size //= 2
                logger.warning("out of memory: continuing with batches of %d", size)

    def _all_settings(self, items: list[Item], size: int) -> Iterator[tuple[Item, list[float], list[bool]]]:
        # Settings with the same branches share their passes; the conditional pass is shared by all.
        numbers = _by_branches(self.settings)
        groups = []
        for members in numbers:
            settings = [self.settings[number] for number in members]
            groups.append((settings, partial(self._with_branches, settings=settings)))
        order = np.argsort([number for members in numbers for number in members])
        for item, log_probs, greedy in score_groups(
            self.model, items, groups, tokenizer=self.tokenizer, batch_size=size, models=self.models
        ):
            yield item, log_probs.double().sum(-1)[order].tolist(), greedy[order].tolist()

    def _item(self, number: int, texts: Any, context: list[int], continuation: list[int]) -> Item:
        limit = self.max_length
        if len(continuation) > limit:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's {limit} positions; "
                "shorten it, or raise max_length"
            )
        if len(context) + len(continuation) > limit + 1:
            context = context[-(limit + 1 - len(continuation)) :]
        if self.backend == "seq2seq":
            start = [decoder_start(self.model)]
            return Item(number, start, continuation, [start], (context, empty_source(self.model.config) or []))
        negatives: list[list[int]] = []
        if texts is not None and texts[0] in self._contexts:
            other = self._contexts[texts[0]]
            ids = self._encode_pair(other, texts[1])[0] if other else [self.prefix_token_id]
            negatives = [ids[-max(1, limit + 1 - len(continuation)) :]]
        item = Item(number, context, continuation, negatives)
        return item if negatives else self._with_branches(item, self.settings)

    def _with_branches(self, item: Item, settings: Sequence[Guidance | None]) -> Item:
        lead = leading(settings)
        if lead is None or self._contexts or self.backend == "seq2seq":
            return item
        rows = branch_inputs.branch_rows(lead, cond=[item.context], tokenizer=self.tokenizer)
        return Item(item.number, item.context, item.continuation, [row[0] for row in rows], item.sources)


def _by_branches(settings: Sequence[Guidance | None]) -> list[list[int]]:
    """Indices of settings with the same branches; settings without branches are added to the first group."""
    groups: dict[Any, list[int]] = {}
    without_branches = []
    for number, setting in enumerate(settings):
        guidance = split(setting).branching
        if guidance is None:
            without_branches.append(number)
        else:
            groups.setdefault((guidance.view, guidance.branches), []).append(number)
    members = list(groups.values()) or [[]]
    members[0] = sorted(members[0] + without_branches)
    return members


def _separate_caches(lm: GuidedLM) -> None:
    """Add the fingerprint to the keys of lm-eval's answer cache, which would otherwise mix up settings."""
    original = lm.set_cache_hook

    def set_cache_hook(hook: Any) -> None:
        if hook.dbdict is not None:
            hook.dbdict.__class__ = _keyed(type(hook.dbdict))
            hook.dbdict.guided_lm = lm
        original(hook)

    lm.set_cache_hook = set_cache_hook


def _keyed(base: type) -> type:
    """``base`` (lm-eval's SQLite dictionary) with the fingerprint of the current setting before every key."""

    class Keyed(base):
        guided_lm: GuidedLM

        def _named(self, key: str) -> str:
            return f"{self.guided_lm.fingerprint}/{key}"

        def __contains__(self, key: object) -> bool:
            return cast(bool, super().__contains__(self._named(str(key))))

        def __getitem__(self, key: str) -> Any:
            return super().__getitem__(self._named(key))

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(self._named(key), value)

    assert issubclass(Keyed, MutableMapping)
    return Keyed
