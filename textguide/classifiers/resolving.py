"""Finds classifiers by their names, such as ``sentiment`` or ``hf:FOLDER``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import storage
from .base import Classifier, Scorer
from .function import from_python
from .linear import load_linear
from .rewards import resolve_reward

HOME = Path(__file__).parent / "data"


@dataclass(frozen=True)
class _Spec:
    """One way to name a classifier.

    Args:
        form: how the name is written, for errors.
        load: called with the text after the colon (which may be empty), the language model and its tokenizer.
        argument: whether the name needs a text after the colon.
    """

    form: str
    load: Callable[[str, Any, Any], Classifier]
    argument: bool = False


def _sentiment(argument: str, model: Any, tokenizer: Any) -> Classifier:
    return load_linear(HOME / "sentiment", name="sentiment")


def _sentiment_minilm(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .embedding import load_embedding

    return load_embedding(HOME / "sentiment-minilm", name="sentiment-minilm")


def _sentiment_smollm2(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .causal_head import load_causal

    return load_causal(HOME / "sentiment-smollm2", model, tokenizer, name="sentiment-smollm2")


def _profanity(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .estimator import profanity

    return profanity()


def _gzip(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .compression import GzipClassifier
    from .training import read_examples

    examples = read_examples(argument)
    k = min(5, len(examples.texts))
    return GzipClassifier(examples.texts, examples.labels, labels=examples.classes, k=k, name=f"gzip:{argument}")


def _hf(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .sequence import load_sequence

    storage.refuse_pickle(Path(argument).expanduser())
    return load_sequence(argument)


def _embedding(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .embedding import load_embedding

    return load_embedding(argument)


def _zero_shot(argument: str, model: Any, tokenizer: Any) -> Classifier:
    from .zero_shot import ZeroShotClassifier

    if model is None or tokenizer is None:
        raise ValueError(f"classifier 'zero-shot:{argument}' needs a language model; pass model and tokenizer")
    labels = [label.strip() for label in argument.split(",")]
    return ZeroShotClassifier(model, tokenizer, labels, name=f"zero-shot:{argument}")


def _python(argument: str, model: Any, tokenizer: Any) -> Classifier:
    return from_python(argument)


SPECS = {
    "sentiment": _Spec("sentiment", _sentiment),
    "sentiment-minilm": _Spec("sentiment-minilm", _sentiment_minilm),
    "sentiment-smollm2": _Spec("sentiment-smollm2", _sentiment_smollm2),
    "profanity": _Spec("profanity", _profanity),
    "gzip": _Spec("gzip:FILE.tsv", _gzip, argument=True),
    "hf": _Spec("hf:FOLDER_OR_NAME", _hf, argument=True),
    "embedding": _Spec("embedding:FOLDER", _embedding, argument=True),
    "zero-shot": _Spec("zero-shot:LABEL,LABEL", _zero_shot, argument=True),
    "python": _Spec("python:MODULE:NAME", _python, argument=True),
}


def resolve(value: Classifier | str, model: Any = None, tokenizer: Any = None) -> Classifier:
    """Return ``value`` if it is a classifier, and load the classifier of this name otherwise.

    Args:
        value: a :class:`Classifier`; a folder that ``textguide classifier train`` wrote; or one of the names in
            ``docs/classifiers.md``, such as ``sentiment``.
        model: the guided language model, for classifiers that run on it.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the name is unknown (the message lists the known ones), or the classifier cannot be loaded.
        MissingExtraError: a package that it needs is not installed.
    """
    if isinstance(value, Classifier):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"classifier={value!r} must be a Classifier or the name of one: {_forms()}")
    kind, _, argument = value.strip().partition(":")
    spec = SPECS.get(kind)
    # A folder with the name of a kind can be loaded as ./kind.
    if spec is not None:
        if bool(argument) != spec.argument:
            raise ValueError(f"classifier {value!r} must be written {spec.form}")
        return spec.load(argument, model, tokenizer)
    path = Path(value).expanduser()
    if path.exists():
        return load(path, model, tokenizer)
    near = difflib.get_close_matches(kind, SPECS, n=1)
    hint = f"did you mean {SPECS[near[0]].form!r}? There" if near else "there"
    raise ValueError(f"classifier {value!r} is neither known nor a folder; {hint} are {_forms()}")


def _value(value: Any, model: Any, tokenizer: Any) -> Scorer:
    from .value_head import resolve_value

    return resolve_value(value, model, tokenizer)


RESOLVERS: dict[str, Callable[[Any, Any, Any], Scorer]] = {
    "classifier": resolve,
    "reward": resolve_reward,
    "value": _value,
}
"""For each kind of scorer, a function that finds one by its name; it is called with the name, the language model and
its tokenizer."""


def load(path: str | Path, model: Any = None, tokenizer: Any = None) -> Classifier:
    """Load a classifier from its folder.

    Args:
        path: the folder, or one of its files.
        model: the guided language model; a causal classifier that was trained on it uses it.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the folder does not contain a classifier, or a damaged one; the message names the file.
    """
    description, _ = storage.read(path)
    kind = description["kind"]
    if kind == "linear":
        return load_linear(path)
    if kind == "embedding":
        from .embedding import load_embedding

        return load_embedding(path)
    if kind == "causal":
        from .causal_head import load_causal

        return load_causal(path, model, tokenizer)
    raise ValueError(f"{path} contains a classifier of kind {kind!r}; known are linear, embedding and causal")


def _forms() -> str:
    return ", ".join([*(spec.form for spec in SPECS.values()), "or a folder that 'textguide classifier train' wrote"])
