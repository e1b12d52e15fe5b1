"""The settings of a run, the part that its results depend on, and the rows of a file, checked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..guidance import Guidance, as_guidance, split
from ..guidance.composed import Composed
from ..guidance.prompts import as_prompt, per_row
from ..support.checks import whole_number
from .inputs import Inputs, Values, kept_types

FORMAT = 1
TASKS = ("generate", "score")
BACKENDS = ("transformers", "vllm")
RESULTS = {
    "generate": {
        "text": "string", "tokens": "int32", "finish_reason": "string", "log_likelihood": "float64",
        "log_weight": "float64", "error": "string",
    },
    "score": {"log_likelihood": "float64", "is_greedy": "bool_", "tokens": "int32", "error": "string"},
}  # fmt: skip
"""The columns of a result and their types in pyarrow; ``row`` comes before them, then the columns of ``keep``."""
PLACE_ALONE = {
    "device", "device_map", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs",
    "num_gpu_blocks_override", "pipeline_parallel_size", "tensor_parallel_size",
}  # fmt: skip
"""Options of a model or an engine that change where and how fast it runs, and not its results."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the files.

    Args:
        prompt: what is continued, or the context of what is scored: a text, a chat (a list of ``{"role", "content"}``)
            or token ids.
        continuation: the scored text after it, a text or token ids.
        negative_prompt: of the row, in place of the guidance's; a row that has none keeps the guidance's.
        guidance: of the row, in place of the run's: a line such as ``cfg:scale=2``, a JSON object as text or as it is,
            a list of objects that act together, or ``plain``; a row that has none keeps the run's.
        keep: columns that are copied to the results. Whole numbers, numbers and flags keep their type if all rows of
            all files have it (whole numbers and others together are numbers); other columns are text, and values in
            them that are no text are JSON. A CSV file has only text.
    """

    prompt: str = "prompt"
    continuation: str = "continuation"
    negative_prompt: str | None = None
    guidance: str | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of a file, read and checked.

    Args:
        number: counted over all files from 0.
        prompt: canonical, as of :func:`textguide.guidance.prompts.as_prompt`.
        guidance: its guidance.
        negative: its own negative prompt; None: that of the guidance.
        continuation: what is scored.
    """

    number: int
    prompt: Any
    guidance: Guidance | None
    negative: Any = None
    continuation: Any = None


