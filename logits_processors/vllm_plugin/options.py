"""Options of a vLLM engine with guidance: the ones that are set, and the ones that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .adapters import with_adapters
from .constraints import engine_constraint, engine_critic
from .engine_priors import described
from .extras import OURS
from .further_models import COMBINED_MODEL, check_models, engine_options, resolve
from .refusals import check_options
from .reweighting import named
from .speculation import KEY, check_draft, check_excluded, settings_of

SCHEDULER = "textguide.logits_processors.vllm_plugin.scheduler.GuidedScheduler"
PROCESSOR = "textguide.logits_processors.vllm_plugin.processor:GuidedLogitsProcessor"


def prepared(
    model: str,
    *,
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
    priors: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    adapters: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Options of ``vllm.LLM``, from those of :func:`vllm_engine`; arguments and errors as there."""
    path = resolve(model)
    if models and options.get("speculative_config") is not None:
        check_excluded({"models": tuple(models)})
    options = with_guidance(options, classifier, constraints, critics, priors)
    check_draft(path, _ours(options).get(KEY), options.get("max_model_len"))
    if adapters:
        options = with_adapters(options, adapters)
        _add_ours(options, {"adapters": dict(adapters)})
    if models:
        options = with_models(path, options, models)
    return {"model": path, **options}


def with_guidance(
    options: dict[str, Any],
    classifier: str | None = None,
    constraints: Mapping[str, str] | None = None,
    critics: Mapping[str, str] | None = None,
    priors: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Options of an engine with guidance.

    Args:
        options: of the engine; they are not changed.
        classifier: the name of the engine's classifier.
        constraints: the engine's constraints, by name.
        critics: the engine's critics, by name.
        priors: files of the engine's token priors, by name.

    Raises:
        ValueError: an option excludes guidance, no classifier has that name, or a constraint, critic or prior cannot be
            used.
    """
    options = dict(options)
    ours: dict[str, Any] = {}
    if classifier is not None:
        named(classifier)
        ours["classifier"] = classifier
    if constraints:
        for name, text in constraints.items():
            engine_constraint(name, text)
        ours["constraints"] = dict(constraints)
    if critics:
        for name, path in critics.items():
            engine_critic(name, path)
        ours["critics"] = dict(critics)
    if priors:
        ours["priors"] = described(priors)
    if options.get("speculative_config") is not None:
        # Textguide speculates itself; vLLM's own speculation excludes logits processors.
        ours[KEY] = settings_of(options.pop("speculative_config"))
        check_excluded(options)
    if ours:
        options["additional_config"] = {**(options.get("additional_config") or {}), OURS: ours}
    check_options(options)
    _set_plugin(options)
    return options


def _set_plugin(options: dict[str, Any]) -> None:
    """Set the options by which vLLM loads textguide's scheduler and processor."""
    if options.get("scheduler_cls") not in (None, SCHEDULER):
        raise ValueError(
            f"scheduler_cls={options['scheduler_cls']!r} does not work with guidance, which needs {SCHEDULER!r}; "
            "leave it out"
        )
    options["scheduler_cls"] = SCHEDULER
    options["async_scheduling"] = bool(options.get("async_scheduling"))
    processors = list(options.get("logits_processors") or ())
    if not any("GuidedLogitsProcessor" in str(processor) for processor in processors):
        processors.insert(0, PROCESSOR)
    options["logits_processors"] = processors


def with_models(served: str, options: dict[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """Options of an engine with guidance and further models.

    Args:
        served: folder or name of the served model.
        options: as :func:`with_guidance` returns them.
        models: the further models, by name.

    Raises:
        ValueError: a model or an option does not work with the others; the message names it.
        ModelUnavailableError: as for :func:`textguide.load`.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    from .combined_model import CombinedModel

    paths = {name: resolve(path) for name, path in models.items()}
    options = engine_options(options)
    ours = {"models": paths, "served": check_models(served, paths, options.get("max_model_len"))}
    ModelRegistry.register_model(COMBINED_MODEL, CombinedModel)
    _add_ours(options, ours)
    return options


def _ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """Textguide's part of an engine's options."""
    return dict((options.get("additional_config") or {}).get(OURS) or {})


def _add_ours(options: dict[str, Any], ours: Mapping[str, Any]) -> None:
    """Add to textguide's part of an engine's options, in place; what the client passed is not changed."""
    config = options.get("additional_config") or {}
    options["additional_config"] = {**config, OURS: {**_ours(options), **ours}}
