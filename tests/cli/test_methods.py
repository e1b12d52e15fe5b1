"""``textguide methods`` and ``--guidance``."""

from __future__ import annotations

import argparse
import json

import pytest

from textguide.cli import main, options
from textguide.guidance import APG, CAIF, Formula
from textguide.guidance.catalogue import methods


def test_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {method["name"] for method in found} == {method["name"] for method in methods()}
    assert main(["methods"]) == 0
    assert "2410.02416" in capsys.readouterr().out
    assert main(["methods", "apg"]) == 0
    assert "max_norm" in capsys.readouterr().out
    assert main(["methods", "apgg"]) == 2
    assert "did you mean apg" in capsys.readouterr().err


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_model(parser)
    options.add_guidance(parser)
    return parser.parse_args(list(argv))


def test_any_guidance_from_the_command_line() -> None:
    assert options.guidance(parsed("--guidance", "apg:scale=2.0")) == APG(2.0)
    found = options.guidance(parsed("--guidance", "formula:cond - 0.5*last + C('sentiment', 'positive')"))
    assert found.parts == (Formula("cond - 0.5*last"), CAIF("sentiment", "positive", 1.0))
    with pytest.raises(ValueError, match="--min-scale describes classifier-free guidance"):
        options.guidance(parsed("--guidance", "apg", "--min-scale", "1"))
    with pytest.raises(ValueError, match="--classifier excludes --guidance"):
        options.guidance(parsed("--guidance", "apg", "--classifier", "sentiment", "--target", "positive"))


def test_extra_models_have_names() -> None:
    assert options.extra_models(parsed()) is None
    for wrong in ("folder", "=folder", "amateur="):
        with pytest.raises(ValueError, match="must be NAME=MODEL"):
            options.extra_models(parsed("--extra-model", wrong))
