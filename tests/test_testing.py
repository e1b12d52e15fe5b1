"""``textguide.testing.check``: methods of the product pass, and broken methods fail with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from textguide.guidance import AWRS, CFG, About, Composed, Contrast, Guidance
from textguide.testing import MethodError, check

from .guidance import oracles

oracles.collect()
ABOUT = About("", "lu + γ (lc − lu)", "one row in the same pass", "γ = 1", "tests")
# A classifier that wraps a Python function can be written as JSON, but reading it would run code.
WRITE_ONLY = {"gradient-free-classifier", "gradient-free-classifier-1"}


@pytest.mark.parametrize("name", sorted(oracles.SETTINGS.keys() - WRITE_ONLY))
def test_every_setting_of_the_product_passes(name: str) -> None:
    check(oracles.SETTINGS[name])


@pytest.mark.parametrize("name", sorted(oracles.NEUTRAL))
def test_every_neutral_setting_is_neutral(name: str) -> None:
    if name not in WRITE_ONLY:
        check(oracles.NEUTRAL[name], neutral=oracles.NEUTRAL[name])


def test_what_is_no_guidance_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"guidance=1\.5 must be a guidance object"):
        check(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="neutral='cfg'"):
        check(CFG(1.5), neutral="cfg")  # type: ignore[arg-type]


def test_compositions_and_other_kinds_are_checked() -> None:
    check(Composed((CFG(1.5), AWRS("regex:[ab]+"))))
    check(AWRS("regex:[ab]+", particles=3))
    check(oracles.SETTINGS["cfg-zero-star"])


# -- broken methods: each breaks one rule ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WritesIntoItsInput(Contrast):
    name, about = "writes-into-its-input", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return logp[1].lerp_(logp[0], scale)


@dataclass(frozen=True)
class DependsOnTheBatch(Contrast):
    name, about = "depends-on-the-batch", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        difference = logp[0] - logp[1]
        return logp[0] + difference / difference.abs().mean()  # of all rows


@dataclass(frozen=True)
class KeepsAState(Contrast):
    name, about = "keeps-a-state", ABOUT
    last: ClassVar[list[Tensor]] = []

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        self.last.append(logp[0])
        momentum = self.last[-2] if len(self.last) > 1 and self.last[-2].shape == logp[0].shape else 0.0
        return super().mix(logp, scale, step) + momentum


@dataclass(frozen=True)
class DrawsRandomNumbers(Contrast):
    name, about = "draws-random-numbers", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return super().mix(logp, scale, step) + 0.1 * torch.randn_like(logp[0])


@dataclass(frozen=True)
class ReturnsAnotherShape(Contrast):
    name, about = "returns-another-shape", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return logp[:1] + scale * (logp[:1] - logp[1:])


@dataclass(frozen=True)
class LeavesLogSpace(Contrast):
    name, about = "leaves-log-space", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return (logp[0].exp() ** scale / logp[1].exp() ** (scale - 1)).log()


@dataclass(frozen=True)
class HasAnotherNeutralSetting(Contrast):
    name, about = "has-another-neutral-setting", ABOUT

    @property
    def off_at_one(self) -> bool:
        return True

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return logp[1] + (scale + 1) * (logp[0] - logp[1])


@dataclass(frozen=True)
class LosesAFieldInJson(Contrast):
    name, about = "loses-a-field-in-json", ABOUT
    k: int = field(default=50, kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "k"}


@dataclass(frozen=True)
class HoldsAFunction(Contrast):
    name, about = "holds-a-function", ABOUT
    curve: Any = field(default=None, kw_only=True)


class IsNotFrozen(Contrast):
    name, about = "is-not-frozen", ABOUT


IsNotFrozen.__dataclass_params__ = type("Parameters", (), {"frozen": False})  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ReadsProgressAsANumber(Contrast):
    name, about = "reads-progress-as-a-number", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        progress = step.progress if isinstance(step.progress, float) else float(step.progress[0])
        return super().mix(logp, scale * (1 + progress), step)


@dataclass(frozen=True)
class DeclaresThatItIgnoresShifts(Contrast):
    name, about = "declares-that-it-ignores-shifts", ABOUT

    @property
    def ignores_shifts(self) -> bool:
        return True

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return logp[1].abs().sqrt() + scale * logp[0]


@dataclass(frozen=True)
class KnowsTheSizeOfItsVocabulary(Contrast):
    name, about = "knows-the-size-of-its-vocabulary", ABOUT

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        return super().mix(logp, scale, step) + torch.linspace(0, 1, 13)


@dataclass(frozen=True)
class DeclaresThatItIsElementwise(Contrast):
    name, about = "declares-that-it-is-elementwise", ABOUT

    @property
    def is_elementwise(self) -> bool:
        return True

    def mix(self, logp: Tensor, scale: Any, step: Any) -> Tensor:
        difference = logp[0] - logp[1]
        return logp[0] + difference - difference.mean(-1, keepdim=True)


BROKEN: tuple[type[Guidance], ...] = (
    WritesIntoItsInput,
    DependsOnTheBatch,
    KeepsAState,
    DrawsRandomNumbers,
    ReturnsAnotherShape,
    LeavesLogSpace,
    HasAnotherNeutralSetting,
    LosesAFieldInJson,
    HoldsAFunction,
    IsNotFrozen,
    ReadsProgressAsANumber,
    DeclaresThatItIgnoresShifts,
    DeclaresThatItIsElementwise,
    KnowsTheSizeOfItsVocabulary,
)
for kind in BROKEN:  # only the tests below know them
    del Guidance.registry[kind.name]


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (WritesIntoItsInput(2.0), "writes into logp"),
        (DependsOnTheBatch(2.0), "other scores for row .* in a batch than on its own"),
        (KeepsAState(2.0), "another output for the same input"),
        (DrawsRandomNumbers(2.0), "draws random numbers"),
        (ReturnsAnotherShape(2.0), "one score per row and token"),
        (LeavesLogSpace(2.0), "stay in log space"),
        (HasAnotherNeutralSetting(2.0), "declares off_at_one, but mix changes"),
        (LosesAFieldInJson(2.0, k=7), "to_dict must contain every field"),
        (HoldsAFunction(2.0, curve=lambda s: s), "cannot be (written as JSON|hashed)"),
        (IsNotFrozen(2.0), "must be frozen"),
        (ReadsProgressAsANumber(2.0), r"step\.progress and the scale can be tensors"),
        (DeclaresThatItIgnoresShifts(2.0), "declares ignores_shifts"),
        (DeclaresThatItIsElementwise(2.0), "declares is_elementwise"),
        (KnowsTheSizeOfItsVocabulary(2.0), "fails for 4 rows and 2 tokens"),
    ],
)
def test_a_broken_method_fails_with_the_reason(
    guidance: Guidance, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Guidance.registry, guidance.name, type(guidance))
    with pytest.raises(MethodError, match=reason):
        check(guidance)


def test_eight_and_more_are_broken() -> None:
    assert len(BROKEN) >= 8
