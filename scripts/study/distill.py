"""Guidance distilled into an adapter: accuracy on LAMBADA and elsewhere, the dial, objectives, other teachers.

Trained on texts that the model writes itself behind openings of one word; nothing of a task is trained on. Each part
writes ``docs/results/distill/PART.json``, keeps what it has measured in a folder, and goes on where it was::

    python scripts/study/distill.py lambada --work FOLDER --data DATA
    python scripts/study/distill.py dial why elsewhere teachers iterated objectives curves --work FOLDER --data DATA
    python scripts/study/distill.py larger --work FOLDER --data DATA --larger "$(python scripts/bench/larger_model.py)"
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from distill_folder import COUNT, FEW, GAMMA, LENGTH, SHORT, Study, against, told
from distill_teachers import teachers

import textguide
from textguide import CFG
from textguide.distillation import texts
from textguide.distillation.objectives import OBJECTIVES
from textguide.distillation.reading import BatchReading
from textguide.engine.given_texts import as_items, distributions, leading
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.sweeps import verdict
from textguide.forward.low_rank import CARD, merged
from textguide.guidance import algebra
from textguide.support.files import write_json

DIAL = (1.0, 1.25, 1.5, 1.75, 2.0)
TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
CURVES = {"steps": (10, 20, 80), "texts": (40,), "rank": (1, 64)}


def lambada(study: Study) -> dict[str, Any]:
    """Every row, a few seeds."""
    plain, guided = study.lambada("lambada-base", lambda: study.load()[0], [None, CFG(GAMMA)], None)
    seeds: dict[str, Any] = {}
    for seed in study.seeds:
        folder = study.adapter(f"seed{seed}", CFG(GAMMA), seed=seed)
        student = partial(study.student, folder)
        (own,) = study.lambada(f"lambada-seed{seed}", student, [None], None)
        seeds[str(seed)] = own
    mean = {name: np.mean([one[name] for one in seeds.values()], axis=0).tolist() for name in ("right", "nll")}
    ways = {"plain": plain, "guided": guided, "distilled": mean}
    card = json.loads((study.work / f"seed{study.seeds[0]}" / CARD).read_text(encoding="utf-8"))
    return {
        "lambada": {way: float(np.mean(one["right"])) for way, one in ways.items()},
        "intervals": {way: told(one) for way, one in ways.items()},
        "seeds": {
            seed: {**told(one), "against guided": against(one, guided), "training": study.cost(f"seed{seed}")}
            for seed, one in seeds.items()
        },
        "distilled against guided": against(mean, guided), "distilled against plain": against(mean, plain),
        "card": {**card, "losses": None},
    }  # fmt: skip


def halves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts cut in the middle, for an objective that exchanges prompts."""
    whole = [[*row["prompt"], *row["completion"]][:LENGTH] for row in rows]
    return [{"prompt": ids[: len(ids) // 2], "completion": ids[len(ids) // 2 :]} for ids in whole if len(ids) > 3]


def objectives(study: Study) -> dict[str, Any]:
    """Every objective, on the model's own texts and on ordinary ones, for as many steps, a few seeds."""
    base = study.load()[0]
    plain, guided = study.lambada("few-base", lambda: base, [None, CFG(GAMMA)], FEW)
    ordinary = [{"text": text} for text in study.passages()[:COUNT]]
    found: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for seed in study.seeds:
        own = study.own_texts(seed)
        for name in OBJECTIVES:
            if name == "likelihood":
                continue  # of texts without weights: it would learn to write as before
            for source in ("own", "ordinary") if name in ("forward-kl", "gft") else ("own",):
                given = ordinary if source == "ordinary" else halves(own) if name == "cca" else own
                key = f"objective-{name}-{source}-{seed}"
                folder = study.adapter(
                    key, CFG(GAMMA), objective=name, steps=SHORT, texts=COUNT, tokens=LENGTH, source="given",
                    given=given, seed=seed,
                )  # fmt: skip
                (one,) = study.lambada(f"{key}-lambada", lambda f=folder: study.student(f), [None], FEW)  # type: ignore[misc]
                found.setdefault((name, source), []).append((one, study.cost(key)))
    rows = []
    for (name, source), ones in found.items():
        mean = {what: np.mean([one[what] for one, _ in ones], axis=0).tolist() for what in ("right", "nll")}
        rows.append(
            {
                "objective": name, "source": source, **told(mean), "against guided": against(mean, guided),
                "accuracy of seeds": [float(np.mean(one["right"])) for one, _ in ones],
                "seconds of seeds": [cost["seconds"] for _, cost in ones],
            }
        )  # fmt: skip
    return {"plain": told(plain), "guided": told(guided), "objectives": rows, "steps": SHORT, "texts": COUNT}


def elsewhere(study: Study) -> dict[str, Any]:
    """Other tasks, ordinary text, free text, and what a token costs, for the first seed."""
    model, tokenizer = study.load()
    folder, passages = study.work / "seed0", study.passages()[-200:]
    found: dict[str, Any] = study.measured(
        "elsewhere",
        lambda: verdict.judge(
            model, tokenizer, CFG(GAMMA), str(folder), prompts=[text[: len(text) // 2] for text in passages[:100]],
            limit=100, data=str(study.data),
        ),
    )  # fmt: skip

    def ordinary() -> dict[str, list[float]]:
        halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in passages]
        student, contexts, rest = study.student(folder), [one for one, _ in halves], [two for _, two in halves]
        both = textguide.score(model, tokenizer, contexts, rest, settings=[None, CFG(GAMMA)])
        own = textguide.score(student, tokenizer, contexts, rest)
        nll = (-torch.cat([both.log_likelihood, own.log_likelihood]) / both.tokens).tolist()
        return dict(zip(verdict.WAYS, nll, strict=True))

    found["ordinary text, nats a token"] = {
        way: mean_interval(values)._asdict() for way, values in study.measured("elsewhere-ordinary", ordinary).items()
    }
    for task, limit in (("arc_easy", 250), ("piqa", 250), ("boolq", 150), ("triviaqa", 100)):
        one = study.measured(
            f"elsewhere-{task}",
            lambda task=task, limit=limit: verdict.accuracies(  # type: ignore[misc]
                model, tokenizer, CFG(GAMMA), str(folder), tasks=[task], limit=limit, data=str(study.data)
            ),
        )  # fmt: skip
        found["tasks"] |= {task: {**one[task], "limit": limit}}
    return found


def larger(study: Study) -> dict[str, Any]:
    """The same on the larger model, on a part of the rows."""
    assert study.larger is not None, "--larger names the model"
    base = study.load(study.larger)[0]
    plain, guided = study.lambada("larger-base", lambda: base, [None, CFG(GAMMA)], 200)
    folder = study.adapter("larger", CFG(GAMMA), model=study.larger, steps=24, texts=192, tokens=LENGTH)
    own = study.lambada("larger-distilled", lambda: study.student(folder, study.larger), [None], 200)[0]  # type: ignore[arg-type]
    return {
        "plain": told(plain), "guided": told(guided), "distilled": told(own), "against guided": against(own, guided),
        "training": study.cost("larger"),
    }  # fmt: skip


def iterated(study: Study) -> dict[str, Any]:
    """Guide the distilled model, and distil again."""
    once = study.student(study.work / "seed0")
    guided, own = study.lambada("iterated-guided", lambda: once, [CFG(GAMMA), None], FEW)
    folder = study.adapter("iterated", CFG(GAMMA), base=once, steps=SHORT, texts=COUNT, tokens=LENGTH, seed=11)
    (twice,) = study.lambada("iterated-again", lambda: merged(copy.deepcopy(once), folder), [None], FEW)
    return {
        "distilled": told(own),
        "distilled, guided": told(guided),
        "distilled again": told(twice),
        "against distilled": against(twice, own),
    }


def divergences(study: Study, model: Any, guidance: Any) -> list[float]:
    """KL from what guidance says to what ``model`` says, nats a token, of 60 passages; every position is taken for the
    end of a prompt."""
    base, tokenizer = study.load()

    def student(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    found = []
    for passage in study.passages()[-60:]:
        row = tokenizer(passage).input_ids[:40]
        reading = BatchReading(
            student, base, [texts.Text(row[:1], row[1:])], [], guidance, GAMMA, all_positions=True, tokenizer=tokenizer,
            models={}, device="cpu",
        )  # fmt: skip
        with torch.no_grad():
            target = reading.original if guidance.is_neutral else reading.target
            found.append(float(algebra.kl_divergence(target, reading.student).mean()))
    return found


def why(study: Study) -> dict[str, Any]:
    """Does the adapter average away what single steps overshoot? The first token of the last word of each row."""
    base, tokenizer = study.load()
    student = study.student(study.work / "seed0")

    def make() -> dict[str, dict[str, list[float]]]:
        rows = study.rows(FEW)
        given = [[row[0] for row in rows], [row[1] for row in rows], None]
        read = [
            replace(one, continuation=one.continuation[:1])
            for one in as_items(base, tokenizer, *given, leading([CFG(GAMMA)]))
        ]
        found: dict[str, dict[str, list[float]]] = {}
        for way, model, guidance in (("plain", base, None), ("guided", base, CFG(GAMMA)), ("distilled", student, None)):
            values: dict[str, list[float]] = {"right": [], "entropy": [], **{f"nll at {t}": [] for t in TEMPERATURES}}
            for start in range(0, len(read), 32):
                batch = read[start : start + 32]
                logp = distributions(model, batch, guidance, tokenizer=tokenizer)
                tokens = torch.tensor([one.continuation[0] for one in batch])[:, None]
                values["right"] += (logp.argmax(-1) == tokens[:, 0]).float().tolist()
                values["entropy"] += (-(logp.exp() * logp.clamp_min(-1e4)).sum(-1)).tolist()
                for t in TEMPERATURES:
                    values[f"nll at {t}"] += (-(logp / t).log_softmax(-1).gather(-1, tokens)[:, 0]).tolist()
            found[way] = values
        return found

    ways = study.measured("why", make)
    rows = {way: {name: mean_interval(values)._asdict() for name, values in one.items()} for way, one in ways.items()}
    best = {way: min(TEMPERATURES, key=lambda t: rows[way][f"nll at {t}"]["mean"]) for way in rows}
    right = {way: np.array(one["right"]) for way, one in ways.items()}
    plain, guided, own = (right[way] for way in verdict.WAYS)
    return {
        "ways": rows, "best temperature": best,
        "distilled against guided": against(ways["distilled"], ways["guided"]),
        "rows": {
            "only guided right": int((guided * (1 - own)).sum()),
            "only distilled right": int((own * (1 - guided)).sum()),
            "of these right without guidance": int((own * (1 - guided) * plain).sum()),
        },
    }  # fmt: skip


def dial(study: Study) -> dict[str, Any]:
    """One adapter for several γ."""
    folder = study.adapter(
        "dial",
        CFG(GAMMA),
        scales=DIAL,
        steps=2 * SHORT,
        texts=COUNT,
        tokens=LENGTH,
        source="given",
        given=study.own_texts(0),
    )
    base = study.load()[0]
    guided = study.lambada("dial-guided", lambda: base, [CFG(scale) for scale in DIAL], FEW)
    rows = []
    for number, scale in enumerate(DIAL):
        student = study.student(folder, scale=scale)
        (own,) = study.lambada(f"dial-{scale}", lambda one=student: one, [None], FEW)  # type: ignore[misc]
        row = {"γ": scale, "guided": told(guided[number]), "distilled": told(own)}
        for name, one in (("plain", base), ("distilled", student)):
            row[f"kl of {name}"] = mean_interval(divergences(study, one, CFG(scale)))._asdict()
        rows.append({**row, "difference": against(own, guided[number])})
    return {"dial": rows, "training": study.cost("dial")}


def curves(study: Study) -> dict[str, Any]:
    """Over steps, texts and rank."""
    base = study.load()[0]
    plain, guided = study.lambada("few-base", lambda: base, [None, CFG(GAMMA)], FEW)
    rows = []
    usual = {"steps": SHORT, "texts": COUNT, "rank": 16}
    wanted = [usual, *({**usual, what: value} for what, values in CURVES.items() for value in values)]
    for settings in wanted:
        key = "curve-" + "-".join(f"{name}{value}" for name, value in settings.items())
        folder = study.adapter(key, CFG(GAMMA), tokens=LENGTH, source="given", given=study.own_texts(0), **settings)
        (own,) = study.lambada(f"{key}-lambada", lambda f=folder: study.student(f), [None], FEW)  # type: ignore[misc]
        rows.append({**settings, **told(own), **study.cost(key)})
    return {"plain": told(plain), "guided": told(guided), "curves": rows}


PARTS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "lambada": lambada, "dial": dial, "curves": curves, "objectives": objectives, "elsewhere": elsewhere,
    "teachers": teachers, "why": why, "larger": larger, "iterated": iterated,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the parts lambada and objectives [0 1 2]"
    )
    parser.add_argument("--larger", help="folder of the larger model")
    parser.add_argument("--dtype", default="bfloat16", help="of models, in training and after [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("docs/results/distill"))
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    study = Study(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    versions, machine = environment()
    for part in arguments.parts:
        found = PARTS[part](study)
        write_json(
            arguments.out / f"{part}.json",
            {**found, "dtype": arguments.dtype, "versions": versions, "machine": machine},
        )
        print(f"wrote {part}.json", flush=True)


if __name__ == "__main__":
    main()
