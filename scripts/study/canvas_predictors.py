"""Molecules with a property that no prompt asks for: predictors of canvases against plain decoding.

The bundled model writes molecules with its condition masked. A predictor is trained on its own molecules, which RDKit
judges: a copy of the denoiser's encoder with a head reads them with a random share of tokens masked and says whether
the molecule is valid and has the property. ``DiscreteClassifier`` asks it; ``TFG`` and ``ParticleGibbs`` ask RDKit
about whole texts. A run that was stopped goes on where it was::

    python scripts/study/canvas_predictors.py --output docs/results/diffusion/predictors/confidence --work FOLDER
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textguide import diffusion
from textguide.classifiers import EncoderPredictor
from textguide.eval.results.journal import JOURNAL, Journal
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import adjust, compare_items
from textguide.guidance import TFG, DiscreteClassifier, ParticleGibbs
from textguide.support.files import write_json, write_text
from textguide.tasks import molecules

LENGTH = 32
NAMES = list(molecules.EDGES)


def has(text: str, wanted: dict[str, int]) -> float:
    """1.0 for a molecule in the bins that are wanted."""
    found = molecules.bins_of(text)
    return float(found is not None and all(found[NAMES.index(name)] == number for name, number in wanted.items()))


def reward(wanted: dict[str, int]) -> Any:
    """``log f`` of a finished text, soft enough for texts that are nearly right: 0, or less for each thing wrong."""

    def judge(texts: Sequence[str]) -> list[float]:
        scores = []
        for text in texts:
            found = molecules.bins_of(text)
            wrong = 2.0 * len(wanted) if found is None else 0.0
            if found is not None:
                wrong = sum(abs(found[NAMES.index(name)] - number) for name, number in wanted.items())
            scores.append(-wrong)
        return scores

    return judge


class Study:
    """The model, its own molecules, and the predictor."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model, self.tokenizer = diffusion.load("molecules", device="cpu")
        self.wanted = {name: int(number) for name, number in (one.split("=") for one in arguments.wanted)}
        self.empty = [[self.tokenizer.mask_token_id] * len(NAMES)]

    def write(self, count: int, seed: int, guidance: Any = None, prompts: Any = None) -> list[str]:
        """Molecules, one token a step."""
        texts: list[str] = []
        for start in range(0, count, self.arguments.batch_size):
            rows = min(self.arguments.batch_size, count - start)
            out = diffusion.generate(
                self.model, self.tokenizer, (prompts or self.empty) * rows, gen_length=LENGTH, guidance=guidance,
                temperature=self.arguments.temperature, seed=seed + start, order=self.arguments.order, warn=False,
            )  # fmt: skip
            texts += out.texts
        return texts

    def predictor(self) -> EncoderPredictor:
        """The encoder and head, trained once and kept in the work folder."""
        path = self.arguments.work / "predictor.pt"
        torch.manual_seed(0)
        body, head = copy.deepcopy(self.model), torch.nn.Linear(self.model.config.hidden_size, 2)
        made = EncoderPredictor(body, head, ["no", "yes"], name="property")
        if path.is_file():
            body_state, head_state = torch.load(path, weights_only=True)
            body.load_state_dict(body_state)
            head.load_state_dict(head_state)
        else:
            self.train(made, body, head)
            torch.save((body.state_dict(), head.state_dict()), path)
        body.eval()
        return made

    def train(self, made: EncoderPredictor, body: Any, head: Any) -> None:
        kept = self.arguments.work / "own.json"
        texts = json.loads(kept.read_text()) if kept.is_file() else self.write(self.arguments.texts, 10_000)
        write_json(kept, texts)
        mask, end = self.tokenizer.mask_token_id, self.tokenizer.eos_token_id
        rows = torch.full((len(texts), len(NAMES) + LENGTH), end)
        rows[:, : len(NAMES)] = mask
        for row, text in zip(rows, texts, strict=True):
            ids = self.tokenizer(text).input_ids[:LENGTH]
            row[len(NAMES) : len(NAMES) + len(ids)] = torch.tensor(ids)
        labels = torch.tensor([has(text, self.wanted) for text in texts]).long()
        print(f"{len(texts)} molecules of its own, {labels.float().mean():.3f} of them wanted", flush=True)
        chance = torch.Generator().manual_seed(1)
        optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)
        body.train()
        for step in range(self.arguments.train_steps):
            chosen = torch.randint(len(rows), (64,), generator=chance)
            lost = torch.rand(64, LENGTH, generator=chance) < torch.rand(64, 1, generator=chance)
            ids = rows[chosen].clone()
            ids[:, len(NAMES) :][lost] = mask
            table = torch.nn.functional.one_hot(ids, self.model.config.vocab_size).float()
            said = made.read(table, torch.ones(ids.shape, dtype=torch.bool))
            loss = torch.nn.functional.nll_loss(said, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"predictor, step {step + 1}: loss {float(loss.detach()):.4f}", flush=True)


