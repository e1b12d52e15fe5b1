"""Captions compared with those of people (BLEU, ROUGE-L and CIDEr through pycocoevalcap), and their variety.

METEOR and SPICE (:data:`NEEDS_JAVA`) need Java and large files; :func:`java_metrics` computes them if both are
installed.
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
    """Words as in the Penn treebank, in lower case and without punctuation, as COCO's evaluation splits them.

    ``The man's dog doesn't sit.`` becomes ``the man 's dog does n't sit``.
    """
    # "n't" is marked by a zero character, since _TOKEN would split it at the apostrophe.
    marked = _NOT.sub(lambda match: f"{match[1]} n\u0000t", text.replace("\n", " "))
    tokens = []
    for piece in marked.split():
        rest = piece
        if piece.startswith("n\u0000t"):
            tokens.append("n't")
            rest = piece[3:]
        tokens += _TOKEN.findall(rest)
    return [token.lower().replace("’", "'") for token in tokens if _WORD.search(token)]


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of captions against references; arrays have one row per caption.

    Args:
        cider: CIDEr, with weights of words from these references, (n,).
        rouge_l: ROUGE-L, (n,).
        matched: number of n-grams of length 1 to 4 that a reference contains too, (n, 4).
        possible: number of n-grams of length 1 to 4, (n, 4).
        length: number of words, (n,).
        closest: number of words of the reference with the nearest length, (n,).
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
            order: largest length of an n-gram, 1 to 4.
            weights: how often each caption counts, (r, n); None: once.

        Returns:
            One value per row of ``weights``, (r,).
        """
        weights = np.ones((1, len(self.length))) if weights is None else weights
        # The same small numbers as in pycocoevalcap, so that values agree to the last digit.
        tiny = 1e-15
        small = 1e-9
        with np.errstate(divide="ignore"):
            parts = (weights @ self.matched + tiny) / (weights @ self.possible + small)
            value = np.exp(np.log(parts[:, :order]).mean(axis=1))
            ratio = (weights @ self.length + tiny) / (weights @ self.closest + small)
            brevity: Array = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, tiny)), 1.0)
        bleu: Array = value * brevity
        return bleu


def require() -> None:
    """Check that the package that scores captions is installed.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    try:
        import pycocoevalcap.cider.cider  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pycocoevalcap", "captioning", "scoring captions") from error


def reference_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> ReferenceScores:
    """Score ``captions`` against their ``references``.

    Args:
        captions: one per picture.
        references: captions of the same picture by people, one or more.

    Raises:
        ValueError: the numbers of both differ, or a picture has no reference.
        MissingExtraError: pycocoevalcap is not installed.
    """
    if len(captions) != len(references) or not captions:
        raise ValueError(
            f"captions has {len(captions)} rows and references {len(references)}; both must have one row per picture"
        )
    for number, row in enumerate(references):
        if not row or isinstance(row, str):
            raise ValueError(f"references[{number}]={row!r} must be a list of one text or more")
    require()
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    hypotheses, targets = _tokenized(captions, references)
    _, cider = Cider().compute_score(targets, hypotheses)
    _, rouge = Rouge().compute_score(targets, hypotheses)
    scorer = BleuScorer(n=4)
    for number, text in hypotheses.items():
        scorer += (text[0], targets[number])
    counts: list[dict[str, Any]] = scorer.ctest
    closest = []
    for count in counts:
        _, length = min((abs(length - count["testlen"]), length) for length in count["reflen"])
        closest.append(length)
    return ReferenceScores(
        cider=np.asarray(cider, dtype=np.float64),
        rouge_l=np.asarray(rouge, dtype=np.float64),
        matched=np.array([count["correct"] for count in counts], dtype=np.float64),
        possible=np.array([count["guess"] for count in counts], dtype=np.float64),
        length=np.array([count["testlen"] for count in counts], dtype=np.float64),
        closest=np.array(closest, dtype=np.float64),
    )


def _tokenized(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Captions and references as pycocoevalcap expects them: lists of texts by number, with spaces between words."""
    hypotheses = {number: [" ".join(tokenize(text))] for number, text in enumerate(captions)}
    targets = {number: [" ".join(tokenize(text)) for text in row] for number, row in enumerate(references)}
    return hypotheses, targets


def java_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Array]:
    """METEOR and SPICE per caption, if Java and the files that each of them needs are installed.

    Nothing is downloaded.
    """
    import pycocoevalcap

    home = Path(pycocoevalcap.__path__[0])
    hypotheses, targets = _tokenized(captions, references)
    scores: dict[str, Array] = {}
    # An empty caption breaks METEOR's protocol.
    if shutil.which("java") is None or any(not row[0] for row in hypotheses.values()):
        return scores
    if (home / "meteor" / "meteor-1.5.jar").is_file() and (home / "meteor" / "data" / "paraphrase-en.gz").is_file():
        from pycocoevalcap.meteor.meteor import Meteor

        scorer = Meteor()
        scores["meteor"] = np.array(scorer.compute_score(targets, hypotheses)[1], dtype=np.float64)
        # pycocoevalcap leaves its Java process and the pipes to it open.
        process = scorer.meteor_p
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if list((home / "spice" / "lib").glob("stanford-corenlp-*-models.jar")):
        from pycocoevalcap.spice.spice import Spice

        results = Spice().compute_score(targets, hypotheses)[1]
        scores["spice"] = np.array([float(result["All"]["f"]) for result in results])
    return scores


def distinct(captions: Sequence[str], n: int) -> float:
    """:func:`textguide.tasks.selection.distinct` over the tokens of :func:`tokenize`."""
    return selection.distinct(captions, n, tokenize)


def vocabulary_size(captions: Sequence[str]) -> int:
    """Number of different words in the captions."""
    return len({word for text in captions for word in tokenize(text)})
