"""A guidance as a folder: transformers loads it, and it writes what ``textguide.generate`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import textguide
from textguide import AWRS, CAIF, CFG
from textguide.cli import main
from textguide.constraints import Predicate, Regex
from textguide.engine.exporting import export_generate
from textguide.guidance import APG, About, Contrast, ContrastiveDecoding, DoLa, catalogue
from textguide.guidance.base import Guidance
from textguide.guidance.places import place

from ..tiny_folder import make_model, make_tokenizer

PROMPT = "the dragon"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    return make_model(len(tokenizer)), tokenizer


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that transformers copies go where nothing else reads them."""
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def run(loaded: tuple[Any, Any], folder: Path, **arguments: Any) -> list[int]:
    model, tokenizer = loaded
    inputs = tokenizer([PROMPT], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    given = {"max_new_tokens": 6, "do_sample": False, "trust_remote_code": True, **arguments}
    ids = model.generate(**inputs, custom_generate=str(folder), **given)
    new: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return new


@pytest.mark.parametrize(
    "guidance",
    [CFG(2.0), CFG(3.0, negative_prompt='a "dog"\\'), [APG(2.0), AWRS(Regex("[a-f]{6}"), sampler="mask")]],
    ids=["cfg", "negative", "constraint"],
)
def test_it_writes_what_generate_writes(loaded: tuple[Any, Any], tmp_path: Path, guidance: Any) -> None:
    folder = export_generate(guidance, tmp_path / "method")
    expected = textguide.generate(*loaded, PROMPT, guidance, max_new_tokens=6).new_tokens[0]
    assert run(loaded, folder, tokenizer=loaded[1]) == expected
    if not isinstance(guidance, list):
        assert expected != textguide.generate(*loaded, PROMPT, None, max_new_tokens=6).new_tokens[0]


def test_fields_may_be_changed_in_a_call(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    folder = export_generate("cfg:scale=1.1", tmp_path / "method")
    expected = textguide.generate(*loaded, PROMPT, CFG(4.0), max_new_tokens=6).new_tokens[0]
    assert run(loaded, folder, guidance={"scale": 4.0}) == expected
    assert run(loaded, folder) != expected


def test_further_models(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    small = make_model(len(loaded[1]), seed=1)
    small.save_pretrained(tmp_path / "small")
    loaded[1].save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"needs a model named 'amateur'.*--extra-model amateur=MODEL"):
        export_generate(ContrastiveDecoding(), tmp_path / "method")
    folder = export_generate(ContrastiveDecoding(), tmp_path / "method", models={"amateur": "smollm2-small"})
    expected = textguide.generate(*loaded, PROMPT, ContrastiveDecoding(), models={"amateur": small}, max_new_tokens=6)
    assert run(loaded, folder, models={"amateur": small}) == expected.new_tokens[0]
    with pytest.raises(ValueError, match=r"amateur='.*small' is a file on this machine"):
        export_generate(ContrastiveDecoding(), tmp_path / "other", models={"amateur": str(tmp_path / "small")})


def test_named_models_are_loaded(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    small = make_model(len(loaded[1]), seed=1)
    small.save_pretrained(tmp_path / "small")
    loaded[1].save_pretrained(tmp_path / "small")
    folder = export_generate(ContrastiveDecoding(), tmp_path / "method", models={"amateur": "smollm2-small"})
    code = folder / "custom_generate" / "generate.py"
    code.write_text(code.read_text().replace("smollm2-small", str(tmp_path / "small")))
    expected = textguide.generate(*loaded, PROMPT, ContrastiveDecoding(), models={"amateur": small}, max_new_tokens=6)
    assert run(loaded, folder) == expected.new_tokens[0]


def test_the_folder_is_what_transformers_reads(tmp_path: Path) -> None:
    folder = export_generate(CAIF("sentiment", "positive", 3), tmp_path / "method")
    assert (folder / "custom_generate" / "requirements.txt").read_text() == f"textguide>={textguide.__version__}\n"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- custom_generate\n")
    assert "needed here" in card
    assert "2205.07276" in card


def test_a_repository_is_not_trusted_unasked(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    folder = export_generate(CFG(2.0), tmp_path / "method")
    with pytest.raises(ValueError, match="trust_remote_code"):
        run(loaded, folder, trust_remote_code=False)


# A method that a test defines is not part of an installed package.
METHODS = [name for name, kind in Guidance.registry.items() if kind.__module__.startswith("textguide.")]
METHODS = [method["name"] for method in catalogue.methods() if method["name"] in METHODS]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exported_or_refused_by_name(name: str, tmp_path: Path) -> None:
    guidance = catalogue.example(Guidance.registry[name])
    models = {branch.model: "smollm2-small" for branch in getattr(guidance, "branches", ()) if branch.model}
    models |= {"reward": "smollm2-small"} if name == "genarm" else {}
    if place("generate").reason(guidance) is not None:
        with pytest.raises(ValueError, match=name):
            export_generate(guidance, tmp_path / "method", models=models)
        return
    folder = export_generate(guidance, tmp_path / "method", models=models)
    names: dict[str, Any] = {}
    exec(compile((folder / "custom_generate" / "generate.py").read_text(), name, "exec"), names)
    assert Guidance.from_dict(names["GUIDANCE"]).to_json() == guidance.to_json()


@dataclass(frozen=True)
class Elsewhere(Contrast):
    """A method of a user."""

    about = About("", "lc", "none", "γ = 1", "tests")
    name = "elsewhere-than-textguide"


Guidance.registry.pop("elsewhere-than-textguide")


def test_what_no_other_machine_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"comes from the module tests\.engine\.test_exporting"):
        export_generate(Elsewhere(2.0), tmp_path / "method")
    with pytest.raises(ValueError, match="plain decoding"):
        export_generate(None, tmp_path / "method")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"classifier='.*mine' is a file on this machine"):
        export_generate(CAIF(str(tmp_path / "mine"), "positive"), tmp_path / "method")
    classifier = textguide.classifiers.FunctionClassifier(lambda texts: [0.0] * len(texts), ["no", "yes"])
    with pytest.raises(ValueError, match="contains an object"):
        export_generate(CAIF(classifier, "yes"), tmp_path / "method")
    with pytest.raises(ValueError, match="contains an object"):
        export_generate(AWRS(Predicate(str.isalpha)), tmp_path / "method")
    assert not (tmp_path / "method").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "method"
    assert main(["export-generate", "dola", "--out", str(out)]) == 0
    assert "custom_generate=" in capsys.readouterr().out
    assert DoLa().to_dict()["method"] in (out / "custom_generate" / "generate.py").read_text()
    assert main(["export-generate", "cfg", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export-generate", "cfg", "--out", str(out), "--overwrite"]) == 0
