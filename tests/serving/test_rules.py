"""What may be asked for: nothing that names a file, a folder or code; nothing too large; and every error says what."""

from __future__ import annotations

import builtins
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from textguide.guidance import Guidance
from textguide.serving.errors import RefusedError
from textguide.serving.limits import Limits
from textguide.serving.method_schema import loading_fields, method_forms
from textguide.serving.requests import parse_json
from textguide.serving.rules import Rules

RULES = Rules()
RULES_FORMS = method_forms()


def guided(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a", "guidance": [fields]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": 5}, "prompt=5 must be a text"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a" * 9000}, "9,000 characters, and this server takes 8,000"),
        ({"prompt": []}, "the chat is empty"),
        ({"prompt": [{"role": "king", "content": "a"}]}, "message 1 must have a role"),
        ({"prompt": [{"role": "user", "content": 3}]}, "message 1=3 must be a text"),
        ({"prompt": [{"role": "user", "content": "b" * 5000}] * 2}, "the chat is longer"),
        ({"prompt": "a", "file": "/etc/passwd"}, "'file' means nothing here"),
        ({"prompt": "a", "options": {"max_new_tokens": 100000}}, "max_new_tokens=100000 must lie between 1 and 256"),
        ({"prompt": "a", "options": {"max_new_tokens": 0}}, "max_new_tokens=0"),
        ({"prompt": "a", "options": {"max_new_tokens": True}}, "must be a whole number"),
        ({"prompt": "a", "options": {"temperature": "hot"}}, "temperature='hot' must be a number"),
        ({"prompt": "a", "options": {"temperature": -1}}, "temperature=-1"),
        ({"prompt": "a", "options": {"logits_processor": []}}, "'logits_processor' means nothing here"),
        ({"prompt": "a", "options": {"seed": 2**70}}, "must lie between"),
        ({"prompt": "a", "options": []}, None),
        ({"prompt": "a", "options": [1]}, "must be an object"),
        ({"prompt": "a", "forced": ["x"]}, "must be a list of token ids"),
        ({"prompt": "a", "forced": [-4]}, "must be a list of token ids"),
        ({"prompt": "a", "forced": [1] * 200, "options": {"max_new_tokens": 9}}, "max_new_tokens=9; raise it"),
        ({"prompt": "a", "guidance": "cfg:scale=2"}, "must be an object with a method"),
        ({"prompt": "a", "guidance": [7]}, "must be an object with a method"),
        (guided(method="cfgg"), "'cfgg' is not a guidance"),
        (guided(method="cfg", scala=3), "'scala' is not a field of cfg"),
        (guided(method="cfg", scale="big"), "scale='big' must be a finite number"),
        (guided(method="cfg", negative_prompt="n" * 9000), "negative_prompt has 9,000 characters"),
        (guided(method="caif", target="positive"), "caif needs classifier; add it"),
        (guided(method="caif", classifier="sentiment", target="positive", top_k=None), "top_k=None"),
        (guided(method="caif", classifier="sentiment", target="positive", top_k=5000), "200 or fewer"),
        (guided(method="caif", classifier="zero-shot:a,b,c,d,e", target="a"), "500 questions a step"),
        (guided(method="formula", expression="cond + 5*C('/some/folder', 'a')"), "classifier"),
        (guided(method="awrs", constraint="regex:a", particles=1000), "particles=1000 is more than the 16"),
        (guided(method="eager", max_branches=99), "99 is more than the 16"),
        (guided(method="acfg"), "no masks to fill"),
        (guided(method="tfg", predictor="python:os:getcwd"), "predictor='python:os:getcwd' is not offered here"),
        (guided(method="discrete-classifier", predictor="/etc/passwd"), "is not offered here"),
        (guided(method="formula", expression=" + ".join(f"P('{i}')" for i in range(12))), "leave some out"),
        ({"prompt": "a", "guidance": [{"method": "cfg"}, {"method": "apg"}]}, "with their own branches"),
        ({"prompt": "a", "guidance": [{"method": "cfg"}] * 9}, "compose eight at most"),
        (guided(method="awrs", constraint={"kind": "predicate", "prefix_fn": "os:system"}), "object with a kind"),
        (guided(method="awrs", constraint={"kind": "any-of", "constraints": ["python:os:system"]}), "reads no files"),
        (guided(method="awrs", constraint={"kind": "not", "constraint": "json-schema:x"}), "file"),
        (guided(method="awrs", constraint={"kind": "regex", "pattern": r"(a|b)\1"}), "--allow regex:PATTERN"),
        (guided(method="awrs", constraint={"kind": "regex", "pattern": "a", "engine": "regex"}), "hold up others"),
        (guided(method="awrs", constraint={"kind": "any-of", "constraints": [r"regex:(a|b)\1"]}), "--allow"),
        (guided(method="awrs", constraint={"kind": "regex", "pattern": "("}), "cannot be used"),
        (guided(method="awrs", critic="python:os:system"), "critic is a function"),
        (guided(method="composed", parts=[{"method": "caif", "classifier": "hf:x", "target": "1"}]), "not offered"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(values: dict[str, Any], said: str | None) -> None:
    if said is None:
        RULES.text_request(values)
        return
    with pytest.raises(RefusedError) as caught:
        RULES.text_request(values)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a": ' * 50_000],
    ids=lambda b: str(b[:9]),
)
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(RefusedError, match="JSON"):
        parse_json(body)


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file and a module of which every touch is an error."""
    path = tmp_path / "secret.json"
    path.write_text("{}")
    (tmp_path / "secretmodule.py").write_text("raise SystemExit('the module was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    opened, stat, imported = builtins.open, Path.is_dir, importlib.import_module

    def guard(name: Any) -> None:
        assert "secret" not in str(name), f"{name} was touched"

    def opening(file: Any, *args: Any, **kwargs: Any) -> Any:
        guard(file)
        return opened(file, *args, **kwargs)

    def importing(name: str, package: str | None = None) -> Any:
        guard(name)
        return imported(name, package)

    def asking(self: Path) -> bool:
        guard(self)
        return stat(self)

    monkeypatch.setattr(builtins, "open", opening)
    monkeypatch.setattr(importlib, "import_module", importing)
    monkeypatch.setattr(Path, "is_dir", asking)
    for name in ("read_text", "read_bytes", "open", "exists", "is_file"):
        monkeypatch.setattr(Path, name, lambda self, *a, **k: guard(self) or "{}")
    return path


def test_no_field_of_any_method_touches_a_file_or_a_module(secret: Path) -> None:
    """Every field of every method is given what names a file or code elsewhere, and is built and looked at; what such a
    field would load when it runs, is refused before."""
    named = [str(secret), f"{secret.parent}", f"hf:{secret}", f"gzip:{secret}", f"embedding:{secret}"]
    named += [f"python:secretmodule:{'thing'}", f"json-schema:{secret}", f"grammar:{secret}", f"{secret}.lark"]
    named_otherwise = [
        {"folder": str(secret)},
        {"kind": "json-schema", "schema": str(secret)},
        {"kind": "grammar", "grammar": f"{secret}.lark"},
        {"kind": "predicate", "prefix_fn": "secretmodule:f"},
    ]
    refused = 0
    for form in RULES_FORMS:
        for field in form["fields"]:
            for value in [*named, *named_otherwise]:
                values = {**form["example"], "method": form["name"], field["name"]: value}
                try:
                    RULES.guidance([{k: v for k, v in values.items() if v not in ("FOLDER",)}])
                except RefusedError:
                    refused += 1
    assert refused > 1000


def test_what_loads_by_name_is_offered_by_name_alone() -> None:
    """Fields whose texts are loaded when a run begins."""
    known = {("caif", "classifier"), ("gradient-free-classifier", "classifier"), ("reward", "model"),
             ("value", "value"), ("steering", "vector"), ("token-prior", "prior"), ("cfg", "distilled")}  # fmt: skip
    assert {("reward", "model"), ("value", "value"), ("cfg", "distilled")} <= loading_fields()
    for name, field in known:
        example = next(form["example"] for form in RULES_FORMS if form["name"] == name)
        with pytest.raises(RefusedError, match="--allow NAME"):
            RULES.guidance({**example, "method": name, field: "/some/folder"})
        allowed = Rules(named=("/some/folder",)).guidance({**example, "method": name, field: "/some/folder"})
        assert allowed is not None


def test_every_method_has_a_form_and_every_field_its_help() -> None:
    own = {name for name, kind in Guidance.registry.items() if kind.__module__.startswith("textguide.")}
    assert own - {"composed"} <= {form["name"] for form in RULES_FORMS}
    for form in RULES_FORMS:
        assert form["summary"]
        for field in form["fields"]:
            assert field["help"], (form["name"], field["name"])
            assert "``" not in field["help"]
    json.dumps(RULES_FORMS)


@pytest.mark.parametrize(
    ("method", "name", "low", "high"),
    [("cfg", "start", 0.0, 1.0), ("cfg", "scale", None, None), ("awrs", "particles", 1, None), ("vcd", "steps", 0, 999),
     ("nag", "tau", 1.0, None), ("acfg", "remask_ratio", 0.0, 1.0), ("corrsynth", "group", 2, None)],
)  # fmt: skip
def test_ranges_are_those_of_the_method(method: str, name: str, low: float | None, high: float | None) -> None:
    field = next(f for form in RULES_FORMS if form["name"] == method for f in form["fields"] if f["name"] == name)
    assert (field["minimum"], field["maximum"]) == (low, high)


def test_choices_are_those_of_the_method() -> None:
    field = next(
        f for form in RULES_FORMS if form["name"] == "acfg" for f in form["fields"] if f["name"] == "remask_scope"
    )
    assert field["choices"] == ["all", "generated", "prompt"]


def test_every_example_of_the_forms_is_taken() -> None:
    for form in RULES_FORMS:
        if form["name"] in (
            "reward",
            "value",
            "steering",
            "acfg",
            "vcd",
            "feynman-kac",
            "discrete-classifier",
            "tfg",
            "tsg",
            "particle-gibbs",
        ):
            continue
        assert RULES.guidance({**form["example"]}) is not None, form["name"]


def test_limits_can_be_changed() -> None:
    small = Rules(Limits(characters=3, new_tokens=2))
    with pytest.raises(RefusedError, match="takes 3"):
        small.text_request({"prompt": "four"})
    with pytest.raises(RefusedError, match="between 1 and 2"):
        small.text_request({"prompt": "a", "options": {"max_new_tokens": 3}})
