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
import re
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import textguide
from textguide import AWRS, CAIF, CFG
from textguide.constraints import Regex
from textguide.distillation import texts
from textguide.distillation.objectives import OBJECTIVES, ForwardKL
from textguide.distillation.reading import BatchReading
from textguide.engine.given_texts import as_items, distributions, leading
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import mean_interval, paired_bootstrap
from textguide.eval.sweeps import verdict
from textguide.forward.low_rank import CARD, merged
from textguide.guidance import ContextAware, DExperts
from textguide.support.files import write_json

GAMMA = 1.5
DIAL = (1.0, 1.25, 1.5, 1.75, 2.0)
FEW = 500
"""Rows of LAMBADA, evenly spaced, of the parts that look at many adapters."""
SHORT, COUNT, LENGTH = 40, 320, 32
"""Steps, texts and longest text of those parts."""
TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
CURVES = {"steps": (10, 20, 80), "texts": (40,), "rank": (1, 64)}
TOPICS = (
    "the sea", "my old school", "a walk in the rain", "trains", "the neighbours", "winter", "a letter", "the market",
    "cooking", "a long journey", "the garden", "dogs", "the office", "birthdays", "a river", "old photographs",
    "the moon", "bread", "a football match", "the hospital", "cats", "the news", "Mondays", "a lost key", "music",
    "the village", "a storm", "breakfast", "the library", "growing up", "the bus", "a museum", "money", "autumn",
    "the phone", "a bridge", "sleep", "the forest", "coffee", "moving house",
)  # fmt: skip
DATE = (
    r" (January|February|March|April|May|June|July|August|September|October|November|December) "
    r"([1-9]|[12][0-9]|3[01]), (1[0-9]|20)[0-9]{2}\."
)
WHO = (
    "The treaty", "The contract", "The old bridge", "The museum", "The composer", "Her first novel", "The company",
    "The school", "The law", "The railway line", "The painter", "The queen", "His father", "The newspaper",
    "The college", "The peace agreement", "The ship", "The festival", "The city hall", "The physicist",
)  # fmt: skip
WHAT = ("was signed on", "was opened on", "came into being on", "was first seen on", "was born on", "is dated")


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
            if key not in {f"seed{seed}" for seed in self.seeds}:  # those have the defaults
                settings = {"mixed_precision": "bf16", **settings}
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

    def passages(self) -> list[str]:
        """Ordinary prose: what BoolQ asks about, in an order of our own."""
        lines = (
            (self.data / "llm-foundry" / "reading_comprehension__boolq.jsonl").read_text(encoding="utf-8").splitlines()
        )
        found = {json.loads(line)["query"].partition("\nQuestion:")[0].removeprefix("Passage: ") for line in lines}
        return sorted((text for text in found if len(text) > 250), key=lambda text: (text[::-1], text))

    def openings_of_reviews(self, count: int) -> list[str]:
        """The first five words of sentences of SST-2's training set."""
        lines = (self.data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
        words = [line.rsplit("\t", 1)[0].split() for line in lines]
        return [" ".join(one[:5]) for one in words if len(one) >= 10][:count]

    def neutral_prompts(self) -> list[str]:
        """Prompts of DExperts' human evaluation, neutral and negative ones by turns."""
        groups = json.loads((self.data / "prompts" / "unique_prompts.json").read_text(encoding="utf-8"))
        named = [groups[f"{mood}_prompts_positive_sentiment"].values() for mood in ("neutral", "negative")]
        return [text for pair in zip(*named, strict=False) for text in pair]

    def own_texts(self, seed: int) -> list[dict[str, Any]]:
        """Texts that the model writes behind openings of one word, as token ids: the same for all that is compared."""

        def make() -> list[dict[str, Any]]:
            model, tokenizer = self.load()
            words = texts.openings(tokenizer)[:COUNT]
            out = textguide.generate(
                model, tokenizer, words, max_new_tokens=LENGTH - len(words[0]), do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, repetition_penalty=1.0, seed=7000 + seed, batch_size=64,
            )  # fmt: skip
            return [{"prompt": word, "completion": own} for word, own in zip(words, out.new_tokens, strict=True) if own]

        found: list[dict[str, Any]] = self.measured(f"texts-{seed}", make)
        return found

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


def halves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Texts cut in the middle, for an objective that exchanges prompts."""
    whole = [[*row["prompt"], *row["completion"]] for row in rows]
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
    for task, limit in (("arc_easy", 600), ("piqa", 600), ("boolq", 300), ("triviaqa", 200)):
        one = study.measured(
            f"elsewhere-{task}",
            lambda task=task, limit=limit: verdict.accuracies(  # type: ignore[misc]
                model, tokenizer, CFG(GAMMA), str(folder), tasks=[task], limit=limit, data=str(study.data)
            ),
        )  # fmt: skip
        found["tasks"] |= {task: {**one[task], "limit": limit}}
    return found


def teachers(study: Study) -> dict[str, Any]:
    """Other guidance than that away from the last token: what of its gain is kept, and at which price."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    model, tokenizer = study.load()
    vader = SentimentIntensityAnalyzer()
    mood = {"VADER": lambda text: float(vader.polarity_scores(text)["compound"])}
    chat = [
        [{"role": "system", "content": "You are cheerful, and see the good in everything."},
         {"role": "user", "content": f"{ask} {topic}."}]
        for topic in TOPICS for ask in ("Tell me about", "Write a few lines on", "What comes to your mind about")
    ]  # fmt: skip
    dates = [f"{who} {what}" for what in WHAT for who in WHO]
    small = {"expert": "smollm2-small-positive", "anti-expert": "smollm2-small-negative"}
    experts = {name: textguide.load(source, device="cpu", dtype=study.dtype)[0] for name, source in small.items()}
    reviews, neutral = study.openings_of_reviews(COUNT), study.neutral_prompts()[:60]
    quick: dict[str, Any] = {"steps": SHORT, "texts": COUNT, "tokens": 32}
    ways: dict[str, tuple[Any, list[Any], list[Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
        "caif": (CAIF("sentiment", "positive", 5.0), reviews, neutral, mood, {}, quick),
        "dexperts": (DExperts(2.0), reviews, neutral, mood, experts, quick),
        "negative-prompt": (
            CFG(2.0, negative_system="You are gloomy, and see the bad in everything."),
            chat[:90], chat[90:], mood, {}, {**quick, "tokens": 80},
        ),
        "awrs": (
            AWRS(Regex(DATE), particles=4), dates[:80], dates[80:],
            {"in form": lambda text: float(re.match(DATE, text) is not None)}, {},
            {**quick, "texts": 80, "objective": "likelihood", "source": "guided"},
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, (guidance, prompts, held, measures, models, settings) in ways.items():
        folder = study.adapter(f"teacher-{name}", guidance, prompts=prompts, models=models, **settings)
        found[name] = study.measured(
            f"teacher-{name}-judged",
            lambda f=folder, g=guidance, h=held, m=measures, o=models: verdict.judge(  # type: ignore[misc]
                model, tokenizer, g, str(f), prompts=h, limit=80, models=o, measures=m, repeats=1
            ),
        )
        (measure,) = measures
        values = [found[name]["texts"][way][measure]["mean"] for way in verdict.WAYS]
        found[name]["gain"] = {"measure": measure, "kept": (values[2] - values[0]) / (values[1] - values[0])}
    return {"teachers": found, "context-aware": _context_aware(study)}


def _context_aware(study: Study) -> dict[str, Any]:
    """Context-aware decoding: the document is all of a row but its last sentence."""
    rows = []
    for context, word in study.rows(1500):
        parts = re.split(r"(?<=[.!?\u201d\u2019'\"]) ", context)
        document = " ".join(parts[:-1])
        if len(parts) > 1 and len(document) > 40 and context.count(document) == 1:
            rows.append((document, context, word))
    rows = rows[:FEW]
    documents = [document for document, _, _ in rows]

    def of(model: Callable[[], Any], settings: list[Any], key: str) -> Any:
        def make() -> list[dict[str, Any]]:
            contexts, words = [context for _, context, _ in rows], [word for _, _, word in rows]
            out = textguide.score(model(), study.load()[1], contexts, words, settings=settings)
            return [
                {"right": right.int().tolist(), "nll": (-nll).tolist()}
                for right, nll in zip(out.is_greedy, out.log_likelihood, strict=True)
            ]

        return study.measured(key, make)

    plain, guided = of(lambda: study.load()[0], [None, ContextAware(1.5, context=documents)], "context-aware-base")
    passages = [text[:400].rsplit(" ", 1)[0] for text in study.passages()[: COUNT // 2]]
    prompts, given = [], []
    for text in passages:
        words = text.split(" ")
        half = " ".join(words[: len(words) // 2])
        prompts.append(half)
        given.append(
            {
                "prompt": half + " " + words[len(words) // 2],
                "completion": "".join(" " + w for w in words[len(words) // 2 + 1 :]),
            }
        )
    folder = study.adapter(
        "teacher-context-aware", ContextAware(1.5, context=prompts), given=given, source="given", steps=SHORT,
        texts=len(given), tokens=110,
    )  # fmt: skip
    (own,) = of(lambda: study.student(folder), [None], "context-aware-distilled")
    gain = (np.mean(own["right"]) - np.mean(plain["right"])) / (np.mean(guided["right"]) - np.mean(plain["right"]))
    return {
        "plain": told(plain), "guided": told(guided), "distilled": told(own), "against guided": against(own, guided),
        "against plain": against(own, plain), "gain": {"measure": "accuracy", "kept": float(gain)},
    }  # fmt: skip


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
            student, base, [texts.Text(row[:1], row[1:])], [], guidance, GAMMA, every=True, tokenizer=tokenizer,
            models={}, device="cpu",
        )  # fmt: skip
        with torch.no_grad():
            found.append(float(ForwardKL().loss(reading)))
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
