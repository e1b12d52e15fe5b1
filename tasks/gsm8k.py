"""The worked examples of the chain-of-thought prompt for GSM8K."""

from __future__ import annotations

from pathlib import Path

import lm_eval
import yaml


def exemplars() -> list[dict[str, str]]:
    """The eight worked examples (arXiv 2201.11903) that the installed lm-eval puts before each problem.

    They are read from there so that a local run and lm-eval's own task see the same prompt.

    Raises:
        ValueError: the installed lm-eval keeps them elsewhere.
    """
    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        samples = config["fewshot_config"]["samples"]
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"tasks='gsm8k_cot': the installed lm-eval has no worked examples in tasks/gsm8k/{path.name} "
            f"({type(error).__name__}); install lm-eval 0.4.13"
        ) from error
    return [{"question": sample["question"], "target": sample["target"]} for sample in samples]
