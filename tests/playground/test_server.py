"""The server: who may ask, what happens to what is wrong, visitors who leave, several at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from textguide.playground.canvas import canvases

from .conftest import CFG, NEEDS, PROMPT, Visitor, events

pytestmark = NEEDS
NEW = {"max_new_tokens": 4}
JSON = {"Content-Type": "application/json"}


def guided(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "guidance": [fields]}


def constrained(**fields: Any) -> dict[str, Any]:
    return guided(method="awrs", constraint=fields)


def test_the_page_and_all_that_it_loads(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert not re.search(r"https?://", page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    names = json.loads(re.search(r'<script type="importmap">(.*?)</script>', page.text)[1])["imports"]  # type: ignore[index]
    addresses = [*names.values(), *re.findall(r'(?:href|src)="(\./[^"]+)"', page.text)]
    total = 0
    for address in addresses:
        found = client.get(address.removeprefix("."))
        assert found.status_code == 200, address
        assert found.headers["x-content-type-options"] == "nosniff"
        total += len(found.content)
        if address.endswith("js"):
            code = found.text
            assert set(re.findall(r"""\b(?:import|export)\b[^;`"'=()]*["']([^"']+)["']""", code)) <= names.keys()
    assert total < 400_000


def test_assets_in_the_wheel_are_small() -> None:
    from textguide.playground import server
    from textguide.support import viewer

    folders = (server.HOME, viewer.page.__globals__["HOME"])
    assert sum(path.stat().st_size for home in folders for path in home.rglob("*") if path.is_file()) < 400_000


@pytest.mark.parametrize(
    "name", ["..%2f..%2fpyproject.toml", "%2e%2e/server.py", "server.py", "scenes", "index.html/x"]
)
def test_nothing_else_is_served(client: Any, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:7860"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, 403),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, 200),
        ({"Content-Type": "text/plain"}, 403),
    ],
)
def test_who_may_ask(client: Any, headers: dict[str, str], status: int) -> None:
    values = {"prompt": PROMPT, "options": {"max_new_tokens": 1}}
    answer = client.post("/api/write", content=json.dumps(values), headers={**JSON, **headers})
    assert answer.status_code == status, answer.text
    if "Host" in headers and status == 403:
        assert client.get("/", headers=headers).status_code == 403


def test_other_hosts_by_their_address_where_the_page_listens_everywhere() -> None:
    from textguide.serving.access import allowed_names, refusal

    everywhere = allowed_names("0.0.0.0")
    assert refusal({"host": "192.168.1.5:7860"}, "GET", everywhere) is None
    assert refusal({"host": "[fe80::1]:7860"}, "GET", everywhere) is None
    assert refusal({"host": "rebound.example:7860"}, "GET", everywhere)
    named = allowed_names("box.lan")
    assert refusal({"host": "box.lan:7860"}, "GET", named) is None
    assert refusal({"host": "other.lan:7860"}, "GET", named)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("write", {"prompt": PROMPT, "guidance": [{"method": "no-such"}]}, "is not a guidance"),
        ("write", {"prompt": "word " * 1500, "options": NEW}, "tokens, and this server takes 1,024"),
        ("write", {"prompt": PROMPT, "options": NEW, "forced": [10**9]}, "forced has token"),
        ("write", {"prompt": PROMPT, "options": {"top_p": 7}}, "top_p"),
        ("write", guided(method="contrastive", amateur="nobody"), "--extra-model nobody=MODEL"),
        ("write", guided(method="caif", classifier="sentiment", target="purple"), "purple"),
        ("together", {"prompt": PROMPT, "guidance": [CFG]}, "nothing holds the texts together"),
        ("together", guided(method="awrs", constraint="regex:a", sampler="cars"), "begins texts again"),
        ("together", constrained(kind="regex", pattern="("), "("),
        ("together", constrained(kind="json-schema", schema={"type": "colour"}), "colour"),
        ("together", constrained(kind="grammar", grammar="start: nothing\n"), "nothing"),
        ("diffuse", {"model": "dream", "prompt": ""}, "model='dream' is unknown"),
        ("diffuse", {"model": "sudoku4", "prompt": "123", "options": {"gen_length": 16}}, "has 3 cells and 16 masks"),
        ("diffuse", {"model": "molecules", "prompt": "", "options": {"gen_length": 7, "block_length": 2}}, "divisible"),
        ("diffuse", {"model": "sudoku4", "prompt": "", "options": {"gen_length": 9999}}, "between 1 and 256"),
        ("diffuse", {"model": "sudoku4", "prompt": "", "guidance": [{"method": "dola"}]}, "layers are not known"),
        ("caption", {"scene": "moon"}, "scene='moon' is unknown"),
        ("caption", {"image": "/etc/passwd"}, "must be a file of an image"),
        ("caption", {"image": "data:image/png;base64,AAAA"}, "cannot be read as an image"),
        ("score", {"prompt": PROMPT, "guidance": [CFG], "tokens": [5], "scales": []}, "1 to 64 numbers"),
        ("score", {"prompt": PROMPT, "guidance": [CFG], "tokens": [], "scales": [1]}, "write a text first"),
        ("take-away", {"task": "fly", "request": {}}, "task='fly'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_the_server_goes_on(visitor: Visitor, name: str, values: Any, said: str) -> None:
    message = visitor.refusal(name, **values)
    assert said in message
    assert "went wrong in the server" not in message
    assert visitor.end("write", prompt=PROMPT, options={"max_new_tokens": 1})["steps"]


def test_too_large_a_request(client: Any) -> None:
    answer = client.post("/api/write", content=b"[" + b"1," * 3_000_000, headers=JSON)
    assert answer.status_code == 400
    assert "larger than 4,000,000 bytes" in answer.json()["error"]
    assert client.post("/api/write", content=b"{", headers=JSON).status_code == 400


def test_a_run_stops_when_its_visitor_leaves_and_others_have_their_turn(models: Any) -> None:
    """Runs by themselves: a visitor who stops listening, beside one who stays."""
    from textguide.playground.runs import Runs
    from textguide.playground.write import write
    from textguide.serving.rules import Rules

    rules, steps = Rules(), {"gone": 0, "stays": 0}
    order: list[str] = []

    def counted(name: str) -> Any:
        request = rules.text_request({"prompt": PROMPT, "guidance": [CFG], "options": {"max_new_tokens": 40}})

        def run(send: Any) -> None:
            def counting(kind: str, data: Any) -> None:
                if kind == "step":
                    steps[name] += 1
                    order.append(name)
                send(kind, data)

            write(models, request, rules, counting)

        return run

    async def main() -> list[str]:
        runs = Runs(2)
        gone, stays = runs.stream(counted("gone")), runs.stream(counted("stays"))
        heard = 0
        async for line in gone:
            heard += line.startswith("event: step")
            if heard == 3:
                break
        await gone.aclose()  # type: ignore[attr-defined]
        lines = [line async for line in stays]
        for _ in range(100):
            if runs.free == 2:
                break
            await asyncio.sleep(0.05)
        assert runs.free == 2
        runs.close()
        return lines

    lines = asyncio.run(main())
    assert lines[-1].startswith("event: end")
    assert steps["stays"] == 40
    assert 3 <= steps["gone"] < 20
    # While both ran they took turns.
    together = order[: 2 * 3]
    assert {"gone", "stays"} == set(together)


def test_runs_end_with_the_server() -> None:
    from textguide.playground.runs import Runs

    async def main() -> list[str]:
        runs = Runs(1)

        def forever(send: Any) -> None:
            while True:
                time.sleep(0.01)
                send("", None)

        lines = runs.stream(forever)
        runs.end()
        rest = [line async for line in lines if not line.startswith(":")]
        while runs.free < 1:
            await asyncio.sleep(0.01)
        return rest

    assert asyncio.run(asyncio.wait_for(main(), 20)) == []


def test_too_many_runs_at_once_are_told_to_wait(models: Any) -> None:
    from textguide.playground.runs import Runs
    from textguide.serving.errors import BusyError

    async def main() -> None:
        runs, let_go = Runs(2), threading.Event()

        def wait(send: Any) -> None:
            while not let_go.is_set():
                time.sleep(0.01)
                send("", None)

        first, second = runs.stream(wait), runs.stream(wait)
        with pytest.raises(BusyError, match="2 runs are in progress"):
            runs.stream(wait)
        with pytest.raises(BusyError):
            await runs.once(lambda: 1)
        let_go.set()
        for lines in (first, second):
            assert [line async for line in lines if not line.startswith(":")] == []
        while runs.free < 2:
            await asyncio.sleep(0.01)
        assert await runs.once(lambda: 1) == 1
        runs.close()

    asyncio.run(main())


def test_a_run_whose_visitor_left_frees_its_place_at_once() -> None:
    """Also in the middle of a long step: its thread ends later, and the next run waits for it and is not refused."""
    from textguide.playground.runs import Runs

    let_go, started = threading.Event(), threading.Event()
    worked: list[str] = []

    def long_step(send: Any) -> None:
        started.set()
        let_go.wait()
        send("step", 2)
        worked.append("after it was left")

    def run(name: str) -> Any:
        def work(send: Any) -> None:
            worked.append(name)
            send("end", name)

        return work

    async def leave_soon(lines: Any) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(anext(lines), 0.05)

    async def main() -> list[str]:
        runs = Runs(1)
        first = runs.stream(long_step)
        while not started.is_set():
            await asyncio.sleep(0.01)
        assert runs.free == 0
        await leave_soon(first)
        assert runs.free == 1
        waiting = runs.stream(run("left before it started"))
        assert runs.free == 0
        await leave_soon(waiting)
        assert runs.free == 1
        last = runs.stream(run("last"))
        let_go.set()
        lines = [line async for line in last if not line.startswith(":")]
        while runs.free < 1:
            await asyncio.sleep(0.01)
        runs.close()
        return lines

    assert asyncio.run(asyncio.wait_for(main(), 20)) == ['event: end\ndata: "last"\n\n']
    assert worked == ["last"]


def test_what_is_not_installed_is_named(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/api/info").json()["missing"] == {}
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    missing = client.get("/api/info").json()["missing"]
    assert "needs pillow, which is not installed: pip install 'textguide[captioning]'" in missing["caption"]
    assert "pip install 'textguide[constraints]'" in missing["constrain"]
    image = "data:image/png;base64,AAAA"
    for name, values in (("caption", {"image": image}), ("together", constrained(kind="regex", pattern="[0-9]{3}x"))):
        answer = client.post(f"/api/{name}", json=values)
        said = answer.json()["error"] if answer.status_code == 424 else events(answer.text)[-1][1]["error"]
        assert "pip install 'textguide[" in said


def test_an_error_nobody_expected_is_logged_and_not_shown(models: Any, caplog: pytest.LogCaptureFixture) -> None:
    from textguide.serving.errors import error_message

    message = error_message(KeyError("/home/someone/secret"))
    assert "secret" not in message
    assert "KeyError" in message
    assert "secret" in caplog.text


def test_a_file_to_take_away(visitor: Visitor) -> None:
    end = visitor.end("write", prompt=PROMPT, guidance=[CFG], options=NEW)
    page = visitor.client.post("/api/page", json=end)
    assert page.status_code == 200
    assert "attachment" in page.headers["content-disposition"]
    assert json.loads(re.search(r'id="values">(.*?)</script>', page.text)[1]) == end  # type: ignore[index]
    assert visitor.client.post("/api/page", json={"kind": "song"}).status_code == 400


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": PROMPT, "guidance": [CFG], "options": {"max_new_tokens": 5}},
        {
            "prompt": "It's \"quoted\" – $HOME `x`\nand two lines",
            "guidance": [{**CFG, "negative_prompt": "it's"}],
            "options": {"max_new_tokens": 3},
        },
        {
            "prompt": [{"role": "user", "content": "Say 'a'"}],
            "guidance": [CFG, {"method": "caif", "classifier": "sentiment", "target": "positive", "top_k": 5}],
            "options": {"max_new_tokens": 3, "temperature": 0.7, "seed": 4},
        },
        {"prompt": PROMPT, "guidance": [{"method": "contrastive"}], "options": {"max_new_tokens": 3}},
        {"prompt": PROMPT, "guidance": None, "options": {"max_new_tokens": 3}},
    ],
)  # fmt: skip
def test_python_to_take_away_writes_the_same_text(visitor: Visitor, request_: Any, capsys: Any) -> None:
    end = visitor.end("write", **request_)
    made = visitor.client.post("/api/take-away", json={"task": "write", "request": request_}).json()
    exec(compile(made["python"], "taken away", "exec"), {})
    assert capsys.readouterr().out == end["text"] + "\n"


@pytest.mark.parametrize("name", ["sudoku4", "sudoku9"])
def test_python_to_take_away_fills_the_same_canvas(visitor: Visitor, name: str, capsys: Any) -> None:
    about = next(one for one in canvases() if one["name"] == name)
    options = {"max_new_tokens": about["max_new_tokens"], "threshold": 0.9}
    request = {"model": name, "prompt": about["prompt"], "guidance": [CFG], "options": options}
    end = visitor.end("diffuse", **request)
    made = visitor.client.post("/api/take-away", json={"task": "diffuse", "request": request}).json()
    exec(compile(made["python"], "taken away", "exec"), {})
    assert capsys.readouterr().out == end["text"] + "\n"


def test_the_line_and_the_call_to_take_away(visitor: Visitor, models: Any, capsys: Any, monkeypatch: Any) -> None:
    import io

    from textguide import cli

    request_ = {"prompt": "It's a $HOME", "guidance": [CFG], "options": {"max_new_tokens": 4}}
    end = visitor.end("write", **request_)
    made = visitor.client.post(
        "/api/take-away", json={"task": "write", "request": request_, "address": "http://127.0.0.1:7860/"}
    ).json()
    words = shlex.split(made["cli"])
    assert words[:2] == ["textguide", "generate"]
    assert json.loads(words[words.index("--guidance") + 1]) == CFG  # no defaults
    assert cli.main(words[1:]) == 0
    assert capsys.readouterr().out == f"{request_['prompt']}{end['text']}\n"
    words = shlex.split(made["curl"])
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:7860/api/write"]
    assert json.loads(words[-1]) == request_
    # A prompt of several lines is piped in.
    request_["prompt"] = "two\nlines"
    end = visitor.end("write", **request_)
    made = visitor.client.post("/api/take-away", json={"task": "write", "request": request_}).json()
    before, _, after = made["cli"].partition(" | ")
    piped = subprocess.run(["sh", "-c", before], capture_output=True, text=True, check=True).stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert cli.main(shlex.split(after)[1:]) == 0
    assert capsys.readouterr().out == f"{request_['prompt']}{end['text']}\n"


def test_the_guidance_of_the_line_is_the_guidance_of_the_run() -> None:
    from textguide.guidance import Guidance, as_guidance, catalogue
    from textguide.playground.take_away import as_json

    for method in catalogue.methods():
        guidance = catalogue.example(Guidance.registry[method["name"]])
        assert as_guidance(as_json(guidance)) == guidance
        assert "null" not in as_json(guidance)


def test_a_port_that_is_taken() -> None:
    from textguide.serving.sockets import address, listen

    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    assert address("127.0.0.1", sock) == f"http://127.0.0.1:{port}/"
    sock.listen(1)
    with pytest.raises(ValueError, match=rf"--port {port}.*--port 0"):
        listen("127.0.0.1", port)
    sock.close()
    with pytest.raises(ValueError, match=r"--host 203\.0\.113\.9"):
        listen("203.0.113.9", 0)
