"""Other guidance than that away from the last token, distilled: what of its gain is kept, and at which price."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from distill_folder import COUNT, FEW, SHORT, Study, against, told

import textguide
from textguide import AWRS, CAIF, CFG
from textguide.constraints import Regex
from textguide.eval.sweeps import verdict
from textguide.guidance import ContextAware, DExperts

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

    pairs = [(context, word) for _, context, word in rows]
    ways = [None, ContextAware(1.5, context=documents)]
    plain, guided = study.scored("context-aware-base", lambda: study.load()[0], ways, pairs)
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
    (own,) = study.scored("context-aware-distilled", lambda: study.student(folder), [None], pairs)
    gain = (np.mean(own["right"]) - np.mean(plain["right"])) / (np.mean(guided["right"]) - np.mean(plain["right"]))
    return {
        "plain": told(plain), "guided": told(guided), "distilled": told(own), "against guided": against(own, guided),
        "against plain": against(own, plain), "gain": {"measure": "accuracy", "kept": float(gain)},
    }  # fmt: skip
