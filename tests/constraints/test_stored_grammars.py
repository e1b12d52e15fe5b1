"""Grammars that one process of a server compiles for another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xgrammar")

from textguide.constraints import JSONSchema, Regex, Vocabulary
from textguide.constraints.engines import xgrammar_engine

from ..smc.toys import VOCABULARY
from ..tiny_folder import make_tokenizer

SCHEMA = JSONSchema({"enum": ["a", "cab"]}, engine="xgrammar")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(xgrammar_engine.FOLDER, str(tmp_path))
    xgrammar_engine.compile_grammar.cache_clear()
    return tmp_path


def never(*_: Any) -> None:
    raise AssertionError("compiled again")


@pytest.mark.parametrize("constraint", [SCHEMA, Regex("(a|ca)b", engine="xgrammar")])
def test_another_process_reads_what_one_has_compiled(
    constraint: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary.of(make_tokenizer(), None, 2)
    first = constraint.start(vocabulary)
    (path,) = folder.iterdir()
    os.utime(path, (1, 1))
    xgrammar_engine.compile_grammar.cache_clear()  # as in another process
    monkeypatch.setattr(xgrammar_engine._import().GrammarCompiler, "compile_regex", never)
    monkeypatch.setattr(xgrammar_engine._import().GrammarCompiler, "compile_json_schema", never)
    second = constraint.start(vocabulary)
    assert path.stat().st_mtime > 1  # used recently
    for byte in (first.mask().nonzero()[0, 0].item(), None):
        assert first.mask().equal(second.mask())
        if byte is not None:
            first.advance(byte)
            second.advance(byte)


def test_another_vocabulary_has_its_own_file(folder: Path) -> None:
    Regex("[ab]+", engine="xgrammar").start(VOCABULARY)
    Regex("[ab]+", engine="xgrammar").start(Vocabulary.of(make_tokenizer(), None, 2))
    assert len(list(folder.iterdir())) == 2


def test_few_files_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgrammar_engine, "MOST_FILES", 3)
    for number in range(6):
        Regex(f"a{{{number + 1}}}", engine="xgrammar").start(VOCABULARY)
    assert len(list(folder.iterdir())) == 3


def test_large_grammars_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xgrammar_engine, "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="cannot be used: it is too large: compiled, it has"):
        SCHEMA.start(VOCABULARY)
    assert not list(folder.iterdir())


def test_a_damaged_file_is_compiled_again(folder: Path) -> None:
    pattern = Regex("(a|ca)b", engine="xgrammar")
    pattern.start(VOCABULARY)
    (path,) = folder.iterdir()
    path.write_text("{")
    xgrammar_engine.compile_grammar.cache_clear()
    assert pattern.start(VOCABULARY).is_prefix(b"ca")


def test_compilers_keep_no_grammars_of_their_own() -> None:
    compiler = xgrammar_engine._compiler(VOCABULARY)[2]
    for number in range(50):
        compiler.compile_regex(f"a{{{number + 1}}}")
    assert compiler.get_cache_size_bytes() == 0


def test_few_vocabularies_are_kept_per_tokenizer() -> None:
    from textguide.constraints import vocabulary

    tokenizer = make_tokenizer()
    for end in range(vocabulary.MOST_KEPT + 5):
        assert Vocabulary.of(tokenizer, None, [end]).ends == {end}
    assert len(vocabulary._VOCABULARIES[tokenizer]) == vocabulary.MOST_KEPT


def test_other_tokens_end_a_text() -> None:
    tokenizer = make_tokenizer()
    assert Vocabulary.of(tokenizer, None, []).with_ends([2, 9]) == Vocabulary.of(tokenizer, None, [2, 9])
