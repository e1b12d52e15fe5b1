"""Guided requests over HTTP, right ones and mistaken ones, against a server.

An answer is right, or the request is refused with the name of the field: what a client wrote about guidance is never
lost in silence. ``python -m tests.fuzzing.http --server vllm --cases 10000 --seed 0 --log F`` sends random requests,
several at a time, and writes a line of JSON for each; it goes on with what the log does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import string
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Arguments = dict[str, Any]
Post = Callable[[str, str], Awaitable[tuple[int, str]]]
"""Sends a body to a path, and returns the status and the body of the answer."""

REFUSED = "refused"
GUIDED = "guided"
PLAIN = "plain"
EITHER = "either"
NESTS = ("extra_body", "extra_args", "sampling_params", "parameters", "options", "model_kwargs", "chat_template_kwargs")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.5, -0.5, 10**30, -(10**30), 10**400, 1e308, -1e308, 1e-320, float("nan"),
    float("inf"), "", " ", "x", "1.5", "true", "null", "\0", "é☃", "x" * 5000, [], [1], [-1], [10**9], [1.5], [True],
    [None], ["x"], [[1]], [[1], [2]], {}, {"a": {"b": 1}}, {"method": "cfg"}, {"method": "nope"}, {"method": None},
    {"method": "cfg", "scale": "x"}, {"method": "cfg", "scale": True}, {"method": "cfg", "scal": 2}, "cfg:scale=",
    "cfg:scale=1e309", "[]", "{}", "[[", "{\"method\": \"cfg\"}", [{"method": "cfg"}, {"method": "cfg"}], [{}],
    [{"role": "user", "content": "x"}], [{"role": "user"}], {"type": "object"}, {"$ref": "#/x"}, "(", "start: x",
    "formula:cond/0", "formula:cond*1e300", "python:os:getcwd", "/etc/passwd", "positive",
)  # fmt: skip
"""Values that a field is given instead of its own."""
TRIES = 30
"""How often a busy server is asked."""
DEEP: Any = json.loads("[" * 60 + "]" * 60)


@dataclass(frozen=True)
class Request:
    """What is asked for besides guidance.

    Args:
        path: where it is sent.
        fields: its own fields.
        streams: whether it is answered in events.
    """

    path: str
    fields: Arguments
    streams: bool = False


@dataclass(frozen=True)
class Case:
    """A request with guidance as a client may write it.

    Args:
        kind: what was done to it.
        request: what is asked for besides guidance.
        body: what is sent.
        expected: ``guided``, ``plain``, ``refused``, or ``either`` of right and refused.
        named: a refusal is about one of these.
        canonical: the arguments of guidance whose answer is the right one.
        query: parameters in the address.
    """

    kind: str
    request: Request
    body: Arguments
    expected: str
    named: tuple[str, ...] = ()
    canonical: Arguments = field(default_factory=dict)
    query: str = ""


@dataclass(frozen=True)
class Dialect:
    """What a server understands.

    Args:
        requests: draws what is asked for besides guidance.
        guidances: arguments of guidance, and what the request has to be: ``drawn``, ``chat`` or anything.
        spelled: writes arguments in one of the ways that the server reads.
        canonical: writes them in the one way whose answers others are compared with.
        is_nothing: whether arguments change nothing.
        excluded: fields that do not work with guidance.
        innocent: fields that have nothing to do with it.
    """

    requests: Callable[[random.Random, str], Request]
    guidances: Sequence[tuple[Arguments, str]]
    spelled: Callable[[random.Random, Arguments], Arguments]
    canonical: Callable[[Arguments], Arguments]
    is_nothing: Callable[[Arguments], bool]
    excluded: Sequence[Arguments]
    innocent: Sequence[Arguments]


# -- cases -----------------------------------------------------------------------------------------------------------


def make(dialect: Dialect, seed: int, number: int) -> Case:
    """The case with this number; the same in every process."""
    rng = random.Random(f"{seed}:{number}")
    arguments, needs = rng.choice(dialect.guidances)
    request = dialect.requests(rng, needs)
    kind = rng.choice(("right", "right", "plain", "misspelt", "nested", "address", "typed", "typed", "twice", "mixed"))
    return KINDS[kind](dialect, rng, request, dict(arguments))


def _right(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    body = {**request.fields, **_noise(dialect, rng), **dialect.spelled(rng, arguments)}
    return Case("right", request, body, GUIDED, canonical=arguments)


def _plain(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    nothing = rng.choice(({}, dict.fromkeys(arguments)))
    body = {**request.fields, **_noise(dialect, rng), **dialect.spelled(rng, nothing)}
    return Case("plain", request, body, PLAIN)


def _misspelt(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    name = rng.choice(list(arguments))
    wrong = misspelt(rng, name)
    body = {
        **request.fields,
        **dialect.spelled(rng, {wrong if one == name else one: arguments[one] for one in arguments}),
    }
    return Case("misspelt", request, body, REFUSED, (wrong,))


def _nested(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    name = rng.choice(list(arguments))
    place = rng.choice(NESTS)
    inside: Any = {name: arguments.pop(name)}
    named = f"{place}.{name}"
    if rng.random() < 0.3:
        inside = {"more": inside}
        named = f"{place}.more.{name}"
    body = {**request.fields, **dialect.spelled(rng, arguments), place: inside}
    return Case("nested", request, body, REFUSED, (named, place))


def _address(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    name = rng.choice(list(arguments))
    return Case("address", request, dict(request.fields), REFUSED, (name,), query=f"?{name}=2")


def _typed(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    name = rng.choice(list(arguments))
    arguments[name] = rng.choice((*VALUES, DEEP))
    body = {**request.fields, **dialect.spelled(rng, arguments)}
    return Case("typed", request, body, EITHER, tuple(arguments), arguments)


def _twice(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    other = rng.choice(dialect.excluded)
    body = {**request.fields, **dialect.spelled(rng, arguments), **other}
    inside = [name for value in other.values() if isinstance(value, dict) for name in value]
    return Case("twice", request, body, REFUSED, (*other, *inside, *arguments))


def _mixed(dialect: Dialect, rng: random.Random, request: Request, arguments: Arguments) -> Case:
    """Two guidances at once, one value of which may be wrong."""
    more = rng.choice(dialect.guidances)[0]
    arguments = {**arguments, **more}
    if rng.random() < 0.5:
        arguments[rng.choice(list(arguments))] = rng.choice(VALUES)
    body = {**request.fields, **dialect.spelled(rng, arguments)}
    # Which two exclude each other is known to the server only.
    return Case("mixed", request, body, EITHER, (*arguments, *request.fields), arguments)


KINDS: Mapping[str, Callable[[Dialect, random.Random, Request, Arguments], Case]] = {
    "right": _right,
    "plain": _plain,
    "misspelt": _misspelt,
    "nested": _nested,
    "address": _address,
    "typed": _typed,
    "twice": _twice,
    "mixed": _mixed,
}


def _noise(dialect: Dialect, rng: random.Random) -> Arguments:
    return dict(rng.choice(dialect.innocent)) if rng.random() < 0.5 else {}


def misspelt(rng: random.Random, name: str) -> str:
    """``name`` with a slip of the hand, or in the habit of another language."""
    place = rng.randrange(len(name) - 1)
    slips = [
        name[:place] + name[place + 1 :],
        name[:place] + name[place] + name[place:],
        name[:place] + name[place + 1] + name[place] + name[place + 2 :],
        name[:place] + rng.choice(string.ascii_lowercase) + name[place + 1 :],
        name.upper(),
        name.title(),
        name.replace("_", "-"),
        name.replace("_", ""),
        "".join(part.title() for part in name.split("_")),
        f" {name}",
        f"{name} ",
        f"{name}s",
    ]
    return rng.choice([slip for slip in slips if slip != name])


# -- verdicts --------------------------------------------------------------------------------------------------------


class Judge:
    """Sends cases to a server and compares its answers.

    Args:
        dialect: of the server.
        post: sends a request.
    """

    def __init__(self, dialect: Dialect, post: Post) -> None:
        self.dialect = dialect
        self._post = post
        self._known: dict[str, asyncio.Future[tuple[int, Any]]] = {}

    async def _send(self, path: str, body: str) -> tuple[int, str]:
        """The answer; a busy server (429) is asked again, as its message says."""
        for _ in range(TRIES):
            status, text = await self._post(path, body)
            if status != 429:
                break
            await asyncio.sleep(1)
        return status, text

    async def fault(self, case: Case) -> tuple[int, str | None]:
        """The status of the answer, and what is wrong with it; None if nothing is."""
        status, text = await self._send(case.request.path + case.query, json.dumps(case.body))
        if status >= 500:
            return status, f"status {status}: {text[:300]}"
        if status >= 400:
            return status, await self._fault_of_refusal(case, text)
        events = [line for line in text.splitlines() if line.startswith("data: {")]
        errors = [line for line in events[1:] if line.startswith('data: {"error"')]
        if errors:  # found in the middle of a stream, whose status was sent before
            return status, await self._fault_of_refusal(case, errors[0].removeprefix("data: "))
        if case.expected == REFUSED:
            return status, f"answered, and not refused: {text[:300]}"
        return status, await self._fault_of_answer(case, text)

    async def _fault_of_refusal(self, case: Case, text: str) -> str | None:
        if case.expected in (GUIDED, PLAIN):
            return f"refused, and not answered: {text[:300]}"
        error = json.loads(text)["error"]
        if not _is_json(case.body):
            return None  # NaN and infinities, for which a server may refuse the whole body
        param = error.get("param")
        if not isinstance(error["message"], str) or len(error["message"]) > 2000:
            return f"a message of {len(str(error['message']))} characters"
        if case.request.path.endswith("/messages") and any(name in error["message"] for name in case.named):
            return None  # errors of Anthropic's API have no place for the field
        if param is None or not any(str(param) == name or str(param).endswith(f".{name}") for name in case.named):
            return f"the refusal is about {param!r}, and not about {', '.join(case.named)}: {error['message'][:200]}"
        return None

    async def _fault_of_answer(self, case: Case, text: str) -> str | None:
        texts, flags = read(text, case.request.streams)
        if not flags or any(not isinstance(flag, bool) for flag in flags):
            return f"not every answer reports whether it is guided: {flags}"
        is_guided = all(flags)
        if any(flags) != is_guided:
            return f"a part of the answer is guided: {flags}"
        arguments = {name: value for name, value in case.canonical.items() if value is not None}
        expects = case.expected == GUIDED or (case.expected == EITHER and not self.dialect.is_nothing(arguments))
        if is_guided != expects:
            return f"guided is {is_guided}: {text[:300]}"
        status, known = await self._answer(case.request, arguments if expects else {})
        if status != 200:
            return f"answered, but the canonical request has status {status}: {known}"
        if texts != known:
            return f"the texts are {texts}, and those of the canonical request {known}"
        return None

    async def _answer(self, request: Request, arguments: Arguments) -> tuple[int, Any]:
        """The status and the texts of the request in its canonical form, which is sent once."""
        fields = {name: value for name, value in request.fields.items() if not name.startswith("stream")}
        body = json.dumps({**fields, **self.dialect.canonical(arguments)})
        key = request.path + body
        if key not in self._known:
            self._known[key] = asyncio.get_running_loop().create_future()
            status, text = await self._send(request.path, body)
            self._known[key].set_result((status, read(text, False)[0] if status == 200 else text[:200]))
        return await self._known[key]


def read(text: str, streams: bool) -> tuple[list[str], list[Any]]:
    """The texts of an answer, and whether each part of it reports that it is guided."""
    if not streams:
        answer = json.loads(text)
        return _texts(answer), [_guided(answer)]
    texts: dict[int, str] = {}
    flags = []
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        for choice in event.get("choices") or ():
            number = choice["index"]
            piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            texts[number] = texts.get(number, "") + piece
            if choice.get("finish_reason") is not None:
                flags.append(_guided(event))
    return [texts[number] for number in sorted(texts)], flags


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _guided(answer: Mapping[str, Any]) -> Any:
    return ((answer.get("kv_transfer_params") or {}).get("textguide") or {}).get("guided")


def _texts(answer: Mapping[str, Any]) -> list[str]:
    if "choices" in answer:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [choice["text"] if "text" in choice else choice["message"]["content"] or "" for choice in choices]
    if "output" in answer:
        return ["".join(part["text"] for item in answer["output"] for part in item.get("content") or ())]
    return ["".join(part.get("text", "") for part in answer["content"])]


async def run(
    judge: Judge, seed: int, numbers: Sequence[int], note: Callable[[dict[str, Any]], None], width: int
) -> None:
    """Judge cases, ``width`` at a time."""
    left = iter(numbers)

    async def work() -> None:
        for number in left:
            case = make(judge.dialect, seed, number)
            try:
                status, fault = await judge.fault(case)
            except Exception as error:  # an answer that cannot be read is a finding too
                status, fault = 0, f"{type(error).__name__}: {error}"
            row: dict[str, Any] = {"case": number, "kind": case.kind, "status": status}
            if fault is not None:
                row |= {"fault": fault, "path": case.request.path + case.query, "body": case.body}
            note(row)

    await asyncio.gather(*(work() for _ in range(width)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the fuzzer; the exit code is 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("vllm", "diffusion"), required=True)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=12, help="requests at the same time")
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(argv)
    done = set()
    if options.log.exists():
        done = {json.loads(line)["case"] for line in options.log.read_text().splitlines()}
    numbers = [number for number in range(options.cases) if number not in done]
    if options.server == "vllm":
        from .vllm_server import serving
    else:
        from .canvas_server import serving
    findings = 0

    def note(row: dict[str, Any]) -> None:
        nonlocal findings
        findings += "fault" in row
        stream.write(json.dumps(row) + "\n")
        stream.flush()

    with options.log.open("a") as stream, serving() as (judge, loop):
        loop.run_until_complete(run(judge, options.seed, numbers, note, options.width))
    print(f"{len(numbers)} requests, {findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    raise SystemExit(main())
