"""How captions compare with those of people: BLEU, ROUGE-L and CIDEr through pycocoevalcap, and how varied they are.

METEOR and SPICE need Java and large files: :func:`java_metrics` runs them where both are there, and :data:`NEEDS_JAVA`
names them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textguide.support.errors import MissingExtraError
from textguide.tasks import selection

Array = NDArray[np.float64]
NEEDS_JAVA = ("METEOR", "SPICE")
ORDERS = (1, 2, 3, 4)

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:[-./&][^\W_]+)*|['’](?:s|re|ve|ll|d|m|t)\b|\S", re.IGNORECASE)
_NOT = re.compile(r"([a-z]+)n['’]t\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]|^['’](?:s|re|ve|ll|d|m|t)$|^n't$|[$%#&@+*=]", re.IGNORECASE)


def tokenize(text: str) -> list[str]:
    """Words in the way of the Penn treebank, lower case and without punctuation, as COCO's evaluation has them:
    ``The man's dog doesn't sit.`` → ``the man 's dog does n't sit``."""
    split = _NOT.sub(lambda found: f"{found[1]} n\u0000t", text.replace("\n", " "))
    tokens = []
    for piece in split.split():
        if piece == "n\u0000t" or piece.startswith("n\u0000t"):
            tokens.append("n't")
            piece = piece[3:]
        tokens += _TOKEN.findall(piece)
    return [token.lower().replace("’", "'") for token in tokens if _WORD.search(token)]


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of captions against references; arrays have one number a caption.

    Args:
        cider: CIDEr (with the weights of words from these references), (n,).
        rouge_l: ROUGE-L, (n,).
        matched: n-grams of length 1 to 4 that a reference has too, (n, 4).
        possible: n-grams of length 1 to 4, (n, 4).
        length: words, (n,).
        closest: words of the reference whose length is nearest, (n,).
    """

    cider: Array
    rouge_l: Array
    matched: Array
    possible: Array
    length: Array
    closest: Array

    def bleu(self, order: int, weights: Array | None = None) -> Array:
        """Corpus BLEU with n-grams up to ``order``.

        Args:
            weights: how often each caption counts, (r, n); None: once. A row gives one value.
        """
        weights = np.ones((1, len(self.length))) if weights is None else weights
        # The tiny numbers are pycocoevalcap's, so that figures agree to the last digit.
        tiny, small = 1e-15, 1e-9
        with np.errstate(divide="ignore"):
            parts = (weights @ self.matched + tiny) / (weights @ self.possible + small)
            value = np.exp(np.log(parts[:, :order]).mean(axis=1))
            ratio = (weights @ self.length + tiny) / (weights @ self.closest + small)
            brevity: Array = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, tiny)), 1.0)
        bleu: Array = value * brevity
        return bleu


def reference_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> ReferenceScores:
    """Score ``captions`` against their ``references``.

    Args:
        captions: one a picture.
        references: what people said of the same picture, one or more.

    Raises:
        ValueError: the numbers of both differ, or a picture has no reference.
        MissingExtraError: pycocoevalcap is not installed.
    """
    if len(captions) != len(references) or not captions:
        raise ValueError(f"captions has {len(captions)} rows and references {len(references)}; they must be as many")
    for number, row in enumerate(references):
        if not row or isinstance(row, str):
            raise ValueError(f"references[{number}]={row!r} must be a list of one text or more")
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise MissingExtraError("pycocoevalcap", "captioning", "scoring captions") from error
    said = {i: [" ".join(tokenize(text))] for i, text in enumerate(captions)}
    wanted = {i: [" ".join(tokenize(text)) for text in row] for i, row in enumerate(references)}
    _, cider = Cider().compute_score(wanted, said)
    _, rouge = Rouge().compute_score(wanted, said)
    scorer = BleuScorer(n=4)
    for i, text in said.items():
        scorer += (text[0], wanted[i])
    counts: list[dict[str, Any]] = scorer.ctest
    nearest = [min((abs(r - c["testlen"]), r) for r in c["reflen"])[1] for c in counts]
    return ReferenceScores(
        cider=np.asarray(cider, dtype=np.float64),
        rouge_l=np.asarray(rouge, dtype=np.float64),
        matched=np.array([c["correct"] for c in counts], dtype=np.float64),
        possible=np.array([c["guess"] for c in counts], dtype=np.float64),
        length=np.array([c["testlen"] for c in counts], dtype=np.float64),
        closest=np.array(nearest, dtype=np.float64),
    )


def java_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Array]:
    """METEOR and SPICE a caption, where Java and the files that each of them needs are there; nothing is downloaded."""
    import pycocoevalcap

    home = Path(pycocoevalcap.__path__[0])
    said = {i: [" ".join(tokenize(text))] for i, text in enumerate(captions)}
    wanted = {i: [" ".join(tokenize(text)) for text in row] for i, row in enumerate(references)}
    found: dict[str, Array] = {}
    if shutil.which("java") is None or any(not row[0] for row in said.values()):
        return found  # an empty caption breaks METEOR's protocol
    if (home / "meteor" / "meteor-1.5.jar").is_file() and (home / "meteor" / "data" / "paraphrase-en.gz").is_file():
        from pycocoevalcap.meteor.meteor import Meteor

        scorer = Meteor()
        found["meteor"] = np.array(scorer.compute_score(wanted, said)[1], dtype=np.float64)
        process = scorer.meteor_p
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if list((home / "spice" / "lib").glob("stanford-corenlp-*-models.jar")):
        from pycocoevalcap.spice.spice import Spice

        scores = Spice().compute_score(wanted, said)[1]
        found["spice"] = np.array([float(score["All"]["f"]) for score in scores])
    return found


def distinct(captions: Sequence[str], n: int) -> float:
    """:func:`textguide.tasks.selection.distinct` over the captions' own tokens."""
    return selection.distinct(captions, n, tokenize)


def vocabulary_size(captions: Sequence[str]) -> int:
    """How many different words the captions use."""
    return len({word for text in captions for word in tokenize(text)})
