"""Guidance distilled into an adapter: accuracy on LAMBADA and elsewhere, the dial, objectives, other teachers.

Trained on texts that the model writes itself behind openings of one word; nothing of a task is trained on. Each part
writes ``docs/results/distill/PART.json``, keeps what it has measured in a folder, and goes on where it was::

    python scripts/study/distill.py lambada --work FOLDER --data DATA
    python scripts/study/distill.py dial elsewhere iterated objectives curves --work FOLDER --data DATA
    python scripts/study/distill.py larger --work FOLDER --data DATA --larger "$(python scripts/bench/larger_model.py)"
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import textguide
from textguide import CFG
from textguide.distillation import texts
from textguide.distillation.objectives import OBJECTIVES, ForwardKL
from textguide.distillation.reading import BatchReading
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import mean_interval, paired_bootstrap
from textguide.eval.sweeps import verdict
from textguide.forward.low_rank import CARD, merged
from textguide.support.files import write_json

GAMMA = 1.5
DIAL = (1.0, 1.25, 1.5, 1.75, 2.0)
FEW = 1000
"""Rows of LAMBADA, evenly spaced, of the parts that look at many adapters."""
SHORT = 60
"""Steps of those parts."""
CURVES = {"steps": (15, 30, 120), "texts": (60,), "rank": (1, 64)}


class Study:
    """A folder, the data, and the model of a part."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work
        self.data: Path = arguments.data
        self.larger: str | None = arguments.larger
        self.dtype: str = arguments.dtype
        self.seeds: list[int] = arguments.seeds
        self.models: dict[str, tuple[Any, Any]] = {}
        self.work.mkdir(parents=True, exist_ok=True)

    def load(self, name: str = "smollm2") -> tuple[Any, Any]:
        """A model and its tokenizer, kept."""
        if name not in self.models:
            self.models[name] = textguide.load(name, device="cpu", dtype=self.dtype)
        return self.models[name]

    def measured(self, key: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or gave in an earlier run."""
        file = self.work / f"{key}.json"
        if not file.is_file():
            begun = time.perf_counter()
            write_json(file, make())
            print(f"{key}: {time.perf_counter() - begun:.0f} s", flush=True)
        return json.loads(file.read_text(encoding="utf-8"))

    def adapter(self, key: str, guidance: Any, model: str = "smollm2", base: Any = None, **settings: Any) -> Path:
        """The folder of an adapter, trained where it is not there."""
        folder = self.work / key
        if not (folder / CARD).is_file():
            own, tokenizer = self.load(model)
            begun = time.perf_counter()
            models = settings.pop("models", None)
            made = textguide.distill(
                base or own, tokenizer, guidance, folder, name=Path(model).stem, models=models, **settings,
                progress=lambda what, done, of, loss: print(f"{key}: {what} {done}/{of} {loss or 0:.4f}", flush=True),
            )  # fmt: skip
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{key}: {time.perf_counter() - begun:.0f} s, {peak:.2f} GB, {made.losses[-1]:.4f}", flush=True)
            write_json(self.work / f"{key}-cost.json", {"seconds": made.seconds, "peak GB": peak})
        return folder

    def cost(self, key: str) -> dict[str, float]:
        """Seconds and peak memory of training."""
        found: dict[str, float] = json.loads((self.work / f"{key}-cost.json").read_text(encoding="utf-8"))
        return found

    def student(self, folder: Path, model: str = "smollm2", scale: float | None = None) -> Any:
        """The model with the adapter in its weights."""
        return merged(copy.deepcopy(self.load(model)[0]), folder, scale)

    def rows(self, limit: int | None = None) -> list[tuple[str, str]]:
        """Contexts and last words, evenly spaced."""
        lines = (self.data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        chosen = texts if limit is None else [texts[n * len(texts) // limit] for n in range(limit)]
        return [(" ".join(text.split(" ")[:-1]), " " + text.split(" ")[-1]) for text in chosen]

    def lambada(
        self, key: str, model: Callable[[], Any], settings: Sequence[Any], limit: int | None
    ) -> list[dict[str, Any]]:
        """For each setting ``right`` (0 or 1 a row) and ``nll`` (nats a row)."""

        def make() -> list[dict[str, Any]]:
            rows = self.rows(limit)
            tokenizer = self.load(self.larger if key.startswith("larger") and self.larger else "smollm2")[1]
            out = textguide.score(
                model(), tokenizer, [row[0] for row in rows], [row[1] for row in rows], settings=list(settings)
            )
            return [
                {"right": right.int().tolist(), "nll": (-nll).tolist()}
                for right, nll in zip(out.is_greedy, out.log_likelihood, strict=True)
            ]

        found: list[dict[str, Any]] = self.measured(key, make)
        return found


def told(one: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and mean log-likelihood with intervals."""
    nll = np.array(one["nll"])
    return {
        "accuracy": mean_interval(one["right"])._asdict(), "log_likelihood": mean_interval(-nll)._asdict(),
        "perplexity": float(np.exp(nll.mean())), "rows": len(nll),
    }  # fmt: skip


def against(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of ``a`` minus that of ``b`` on the same rows."""
    return paired_bootstrap(a["right"], b["right"])._asdict()


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


def objectives(study: Study) -> dict[str, Any]:
    """Every objective and source, for as many steps."""
    base = study.load()[0]
    plain, guided = study.lambada("few-base", lambda: base, [None, CFG(GAMMA)], FEW)
    rows = []
    for name in OBJECTIVES:
        for source in ("plain", "given") if name in ("forward-kl", "gft") else ("plain",):
            key = f"objective-{name}-{source}"
            more: dict[str, Any] = {"given": study.ordinary()} if source == "given" else {}
            if name == "cca":  # it needs prompts to exchange
                more = {"given": study.halves(), "source": "given"}
            folder = study.adapter(
                key, CFG(GAMMA), objective=name, steps=SHORT, texts=480, **{"source": source, **more}
            )
            (own,) = study.lambada(f"{key}-lambada", lambda f=folder: study.student(f), [None], FEW)  # type: ignore[misc]
            rows.append(
                {
                    "objective": name,
                    "source": source,
                    **told(own),
                    "against guided": against(own, guided),
                    **study.cost(key),
                }
            )
    return {"plain": told(plain), "guided": told(guided), "objectives": rows, "steps": SHORT}


def elsewhere(study: Study) -> dict[str, Any]:
    """Other tasks, free text, and what a token costs, for the first seed."""
    model, tokenizer = study.load()
    return study.measured(  # type: ignore[no-any-return]
        "elsewhere",
        lambda: verdict.judge(
            model, tokenizer, CFG(GAMMA), str(study.work / "seed0"),
            prompts=[text[: len(text) // 2] for text in study.sentences()[:100]],
            tasks=["arc_easy", "piqa", "boolq"], limit=300, data=str(study.data),
        ),
    )  # fmt: skip


def larger(study: Study) -> dict[str, Any]:
    """The same on the larger model, on a part of the rows."""
    assert study.larger is not None, "--larger names the model"
    base = study.load(study.larger)[0]
    plain, guided = study.lambada("larger-base", lambda: base, [None, CFG(GAMMA)], 200)
    folder = study.adapter("larger", CFG(GAMMA), model=study.larger, steps=40, texts=160, tokens=40)
    own = study.lambada("larger-distilled", lambda: study.student(folder, study.larger), [None], 200)[0]  # type: ignore[arg-type]
    return {
        "plain": told(plain), "guided": told(guided), "distilled": told(own), "against guided": against(own, guided),
        "training": study.cost("larger"),
    }  # fmt: skip


def iterated(study: Study) -> dict[str, Any]:
    """Guide the distilled model, and distil again."""
    once = study.student(study.work / "seed0")
    guided, own = study.lambada("iterated-guided", lambda: once, [CFG(GAMMA), None], FEW)
    folder = study.adapter("iterated", CFG(GAMMA), base=once, steps=SHORT, texts=480, seed=11)
    (twice,) = study.lambada("iterated-again", lambda: merged(copy.deepcopy(once), folder), [None], FEW)
    return {
        "distilled": told(own),
        "distilled, guided": told(guided),
        "distilled again": told(twice),
        "against distilled": against(twice, own),
    }


def divergences(study: Study, model: Any, guidance: Any) -> list[float]:
    """KL from what guidance says to what ``model`` says, nats a token, of 60 sentences; every position is taken for the
    end of a prompt."""
    base, tokenizer = study.load()

    def student(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    found = []
    for sentence in study.sentences()[:60]:
        row = tokenizer(sentence).input_ids[:40]
        reading = BatchReading(
            student, base, [texts.Text(row[:1], row[1:])], [], guidance, GAMMA, every=True, tokenizer=tokenizer,
            models={}, device="cpu",
        )  # fmt: skip
        with torch.no_grad():
            found.append(float(ForwardKL().loss(reading)))
    return found


def dial(study: Study) -> dict[str, Any]:
    """One adapter for several γ."""
    folder = study.adapter("dial", CFG(GAMMA), scales=DIAL, steps=120, texts=480)
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
    usual = {"steps": SHORT, "texts": 480, "rank": 16}
    wanted = [usual, *({**usual, what: value} for what, values in CURVES.items() for value in values)]
    for settings in wanted:
        key = "curve-" + "-".join(f"{name}{value}" for name, value in settings.items())
        folder = study.adapter(key, CFG(GAMMA), **settings)
        (own,) = study.lambada(f"{key}-lambada", lambda f=folder: study.student(f), [None], FEW)  # type: ignore[misc]
        rows.append({**settings, **told(own), **study.cost(key)})
    return {"plain": told(plain), "guided": told(guided), "curves": rows}


PARTS: dict[str, Callable[[Study], dict[str, Any]]] = {
    "lambada": lambada, "dial": dial, "curves": curves, "objectives": objectives, "elsewhere": elsewhere,
    "larger": larger, "iterated": iterated,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the part lambada [0 1 2]")
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
