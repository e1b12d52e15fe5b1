"""Can the unconditional pass be predicted from earlier ones? The linear predictor of adaptive guidance, tried on text.

Adaptive guidance (arXiv 2312.12487, section 5) stands in for the unconditional pass of a denoising step by a linear map
of what both branches said before, with one number a term, fitted once. The text analogue, fitted here on the bundled
model: the unconditional log-probabilities of a token from the conditional ones of this step and from both branches' of
the three steps before. Half of the prompts fit, the other half are reported::

    TEXTGUIDE_DATA=DATA python scripts/study/linear_guidance.py --json docs/results/linear-guidance.json
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import textguide
from textguide import CFG
from textguide.eval.replications.kinds.linear import KEPT, LAGS, distributions, fit, terms
from textguide.guidance.algebra import extrapolate, kl_divergence, log_softmax
from textguide.support.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--negative-prompt", default=None)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = textguide.load(device="cpu", dtype=torch.float32)
    groups = json.loads((Path(os.environ["TEXTGUIDE_DATA"]) / "prompts/unique_prompts.json").read_text())
    prompts = [text for texts in groups.values() for text in texts.values()][: arguments.prompts]
    guidance = CFG(arguments.scale, arguments.negative_prompt)
    runs = [
        distributions(model, tokenizer, prompt, guidance, arguments.tokens, seed) for seed, prompt in enumerate(prompts)
    ]
    half = len(runs) // 2
    report = {"prompts": len(runs), "tokens": arguments.tokens, "scale": arguments.scale, "torch": torch.__version__}
    named = {"this step's conditional distribution": 0, "and one step before": 1, "and three steps before": 3}
    report["rows"] = [row(name, runs[:half], runs[half:], lags, arguments.scale) for name, lags in named.items()]
    print(f"{'predicted from':30} {'R² of lu':>9} {'R² of lc − lu':>14} {'KL to guided':>13} {'of no guidance':>15}")
    for one in report["rows"]:
        figures = (f"{one[key]:>{width}.4f}" for key, width in (("r2", 9), ("r2_of_difference", 14), ("kl", 13)))
        print(f"{one['from']:30}", *figures, f"{one['kl_plain']:15.4f}")
    if arguments.json:
        write_json(arguments.json, report)


def row(
    name: str, fitting: list[list[Tensor]], held_out: list[list[Tensor]], lags: int, scale: float
) -> dict[str, object]:
    """How well the fit predicts on prompts that it did not see."""
    weights = fit(fitting, lags)
    errors, targets, differences, kls, plain = [], [], [], [], []
    for run in held_out:
        for step in range(LAGS, len(run)):
            cond, uncond = run[step]
            predicted = (weights @ terms(run, step, lags))[None]
            kept = cond.topk(KEPT).indices
            errors.append((predicted[0] - uncond)[kept])
            targets.append(uncond[kept])
            differences.append((cond - uncond)[kept])
            guided = log_softmax(extrapolate(cond[None], uncond[None], scale))
            kls.append(
                float(kl_divergence(guided, log_softmax(extrapolate(cond[None], log_softmax(predicted), scale))))
            )
            plain.append(float(kl_divergence(guided, cond[None])))
    error = torch.cat(errors).square().sum()
    return {
        "from": name,
        "weights": [round(float(w), 4) for w in weights],
        "r2": float(1 - error / spread(targets)),
        "r2_of_difference": float(1 - error / spread(differences)),
        "kl": float(np.mean(kls)),
        "kl_plain": float(np.mean(plain)),
    }


def spread(parts: list[Tensor]) -> Tensor:
    values = torch.cat(parts)
    return (values - values.mean()).square().sum()


if __name__ == "__main__":
    main()
