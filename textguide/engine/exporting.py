"""Export a guidance as a folder that transformers loads with ``model.generate(custom_generate=FOLDER)``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from pprint import pformat
from string import Template
from typing import Any

from ..constraints import spec as constraint_spec
from ..guidance import Guidance, as_guidance
from ..guidance.needs import Need
from ..guidance.places import check_place
from ..guidance.spec import label
from ..support import __version__, files

_CODE = Template('''"""$title for transformers' ``model.generate(custom_generate=…)``, decoded by textguide."""

from functools import lru_cache

import textguide
from textguide.guidance import Guidance
from textguide.models.adapters import load_further

GUIDANCE = $guidance
MODELS = $models
"""Further models, by the names that the guidance uses; each is loaded once."""


def generate(model, guidance=None, tokenizer=None, models=None, **arguments):
    """Call ``model.generate`` under the guidance, and return its output.

    Args:
        model: the model that ``generate`` was called on.
        guidance: fields to change, such as ``{"scale": 2.0}``.
        tokenizer: the model's tokenizer; needed if the guidance contains text or uses a classifier.
        models: further models, which replace those of the same names.
        **arguments: those of transformers' ``generate``.
    """
    chosen = Guidance.from_dict({**GUIDANCE, **(guidance or {})})
    further = {**(_further(model) if MODELS and not models else {}), **(models or {})}
    decoding = textguide.guided_decoding(chosen, tokenizer=tokenizer, models=further)
    if tokenizer is not None and "stop_strings" in arguments:
        arguments["tokenizer"] = tokenizer
    return model.generate(custom_generate=decoding, **arguments)


@lru_cache(maxsize=1)
def _further(model):
    return load_further(model, MODELS, device=str(model.device), dtype=model.dtype)
''')

_CARD = Template("""---
library_name: transformers
tags:
- custom_generate
- textguide
---

# $title

$rule$about

Decoded by textguide, which `custom_generate/requirements.txt` lists.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL)
inputs = tokenizer(["The dragon"], return_tensors="pt").to(model.device)
ids = model.generate(
    **inputs, custom_generate=FOLDER, trust_remote_code=True, tokenizer=tokenizer, max_new_tokens=40
)
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
```

`FOLDER` is this folder, or the name of the repository that it was pushed to.

## Additional arguments

| argument | |
|---|---|
| `guidance` | a dict of fields to change, such as `{$field}` |
| `tokenizer` | the model's tokenizer; $tokenizer |
| `models` | further models by name$models |

The fields:

```python
$guidance
```

## Output

The same as that of transformers' `generate`. With `return_dict_in_generate=True` the output has an additional attribute
`effect`, which reports what guidance did to the distributions, in nats.
""")


def export_generate(
    guidance: Any, folder: str | os.PathLike[str], *, models: Mapping[str, str] | None = None, overwrite: bool = False
) -> Path:
    """Write ``custom_generate/generate.py``, ``custom_generate/requirements.txt`` and a model card, ``README.md``.

    The folder contains no weights and works with any model of transformers. Use ``huggingface_hub.upload_folder`` to
    push it.

    Args:
        guidance: as for :func:`textguide.generate`.
        folder: the folder to write, which is created if needed.
        models: further models of the guidance, by name, in any form that :func:`textguide.load` accepts.
        overwrite: replace files that exist. Default: False.

    Returns:
        The folder.

    Raises:
        ValueError: the guidance does not run in ``generate``, or it contains something that other machines do not have
            (an object, a file, a method from outside textguide); or a file exists and ``overwrite`` is False.
    """
    chosen = as_guidance(guidance)
    if chosen is None:
        raise ValueError("guidance=None is plain decoding, which model.generate does without an export; name a method")
    check_place(chosen, "generate")
    check_portable(chosen, models or {})
    target = files.folder(folder)
    texts = {
        "custom_generate/generate.py": _code(chosen, models or {}),
        "custom_generate/requirements.txt": f"textguide>={__version__}\n",
        "README.md": _card(chosen, models or {}),
    }
    existing = [name for name in texts if (target / name).exists()]
    if existing and not overwrite:
        raise ValueError(f"{target / existing[0]} exists; choose another folder, or pass overwrite=True (--overwrite)")
    (target / "custom_generate").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        files.write_text(target / name, text)
    return target


def check_portable(guidance: Guidance, models: Mapping[str, str]) -> None:
    """Refuse a guidance that the folder cannot carry to another machine.

    Raises:
        ValueError: a part of the guidance only exists on this machine; the message names it.
    """
    for part in guidance.parts:
        module = type(part).__module__
        if not module.startswith("textguide."):
            raise ValueError(
                f"guidance {part.name!r} comes from the module {module}, which the folder does not contain; "
                "move it into a package, and add that package to custom_generate/requirements.txt"
            )
        if Need.MODEL in part.needs:
            missing = {branch.model for branch in getattr(part, "branches", ()) if branch.model} - models.keys()
            if missing:
                name = sorted(missing)[0]
                raise ValueError(
                    f"guidance {part.name!r} needs a model named {name!r}; pass models={{{name!r}: …}} "
                    f"(--extra-model {name}=MODEL)"
                )
    try:
        again = Guidance.from_json(guidance.to_json())
        for part in again.parts:
            constraint = getattr(part, "constraint", None)
            if constraint is not None:
                constraint_spec.resolve(constraint)
        survives_json = again.to_json() == guidance.to_json()
    except (TypeError, ValueError):
        survives_json = False
    if not survives_json:
        raise ValueError(
            f"guidance={label(guidance)!r} contains an object that JSON cannot represent; pass its name as text"
        )
    for name, value in (*_texts(guidance.to_dict()), *models.items()):
        if os.path.exists(value) and "prompt" not in name and "system" not in name:
            raise ValueError(
                f"{name}={value!r} is a file on this machine, which the folder does not contain; push it first"
            )


def _texts(value: Any, name: str = "guidance") -> Iterator[tuple[str, str]]:
    """Every text in plain JSON values, with the name of its field."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, name)


def _code(guidance: Guidance, models: Mapping[str, str]) -> str:
    return _CODE.substitute(
        title=label(guidance).replace("\\", "").replace('"', "'"), guidance=_python(guidance), models=repr(dict(models))
    )


def _card(guidance: Guidance, models: Mapping[str, str]) -> str:
    parts = guidance.parts
    papers = [part.about.paper for part in parts if part.about.paper]
    links = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)
    helps = "; ".join(part.about.helps for part in parts)
    needs = {need for part in parts for need in part.needs}
    texts = needs & {
        Need.CANDIDATES,
        Need.REWARD,
        Need.VALUE,
        Need.CONSTRAINT,
        Need.CLASS_LOG_PROBS,
        Need.PROMPT,
        Need.SYSTEM,
    }
    return _CARD.substitute(
        title=label(guidance),
        rule="\n".join(f"`{part.about.rule}`" for part in parts),
        about=f" ({links}). Worth a try for {helps}." if links else f". Worth a try for {helps}.",
        field='"scale": 2.0' if hasattr(parts[0], "scale") and len(parts) == 1 else '"FIELD": VALUE',
        tokenizer="needed here" if texts else "not needed here",
        models="; here " + ", ".join(f"`{name}` is `{source}`" for name, source in models.items()) if models else "",
        guidance=_python(guidance),
    )


def _python(guidance: Guidance) -> str:
    """The plain values as Python code."""
    return pformat(guidance.to_dict(), width=100, sort_dicts=False)
