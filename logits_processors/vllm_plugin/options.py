"""Options of an engine of vLLM's with guidance switched on: what is set, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .adapters import with_adapters
from .constraints import engines_constraint, engines_critic
from .extras import OURS
from .further_models import TWIN, check_models, engine_options, resolve
from .refusals import check_options
from .reweighting import named
from .speculation import KEY, check_beside, check_draft, settings_of

SCHEDULER = "textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler"
PROCESSOR = "textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor"


def prepared(
    model: str,
    *,
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Options of vLLM's own engine, from those of :func:`vllm_engine`; arguments and errors as there."""
    found = resolve(model)
    if models and options.get("speculative_config") is not None:
        check_beside({"models": tuple(models)})
    options = switched_on(options, classifier, constraints, critics)
    check_draft(found, _ours(options).get(KEY), options.get("max_model_len"))
    if adapters:
        options = with_adapters(options, adapters)
        ours = {**_ours(options), "adapters": dict(adapters)}
        options["additional_config"] = {**(options.get("additional_config") or {}), OURS: ours}
    if models:
        options = with_models(found, options, models)
    return {"model": found, **options}


def switched_on(
    options: dict[str, Any],
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Options of an engine with guidance switched on.

    Args:
        options: those that were given.
        classifier: the name of the engine's classifier.
        constraints: the engine's constraints, by name.
        critics: the engine's critics, by name.

    Raises:
        ValueError: one of them is set to something else, nothing is called ``classifier``, or a constraint or critic
            cannot be used.
    """
    options = dict(options)
    ours: dict[str, Any] = {}
    if classifier is not None:
        named(classifier)
        ours["classifier"] = classifier
    if constraints:
        for name, text in constraints.items():
            engines_constraint(name, text)
        ours["constraints"] = dict(constraints)
    if critics:
        for name, path in critics.items():
            engines_critic(name, path)
        ours["critics"] = dict(critics)
    if options.get("speculative_config") is not None:  # ours, and not vLLM's, which excludes logits processors
        ours[KEY] = settings_of(options.pop("speculative_config"))
        check_beside(options)
    if ours:
        options["additional_config"] = {**(options.get("additional_config") or {}), OURS: ours}
    check_options(options)
    if options.get("scheduler_cls") not in (None, SCHEDULER):
        raise ValueError(
            f"scheduler_cls={options['scheduler_cls']!r} does not work with guidance, which needs {SCHEDULER!r}; "
            "leave it out"
        )
    options["scheduler_cls"] = SCHEDULER
    options["async_scheduling"] = bool(options.get("async_scheduling"))
    others = list(options.get("logits_processors") or ())
    if not any("GuidedLogitsProcessor" in str(one) for one in others):
        others.insert(0, PROCESSOR)
    options["logits_processors"] = others
    return options


def with_models(served: str, options: dict[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Options of an engine with guidance switched on that holds further models.

    Args:
        served: folder or name of the served model.
        options: as from :func:`switched_on`.
        models: the further ones, by name.

    Raises:
        ValueError: a model, or an option beside it, does not work; the message names it.
        ModelUnavailableError: as for :func:`textguide.load`.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    from .combined_model import Twin

    paths = {name: resolve(path) for name, path in models.items()}
    options = engine_options(options)
    held = {"models": paths, "served": check_models(served, paths, options.get("max_model_len"))}
    ModelRegistry.register_model(TWIN, Twin)
    options["additional_config"] = {**(options.get("additional_config") or {}), OURS: {**_ours(options), **held}}
    return options


def _ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """Our part of an engine's options."""
    return dict((options.get("additional_config") or {}).get(OURS) or {})
