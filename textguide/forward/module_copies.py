"""Shallow copies of modules, which share their parameters, buffers and hooks."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def twin_of(module: Any) -> Any:
    """``module`` with a list of children of its own; whatever is put into that list leaves the module as it is."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    # accelerate keeps methods bound to the module, and a call of them bound into its hook.
    for name in ("forward", "_old_forward"):
        kept = module.__dict__.get(name)
        if isinstance(kept, types.MethodType) and kept.__self__ is module:
            setattr(twin, name, types.MethodType(kept.__func__, twin))
        elif isinstance(kept, functools.partial) and kept.args[:1] == (module,):
            setattr(twin, name, functools.partial(kept.func, twin, *kept.args[1:], **kept.keywords))
    return twin


def hooked_twin(module: Any) -> Any:
    """A twin with lists of hooks of its own: those of ``module``, and whatever is registered on the twin alone."""
    return own_hooks(twin_of(module))


def own_hooks(twin: Any) -> Any:
    """``twin``, whose lists of hooks are from now on its own."""
    for name in _HOOKS:
        if name in twin.__dict__:
            setattr(twin, name, copy.copy(twin.__dict__[name]))
    return twin
