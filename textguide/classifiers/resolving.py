"""Classifiers named in a line of text."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import storage
from .base import Classifier
from .function import from_python
from .linear import load_linear

HOME = Path(__file__).parent / "data"


@dataclass(frozen=True)
class _Spec:
    """One way to name a classifier.

    Args:
        form: how it is written, for errors.
        load: gets what stands behind the colon (empty: nothing), the language model and its tokenizer.
        argument: something must stand behind the colon.
    """

    form: str
    load: Callable[[str, Any, Any], Classifier]
    argument: bool = False


def _sentiment(argument: str, model: Any, tokenizer: Any) -> Classifier:
    return load_linear(HOME / "sentiment", name="sentiment")


def _python(argument: str, model: Any, tokenizer: Any) -> Classifier:
    return from_python(argument)


SPECS = {
    "sentiment": _Spec("sentiment", _sentiment),
    "python": _Spec("python:MODULE:NAME", _python, argument=True),
}


def resolve(value: Classifier | str, model: Any = None, tokenizer: Any = None) -> Classifier:
    """The classifier that ``value`` is or names.

    Args:
        value: a :class:`Classifier`, which comes back as it is; a folder that ``textguide classifier train`` wrote;
            or one of the forms in ``docs/classifiers.md``, such as ``sentiment``.
        model: the language model that is guided, where the classifier runs on it.
        tokenizer: its tokenizer.

    Raises:
        ValueError: nothing has that name (the message lists what there is), or it cannot be loaded.
        MissingExtraError: what it needs is not installed.
    """
    if isinstance(value, Classifier):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"classifier={value!r} must be a Classifier or a text that names one: {_forms()}")
    kind, colon, argument = value.strip().partition(":")
    spec = SPECS.get(kind)
    # A folder that happens to be called like a kind is reached as ./kind.
    if spec is not None and (not colon or argument or not spec.argument):
        if spec.argument and not argument:
            raise ValueError(f"classifier {value!r} must be {spec.form}")
        if argument and ":" not in spec.form:
            raise ValueError(f"classifier {value!r} takes nothing behind the colon; write {spec.form}")
        return spec.load(argument, model, tokenizer)
    if spec is not None:
        raise ValueError(f"classifier {value!r} must be {spec.form}")
    path = Path(value).expanduser()
    if path.exists():
        return load(path)
    near = difflib.get_close_matches(kind, SPECS, n=1)
    hint = f"did you mean {SPECS[near[0]].form!r}? " if near else ""
    raise ValueError(f"classifier {value!r} is neither known nor a folder; {hint}There are {_forms()}")


def load(path: str | Path) -> Classifier:
    """A classifier from the folder that it was saved in.

    Raises:
        ValueError: it holds no classifier, or a damaged one; the message names the file.
    """
    description, _ = storage.read(path)
    kind = description["kind"]
    loader = LOADERS.get(kind)
    if loader is None:
        raise ValueError(f"{path} holds a classifier of kind {kind!r}; known are {', '.join(LOADERS)}")
    return loader(path)


LOADERS: dict[str, Callable[[Any], Classifier]] = {"linear": load_linear}


def _forms() -> str:
    return ", ".join([*(spec.form for spec in SPECS.values()), "or a folder that 'textguide classifier train' wrote"])