def settings(study: Study) -> dict[str, Any]:
    """What is compared; chosen before anything was measured."""
    made, judge = study.predictor(), reward(study.wanted)
    found: dict[str, Any] = {"plain": None}
    found |= {f"discrete-classifier γ={g:g}": DiscreteClassifier(made, "yes", g, top_k=4) for g in (2.0, 4.0)}
    found |= {f"to first order γ={g:g}": DiscreteClassifier(made, "yes", g, taylor=True) for g in (1.0, 2.0, 4.0)}
    found |= {f"tfg ρ={r:g}": TFG(judge, weight=r, samples=32, include_prompt=False) for r in (1.0, 3.0)}
    found |= {f"smc 8, w={w:g}": ParticleGibbs(judge, weight=w, particles=8, include_prompt=False) for w in (3.0, 8.0)}
    found["particle Gibbs 4 × 2, w=8"] = ParticleGibbs(
        judge, weight=8.0, particles=4, iterations=2, include_prompt=False
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="molecules of the model's own, and the predictor")
    parser.add_argument("--wanted", nargs="+", default=["rings=1", "logp=3"], metavar="PROPERTY=BIN")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--texts", type=int, default=3000, help="that the predictor is trained on")
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--order", default="confidence")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--only", nargs="+", help="settings whose names begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    study = Study(arguments)
    identity = {name: str(value) for name, value in vars(arguments).items() if name not in ("output", "work", "only")}
    conditions = molecules.prompt_of([study.wanted.get(name, 1) for name in NAMES])
    with Journal.open(arguments.output / JOURNAL, identity) as journal:
        for name, guidance in [*settings(study).items(), ("the condition as a prompt", "prompt")]:
            if name in journal or (arguments.only and not any(name.startswith(one) for one in arguments.only)):
                continue
            begun = time.perf_counter()
            prompted = guidance == "prompt"
            texts = study.write(arguments.items, 0, None if prompted else guidance, [conditions] if prompted else None)
            valid = [float(molecules.bins_of(text) is not None) for text in texts]
            report = molecules.report([(0,) * len(NAMES)] * len(texts), texts)
            wanted = [has(text, study.wanted) for text in texts]
            row = {
                "name": name, "wanted": wanted, "valid": valid, "unique": report.unique,
                "diversity": report.diversity, "seconds": time.perf_counter() - begun, "texts": texts[:20],
            }  # fmt: skip
            journal.append(name, row)
            print(name, sum(wanted) / len(texts), sum(valid) / len(valid), flush=True)
    write_report(arguments, journal.done)


def write_report(arguments: argparse.Namespace, done: dict[str, Any]) -> None:
    """``report.md`` and ``results.json``: shares with intervals, ratios and paired differences to plain."""
    plain = done["plain"]
    others = [row for row in done.values() if row["name"] != "plain"]
    compared = {
        one.label: one
        for one in adjust([
            compare_items(row["wanted"], plain["wanted"], metric="wanted", label=row["name"], baseline="plain")
            for row in others
        ])
    }  # fmt: skip
    lines = [
        "| setting | wanted | × plain | − plain | p (Holm) | valid | wanted, of valid | unique | diversity | seconds |",
        "|" + "---|" * 10,
    ]  # fmt: skip
    base = sum(plain["wanted"]) / len(plain["wanted"])
    summary = []
    for row in done.values():
        wanted, valid, one = mean_interval(row["wanted"]), mean_interval(row["valid"]), compared.get(row["name"])
        of_valid = [w for w, v in zip(row["wanted"], row["valid"], strict=True) if v]
        share = mean_interval(of_valid) if of_valid else None
        told = "" if share is None else f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"
        ratio = wanted.mean / base if base else float("nan")
        difference = "" if one is None else f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
        probability = "" if one is None or one.p_holm is None else f"{one.p_holm:.3g}"
        lines.append(
            f"| {row['name']} | {wanted.mean:.3f} [{wanted.low:.3f}, {wanted.high:.3f}] | {ratio:.2f} | {difference} "
            f"| {probability} | {valid.mean:.3f} [{valid.low:.3f}, {valid.high:.3f}] | {told} | {row['unique']:.3f} "
            f"| {row['diversity']:.3f} | {row['seconds']:.0f} |"
        )
        summary.append({
            "name": row["name"], "wanted": wanted.mean, "low": wanted.low, "high": wanted.high, "ratio": ratio,
            "valid": valid.mean, "of_valid": None if share is None else share.mean, "unique": row["unique"],
            "diversity": row["diversity"],
            "seconds": round(row["seconds"], 1), "against_plain": None if one is None else one.to_dict(),
        })  # fmt: skip
    command = (
        f"python scripts/study/canvas_predictors.py --wanted {' '.join(arguments.wanted)} --items {arguments.items} "
        f"--order {arguments.order}"
    )
    title = f"Predictors of canvases: molecules with {', '.join(arguments.wanted)}, order {arguments.order}"
    text = f"# {title}\n\n`{command}`\n\n"
    text += "95% intervals, paired differences; wanted and valid are shares of all texts.\n\n" + "\n".join(lines) + "\n"
    write_text(arguments.output / "report.md", text)
    write_json(arguments.output / "results.json", {"settings": summary})
    print(text)


if __name__ == "__main__":
    main()
