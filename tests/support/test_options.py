"""Options from dataclass fields: types, defaults, help, and messages that name the option."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from textguide.support.options import add_options, from_arguments, named_values, option


@dataclass(frozen=True)
class Settings:
    folder: Path = field(metadata=option("the folder"))
    limit: int | None = field(default=None, metadata=option("items [all]"))
    scale: float = field(default=1.5, metadata=option("strength"))
    system_instruction: str | None = field(default=None, metadata=option("system prompt", flag="--system"))
    kind: str = field(default="a", metadata=option("kind", choices=("a", "b")))
    log: bool = field(default=False, metadata=option("log it"))
    plots: bool | None = field(default=None, metadata=option("draw plots"))
    names: tuple[str, ...] = field(default=(), metadata=option("a name; may be repeated"))
    more: dict[str, Any] | None = field(default=None, metadata=option("more", metavar="NAME=VALUE", parse=named_values))
    hidden: int = 3

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be 1 or more")
        if self.system_instruction == "":
            raise ValueError("system_instruction='' is empty")


def read(*arguments: str, **values: Any) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser, Settings)
    return from_arguments(Settings, parser.parse_args(["--folder", "out", *arguments]), **values)


def test_defaults_are_those_of_the_fields() -> None:
    assert read() == Settings(Path("out"))
    assert read(hidden=4).hidden == 4


def test_types() -> None:
    arguments = ["--limit", "3", "--scale", "2", "--system", "be brief", "--kind", "b", "--log", "--no-plots"]
    found = read(*arguments, "--names", "x", "--names", "y", "--more", "a=1,b=text,c=True")
    assert found == Settings(
        Path("out"), 3, 2.0, "be brief", "b", True, False, ("x", "y"), {"a": 1, "b": "text", "c": True}
    )


def test_help_shows_defaults_once() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Settings)
    text = " ".join(parser.format_help().split())
    assert "strength [1.5]" in text
    assert "items [all]" in text
    assert "None" not in text
    assert "hidden" not in text


def test_a_part_of_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, Settings, ("limit", "log"))
    arguments = parser.parse_args(["--limit", "2"])
    assert vars(arguments) == {"limit": 2, "log": False}
    assert from_arguments(Settings, arguments, folder=Path("x")).limit == 2


def test_messages_name_the_option() -> None:
    with pytest.raises(ValueError, match=r"^--limit=0 must be 1 or more"):
        read("--limit", "0")
    with pytest.raises(ValueError, match=r"^--system='' is empty"):
        read("--system", "")
    with pytest.raises(ValueError, match="--more a: write NAME=VALUE"):
        read("--more", "a")