@dataclass(frozen=True)
class Settings:
    """Everything that the results of a run depend on, and what its models need.

    Args:
        task: ``generate`` or ``score``.
        model: a name as for :func:`textguide.load`.
        guidance: of rows that have none of their own.
        backend: ``transformers`` or ``vllm``.
        columns: which columns mean what.
        options: of :func:`textguide.generate`: ``max_new_tokens``, ``temperature``, ``stop``…
        system: a system prompt for every row.
        seed: row ``i`` draws what it draws alone with the seed ``seed + i``.
        models: further models, name → as ``model``.
        load: of :func:`textguide.load` or :func:`textguide.vllm_engine`.
        rows_per_shard: rows that are written together.

    Raises:
        ValueError: something in it cannot work; the message names it.
    """

    task: str = "generate"
    model: str = "smollm2"
    guidance: Guidance | None = None
    backend: str = "transformers"
    columns: Columns = field(default_factory=Columns)
    options: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    seed: int = 0
    models: Mapping[str, str] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    rows_per_shard: int = 1000
    kept: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", as_guidance(self.guidance))
        for name, known in (("task", TASKS), ("backend", BACKENDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        whole_number("rows_per_shard", self.rows_per_shard, 1)
        whole_number("seed", self.seed, 0)
        if self.task == "score" and self.backend == "vllm":
            raise ValueError(
                "backend='vllm' does not score: vLLM computes the log-probabilities of a given text without guidance; "
                "use backend='transformers'"
            )
        if not isinstance(self.model, str):
            raise ValueError(f"model={type(self.model).__name__} must be a name; every replica loads its own")
        if self.options.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences= does not work here: a row has one text; repeat the row")
        for name in _REMEDIES:
            if name in self.options:
                raise ValueError(f"{name}= is no option of a row; {_REMEDIES[name]}")
        taken = sorted({"row", *RESULTS[self.task]} & {*self.columns.keep})
        if taken:
            raise ValueError(f"keep={', '.join(taken)} is a column of the results too; rename it in the files")
        self._check(self.guidance, "guidance")

    def _check(self, guidance: Guidance | None, name: str) -> None:
        parts = split(guidance)
        branching = parts.branching
        if parts.forks:
            raise ValueError(f"{name}={guidance} writes several texts a prompt, and a row has one; use textguide.eager")
        if branching is not None and branching.across_rows:
            raise ValueError(
                f"{name}={guidance} holds texts of one batch against each other, so that a row would depend on its "
                "neighbours; use textguide.generate"
            )
        if self.backend == "vllm":
            self._check_for_vllm(guidance, name)
        given = getattr(branching, "negative_prompt", None)
        if given is not None and per_row(given):
            raise ValueError(
                f"{name}= has {len(given)} negative prompts; put them into a column and name it as the column of "
                "negative prompts"
            )

    def _check_for_vllm(self, guidance: Guidance | None, name: str) -> None:
        """Refuse what no request can carry, before an engine starts."""
        from textguide.logits_processors.vllm_plugin.adapters import BASE
        from textguide.logits_processors.vllm_plugin.engine import portable
        from textguide.logits_processors.vllm_plugin.engine_priors import described

        engine = {one: self.load.get(one) or {} for one in ("adapters", "constraints", "critics", "priors")}
        adapters = [BASE.name, *engine["adapters"]] if engine["adapters"] else []
        try:
            priors = described(engine["priors"])
            portable(guidance, (*self.models, *adapters), engine["constraints"], engine["critics"], priors)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; or backend='transformers'") from None

    def sharing_memory(self, replicas: int) -> Settings:
        """These settings for replicas on a machine without GPUs, where every engine of vLLM would take 92% of the
        memory; one that says how much it takes keeps it."""
        told = {"gpu_memory_utilization", "kv_cache_memory_bytes"} & {*self.load}
        if self.backend != "vllm" or replicas == 1 or told:
            return self
        return replace(self, load={**self.load, "gpu_memory_utilization": round(0.8 / replicas, 3)})

    def reading(self, inputs: Inputs) -> Settings:
        """These settings with the types of the kept columns of ``inputs``."""
        return replace(self, kept=kept_types(inputs, self.columns.keep))

    def row(self, number: int, values: Values) -> Row:
        """What a row of a file says.

        Raises:
            ValueError: it is not what the settings need; the message names the column.
        """
        if isinstance(values, str):
            raise ValueError(values)
        columns = self.columns
        prompt = as_prompt(values.get(columns.prompt))
        if prompt is None:
            raise ValueError(f"{_content(values, columns.prompt)} and must be a text, a chat or token ids")
        guidance, negative, continuation = self.guidance, None, None
        own = values.get(columns.guidance) if columns.guidance is not None else None
        if own is not None:
            guidance = _guidance(own, str(columns.guidance))
            self._check(guidance, f"column {columns.guidance!r}")
        if columns.negative_prompt is not None and values.get(columns.negative_prompt) is not None:
            negative = as_prompt(values[columns.negative_prompt])
            if negative is None:
                raise ValueError(f"{_content(values, columns.negative_prompt)} and must be a text, a chat or token ids")
            with_negative_prompts(guidance, [negative])
        if self.task == "score":
            continuation = as_prompt(values.get(columns.continuation))
            if not continuation or not isinstance(continuation[0], (str, int)):
                raise ValueError(f"{_content(values, columns.continuation)} and must be a text or token ids")
        return Row(number, prompt, guidance, negative, continuation)

    def identity(self, inputs: Inputs) -> dict[str, Any]:
        """What two runs must share for one to go on with the other's rows, in JSON values."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["guidance"] = None if self.guidance is None else self.guidance.to_dict()
        values["columns"] = asdict(self.columns)
        if not self.kept:  # as in runs of versions that kept all columns as text
            del values["kept"]
        values["load"] = {name: str(value) for name, value in self.load.items() if name not in PLACE_ALONE}
        values["options"] = {name: value for name, value in self.options.items() if value is not None}
        values["files"] = [file.identity() for file in inputs.files]
        values["format"] = FORMAT
        values["versions"] = {name: _version(name) for name in ("textguide", "torch", self.backend)}
        found: dict[str, Any] = json.loads(json.dumps(values, sort_keys=True, default=str))
        return found

    def fingerprint(self, inputs: Inputs) -> str:
        """Twelve hexadecimal digits that stand for :meth:`identity`, in the names of shards."""
        return hashlib.sha256(json.dumps(self.identity(inputs), sort_keys=True).encode()).hexdigest()[:12]


_REMEDIES = {
    "batch_size": "give it to the run",
    "seed": "give it to the run",
    "system": "give it to the run",
    "models": "give their names to the run",
    "verify": "verify some of the prompts with textguide.generate, whose result reports the differences",
    **dict.fromkeys(("images", "observer", "streamer", "stopping_criteria"), "use textguide.generate"),
}


def with_negative_prompts(guidance: Guidance | None, prompts: list[Any]) -> Guidance:
    """``guidance`` with a negative prompt for each row of a batch.

    Raises:
        ValueError: it has no negative prompt.
    """
    parts = list(guidance.parts) if isinstance(guidance, Composed) else [guidance]
    for place, part in enumerate(parts):
        if part is not None and hasattr(part, "negative_prompt"):
            parts[place] = replace(part, negative_prompt=prompts)  # type: ignore[type-var]
            found = as_guidance(parts if len(parts) > 1 else parts[0])
            assert found is not None
            return found
    raise ValueError(f"guidance={guidance} has no negative prompt, and the row has one of its own; leave it out")


def default_backend(task: str) -> str:
    """``vllm`` if it is installed and supports the task, otherwise ``transformers``."""
    return "vllm" if task == "generate" and importlib.util.find_spec("vllm") is not None else "transformers"


def _guidance(value: Any, column: str) -> Guidance | None:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"column {column!r} holds no JSON ({error})") from None
    if isinstance(value, str) and value.strip().endswith(".json"):
        raise ValueError(f"column {column!r} names the file {value!r}, and rows open no files; write the guidance")
    try:
        return as_guidance(value)
    except TypeError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _content(values: Mapping[str, Any], column: str) -> str:
    if values.get(column) is None:
        return f"column {column!r} is empty (the row has {', '.join(map(repr, values)) or 'nothing'})"
    text = repr(values[column])
    return f"column {column!r} holds {text if len(text) < 60 else text[:59] + '…'}"


def _version(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def finite(value: float) -> float | None:
    """``value`` if it is finite, otherwise None."""
    return value if math.isfinite(value) else None
