"""``textguide replicate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "replicate",
        help="test registered claims of papers, and give the verdict by rule",
        description="Run claims that were registered before their run (FOLDER/NAME/claim.yaml), and judge them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="claims to run")
    parser.add_argument("--all", action="store_true", help="every claim that has not been run")
    parser.add_argument("--folder", type=Path, default=Path("replications"), help="of the claims [%(default)s]")
    parser.add_argument("--plan", action="store_true", help="print passes, tokens and hours, and start nothing")
    parser.add_argument("--list", action="store_true", help="list the claims and their verdicts, and stop")
    parser.add_argument("--draft", action="store_true", help="run a claim that is not committed, too")
    parser.add_argument("--pages", type=Path, metavar="FOLDER", help="write a page a claim and the overview there")
    parser.add_argument("--data", help="folder with local data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--json", action="store_true", help="print verdicts as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan, run and judge."""
    options.evaluation("textguide replicate")
    from textguide.eval.replications import replicating
    from textguide.eval.replications.claim import names

    every = names(arguments.folder)
    chosen = _chosen(arguments, every)
    if arguments.plan:
        _plan(replicating.estimates(arguments.folder, chosen or every))
        return 0
    for name in chosen:
        replicating.replicate(
            arguments.folder,
            name,
            data=arguments.data,
            draft=arguments.draft,
            progress=lambda line: print(line, flush=True),
        )
    verdicts = replicating.judge(arguments.folder)
    if arguments.pages:
        from textguide.eval.replications.pages import write_pages

        write_pages(arguments.folder, arguments.pages)
    if arguments.json:
        print(json.dumps({name: verdicts[name] for name in chosen or verdicts}, ensure_ascii=False))
    else:
        _show(every if arguments.list else chosen, verdicts)
    return 0


def _chosen(arguments: argparse.Namespace, every: list[str]) -> list[str]:
    """The claims to run."""
    for name in arguments.names:
        if name not in every:
            raise ValueError(f"{name!r} is not a claim in {arguments.folder}; use one of {', '.join(every)}")
    if arguments.all and arguments.names:
        raise ValueError("--all excludes names; leave one out")
    chosen = every if arguments.all else list(arguments.names)
    if not chosen and not (arguments.list or arguments.pages or arguments.plan):
        raise ValueError("name a claim, or add --all, --list or --pages FOLDER")
    return chosen


def _plan(estimates: Any) -> None:
    from rich.console import Console

    from ..support.tables import of_plan

    rows: list[Any] = []
    for one in estimates:
        if one.done:
            rows.append(([one.name, "has been run"], ()))
        else:
            rows.append(([one.name, ""], (one.passes, one.tokens, one.hours)))
    left = sum(not one.done for one in estimates)
    Console().print(of_plan("what it takes on one core, about", ["claim", ""], rows, f"{left} to run"))


def _show(chosen: Any, verdicts: Any) -> None:
    for name in chosen:
        found = verdicts.get(name)
        if found is None:
            print(f"{name}: not run")
        else:
            ends = f"{found['difference']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}]"
            print(f"{name}: {found['verdict']} ({ends}, n {found['n']}, p {found['p_holm']:.3g} after Holm)")
