"""Guidances that are named by their place, ``python:MODULE:CLASS``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from textguide import CFG
from textguide.cli import main, options
from textguide.guidance import About, Guidance, as_guidance
from textguide.guidance.spec import parse

from ..cli.test_methods import parsed

CODE = """
from dataclasses import dataclass
from textguide.guidance import About, CFG, Contrast

@dataclass(frozen=True)
class Halved(Contrast):
    name = "halved-of-a-test"
    about = About("", "half", "one row", "1", "tests")
    k: int = 3

ready = CFG(1.75)
number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"guidance_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Guidance, "registry", dict(Guidance.registry))
    return name


def test_a_class_by_its_place(module: str) -> None:
    found = parse(f"python:{module}:Halved:scale=2,k=5", imports=True)
    assert (type(found).__name__, found.scale, found.k) == ("Halved", 2, 5)  # type: ignore[attr-defined]
    assert found.to_dict()["method"] == "halved-of-a-test"
    assert as_guidance(found.to_dict()) == found
    assert parse(f"python:{module}:ready", imports=True) == CFG(1.75)
    assert options.guidance(parsed("--guidance", f"python:{module}:Halved:k=5")).k == 5


def test_in_json_and_beside_others(module: str, tmp_path: Path) -> None:
    values = {"method": f"python:{module}:Halved", "scale": 3.0}
    (tmp_path / "g.json").write_text(json.dumps(values))
    for text in (json.dumps(values), str(tmp_path / "g.json")):
        assert parse(text, imports=True).scale == 3.0  # type: ignore[attr-defined]
    caif = "caif:classifier=sentiment,target=positive"
    both = parse(f"python:{module}:Halved + {caif}", imports=True)
    assert [part.name for part in both.parts] == ["halved-of-a-test", "caif"]  # type: ignore[attr-defined]
    nested = json.dumps({"method": "composed", "parts": [values, parse(caif).to_dict()]})
    assert parse(nested, imports=True).parts[0].scale == 3.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("Missing", "has no 'Missing'"),
        ("number", "is of type int; it must be a subclass"),
        ("Contrast", "is the class Contrast"),
        ("Halved:kk=5", "'kk' is not a field of halved-of-a-test"),
        ("ready:scale=2", "leave 'scale=2' out"),
    ],
)
def test_what_is_wrong_is_named(module: str, end: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(f"python:{module}:{end}", imports=True)
    with pytest.raises(ValueError, match="there is no module 'no_such_module'"):
        parse("python:no_such_module:X", imports=True)


def test_a_request_imports_nothing(module: str) -> None:
    """Text that comes from elsewhere, such as a client's, runs no code."""
    for given in (f"python:{module}:Halved", f"cfg + python:{module}:Halved"):
        with pytest.raises(ValueError, match="only the command line imports"):
            as_guidance(given)
    values = {"method": f"python:{module}:Halved"}
    for nested in (values, {"method": "composed", "parts": [values, CFG().to_dict()]}):
        with pytest.raises(ValueError, match="is not a guidance"):
            as_guidance(nested)
    assert "halved-of-a-test" not in Guidance.registry


def test_methods_describe_inherited_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "nag"]) == 0
    out = capsys.readouterr().out
    assert "scale = 1.5\n      γ. 1 changes nothing" in out
    assert "negative_prompt = None" in out
    assert "(of Contrast)" in out.replace("\n      ", " ")
    assert "tau = 2.5\n      τ, 1 or more; the paper uses 2.5.\n" in out
    assert max(map(len, out.split("All fields")[1].splitlines())) <= 80


def test_a_new_file_needs_no_line_elsewhere() -> None:
    """The package exports what registers itself in it, and a method says itself what the comparison tries of it."""
    import textguide.guidance as room

    own = [method for method in Guidance.registry.values() if method.__module__.startswith("textguide.guidance.")]
    assert all(getattr(room, method.__name__) is method for method in own)
    imported = Path(room.__file__).read_text(encoding="utf-8")
    assert "globals()[_method.__name__]" in imported
    about = About("", "rule", "a row", "1", "tests", compared=("cfg:scale=1.5", "cfg:scale=2"))
    assert [parse(text).scale for text in about.compared] == [1.5, 2.0]  # type: ignore[attr-defined]


def test_every_field_of_every_method_is_documented() -> None:
    from textguide.guidance.catalogue import described_fields

    lacking = {
        name: [field["name"] for field in described_fields(method) if not field["text"]]
        for name, method in Guidance.registry.items()
        if hasattr(method, "about") and method.__module__.startswith("textguide.")
    }
    assert {name: fields for name, fields in lacking.items() if fields} == {}
