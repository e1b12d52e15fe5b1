"""The folder of the study of distillation: models, data, adapters and measures, each made once."""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import textguide
from textguide.distillation import texts
from textguide.eval.statistics.intervals import mean_interval, paired_bootstrap
from textguide.forward.low_rank import CARD, merged
from textguide.support.files import write_json

GAMMA = 1.5
FEW = 500
"""Rows of LAMBADA, evenly spaced, of the parts that look at many adapters."""
SHORT, COUNT, LENGTH = 40, 320, 32
"""Steps, texts and longest text of those parts."""


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
        """:meth:`scored` of the rows of LAMBADA."""
        return self.scored(key, model, settings, self.rows(limit))

    def scored(
        self, key: str, model: Callable[[], Any], settings: Sequence[Any], rows: Sequence[tuple[str, str]]
    ) -> list[dict[str, Any]]:
        """For each setting ``right`` (0 or 1 a row) and ``nll`` (nats a row) of contexts with what follows them."""

        def make() -> list[dict[str, Any]]:
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
