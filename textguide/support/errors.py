"""The exceptions that textguide raises on purpose."""

from __future__ import annotations


class ModelUnavailableError(OSError):
    """A model could not be loaded; the message is one line that says why and what to do about it."""


class UnknownModelError(ModelUnavailableError, ValueError):
    """No model has the name that was given, or the file of that name is none: the argument is wrong."""


class MissingExtraError(ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {module}, which is not installed: pip install 'textguide[{extra}]'")


class NoParticleLeftWarning(UserWarning):
    """Every particle of a prompt was given up: its texts have weight 0."""


class GuidanceHadNoEffectWarning(UserWarning):
    """Guidance was asked for and never moved the next-token distribution: usually the wrong prompt or scale."""


class FolderInUseError(OSError):
    """Another process writes to this results folder."""
