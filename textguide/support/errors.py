"""The exceptions that textguide raises on purpose."""

from __future__ import annotations


class ModelUnavailableError(OSError):
    """A model could not be loaded; the message is one line with the reason and the remedy."""


class UnknownModelError(ModelUnavailableError, ValueError):
    """The name is not the name of a model, or the file is not a model: the argument is wrong."""


class MissingExtraError(ImportError):
    """An optional dependency is missing; the message names the extra to install."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {module}, which is not installed: pip install 'textguide[{extra}]'")


class NoParticleLeftWarning(UserWarning):
    """No particle of a prompt finished: all its texts have weight 0."""


class GuidanceHadNoEffectWarning(UserWarning):
    """Guidance never changed the next-token distribution; usually the prompt or the scale is wrong."""


class VerificationWarning(UserWarning):
    """A verified run differs from full forward passes by more than the rounding of its dtype."""


class EmptyTextWarning(UserWarning):
    """A stop text was the first thing that the model generated, so the text is empty."""


class FolderInUseError(OSError):
    """Another process writes to this results folder."""
