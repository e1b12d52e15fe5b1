"""Masked tokens that real models fill in, plain and guided: rxnmapper's ALBERT and AntiBERTy::

    pip install --no-deps rxnmapper==0.4.3 antiberty==0.1.3
    python scripts/study/real_masked.py --json docs/results/diffusion/real_masked.json

Antibody chains are the variable domains of trastuzumab and adalimumab (public sequences); reactions are textbook ones.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from textguide import ACFG, CFG, diffusion
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import compare_items
from textguide.guidance import TokenPerturbation
from textguide.support.files import write_json

# fmt: off
CHAINS = [
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
]
REACTIONS = [
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
    "CCO.CC(=O)O>>CCOC(C)=O",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
    "CC(=O)c1ccccc1.[BH4-].[Na+]>>CC(O)c1ccccc1",
    "O=C(O)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
    "Fc1ccc([N+](=O)[O-])cc1.C1CCNCC1>>O=[N+]([O-])c1ccc(N2CCCCC2)cc1",
    "CC(C)(C)OC(=O)NCc1ccccc1.Cl>>NCc1ccccc1",
    "CI.Oc1ccccc1>>COc1ccccc1",
    "COC(=O)c1ccc(Cl)cc1.[Li+].[OH-]>>O=C(O)c1ccc(Cl)cc1",
    "O=[N+]([O-])c1ccc(Br)cc1.[H][H]>>Nc1ccc(Br)cc1",
]
SETTINGS: dict[str, Any] = {
    "plain": None,
    "CFG γ=1.5": CFG(1.5),
    "CFG γ=2": CFG(2.0),
    "A-CFG γ=1.5 ρ=0.3": ACFG(1.5, 0.3),
    "A-CFG γ=1.5 ρ=0.7": ACFG(1.5),
    "A-CFG γ=2 ρ=0.7": ACFG(2.0),
    "shuffled γ=1.25": TokenPerturbation(1.25),
    "shuffled γ=1.5": TokenPerturbation(1.5),
    "shuffled γ=2": TokenPerturbation(2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.4, help="of the tokens masked")
    parser.add_argument("--draws", type=int, default=3, help="maskings a text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name, texts in (("antiberty", CHAINS), ("rxnmapper", REACTIONS)):
        results[name] = study(name, texts, arguments.share, arguments.draws)
        table = Table(title=f"{name}: {int(results[name]['plain']['n'])} masked tokens")
        for column in ("setting", "accuracy", "− plain"):
            table.add_column(column)
        for setting, row in results[name].items():
            shift = row.get("difference")
            table.add_row(
                setting,
                f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                "" if shift is None else f"{shift:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]",
            )
        Console().print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.json, {"share": arguments.share, "draws": arguments.draws, "results": results})


def study(name: str, texts: list[str], share: float, draws: int) -> dict[str, dict[str, float]]:
    """Share of masked tokens that come back, by setting; for reactions only the product is masked."""
    model, tokenizer = diffusion.load(name, device="cpu")
    denoiser = diffusion.denoiser(model, tokenizer)
    chance = random.Random(0)
    rows, truths = [], []
    arrow = tokenizer.convert_tokens_to_ids(">>")
    for text in texts * draws:
        ids = denoiser.encode(text)
        start = ids.index(arrow) + 1 if arrow in ids and name == "rxnmapper" else 0
        places = sorted(chance.sample(range(start, len(ids)), max(1, round(share * (len(ids) - start)))))
        truths.append([ids[place] for place in places])
        rows.append([denoiser.mask_id if place in places else token for place, token in enumerate(ids)])
    results: dict[str, dict[str, float]] = {}
    right: dict[str, list[float]] = {}
    for setting, guidance in SETTINGS.items():
        out = diffusion.infill(denoiser, tokenizer, rows, guidance=guidance, steps=6, warn=False)
        filled = [out.sequences[n][out.targets[n]].tolist() for n in range(len(rows))]
        # One value a text, so that the interval respects that its masks are not independent.
        right[setting] = [sum(map(int.__eq__, f, t)) / len(t) for f, t in zip(filled, truths, strict=True)]
        interval = mean_interval(right[setting], method="bootstrap")
        results[setting] = {"accuracy": interval.mean, "low": interval.low, "high": interval.high,
                            "n": sum(map(len, truths))}  # fmt: skip
        if setting != "plain":
            compared = compare_items(right[setting], right["plain"])
            results[setting] |= {"difference": compared.difference, "difference_low": compared.low,
                                 "difference_high": compared.high, "p": compared.p}  # fmt: skip
    return results


if __name__ == "__main__":
    main()
