"""Shallow copies of modules, which share their parameters, buffers and hooks."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def shallow_copy(module: Any) -> Any:
    """A copy of ``module`` with its own dictionary of children: replacing a child does not change ``module``."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    # accelerate stores methods that are bound to the module, and a partial that calls them with the module.
    for name in ("forward", "_old_forward"):
        method = module.__dict__.get(name)
        if isinstance(method, types.MethodType) and method.__self__ is module:
            setattr(copied, name, types.MethodType(method.__func__, copied))
        elif isinstance(method, functools.partial) and method.args[:1] == (module,):
            setattr(copied, name, functools.partial(method.func, copied, *method.args[1:], **method.keywords))
    return copied


def copy_with_own_hooks(module: Any) -> Any:
    """A shallow copy with the hooks of ``module``; hooks that are registered on the copy do not run in ``module``."""
    return separate_hooks(shallow_copy(module))


def separate_hooks(copied: Any) -> Any:
    """Give a shallow copy its own dictionaries of hooks, and return it."""
    for name in _HOOKS:
        if name in copied.__dict__:
            setattr(copied, name, copy.copy(copied.__dict__[name]))
    return copied
