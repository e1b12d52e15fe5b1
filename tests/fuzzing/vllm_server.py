"""vLLM's server with guidance in this process, on a tiny random model, for the fuzzer of requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from typing import Any

from .http import Arguments, Dialect, Judge, Request

PROMPTS = ("The dragon flew over Paris,", "Once upon a time", "Water boils at")
GUIDANCES: tuple[tuple[Arguments, str], ...] = (
    ({"guidance_scale": 2.0}, ""),
    ({"guidance_scale": 3.0, "negative_prompt": "The weather report:"}, ""),
    ({"guidance_scale": 1.5, "negative_prompt_token_ids": [504, 1000]}, ""),
    ({"guidance_scale": 2.5, "negative_messages": [{"role": "user", "content": "Hello"}]}, "chat"),
    ({"guidance_scale": 2.0, "guidance_schedule": "linear", "guidance_stop": 0.8}, ""),
    ({"guidance_scale": 4.0, "guidance_min_scale": 1.5, "guidance_max_scale": 3.0, "guidance_start": 0.0}, ""),
    ({"guidance_scale": 2.0, "guidance_effect": True}, ""),
    ({"guidance": {"method": "cfg", "scale": 2.0}}, ""),
    ({"guidance": {"method": "apg", "scale": 3.0, "max_norm": 4.0}, "guidance_effect": True}, ""),
    ({"guidance": [{"method": "nag", "scale": 3.0}]}, ""),
    ({"guidance": "formula:2*cond - 0.5*last - 0.5*P('Rain:')"}, ""),
    ({"guidance": "formula:cond + P('a') - P('b')", "guidance_branch_token_ids": [[504], [1000, 504]]}, ""),
    ({"caif_target": "positive", "caif_weight": 4.0, "caif_top_k": 20}, ""),
    ({"guidance_scale": 2.0, "caif_target": "negative", "caif_weight": 2.0, "caif_every": 2}, ""),
    ({"awrs_regex": " [a-z ]+", "guidance_scale": 1.5}, "drawn"),
    ({"awrs_json_schema": {"type": "array", "items": {"type": "integer"}}, "awrs_max_rejects": 50}, "drawn"),
    ({"awrs_grammar": 'start: "a" | "b" start', "awrs_estimator": "geometric"}, "drawn"),
    ({"awrs_regex": " [a-z ]+", "awrs_after": "x"}, "drawn"),
)
INNOCENT: tuple[Arguments, ...] = (
    {"metadata": {"guidance": "a label"}},
    {"trace_id": "x", "user": "y"},
    {"vllm_xargs": {"other_plugin": 3}},
    {"vllm_xargs": {}},
    {"vllm_xargs": None},
)
EXCLUDED: tuple[Arguments, ...] = (
    {"guidance": "cfg:scale=2", "guidance_scale": 2.0},
    {"vllm_xargs": {"textguide": {"guidance": "cfg"}}},
    {"negative_prompt": "a", "negative_prompt_token_ids": [5]},
    {"use_beam_search": True},
    {"guided_regex": "a+"},
    {"cfg_scale": 2.0},
    {"gamma": 1.5},
)
OPTIONS = (
    *("--max-model-len", "128", "--dtype", "float32", "--enforce-eager", "--classifier", "sentiment"),
    *(
        "--gpu-memory-utilization",
        "0.3",
        "--max-num-seqs",
        "32",
        "--max-num-batched-tokens",
        "256",
        "--seed",
        "0",
        "--max-logprobs",
        "8",
    ),
    *("--disable-uvicorn-access-log", "--served-model-name", "tiny"),
)


def requests(rng: random.Random, needs: str) -> Request:
    """What is asked for besides guidance."""
    draws = needs == "drawn"
    prompt = rng.choice(PROMPTS)
    new = rng.choice((1, 3, 5))
    names = ["completions", "chat/completions"] if draws else ["completions", "completions", "chat/completions"]
    if not draws:
        names += ["responses", "messages"]
    name = rng.choice(names if needs != "chat" else ["chat/completions"])
    messages = [{"role": "user", "content": prompt}]
    if name == "responses":
        return Request("/v1/responses", {"model": "tiny", "input": prompt, "max_output_tokens": new, "temperature": 0})
    if name == "messages":
        return Request("/v1/messages", {"model": "tiny", "messages": messages, "max_tokens": new, "temperature": 0})
    fields: Arguments = {"model": "tiny", "max_tokens": new, "temperature": 0}
    fields |= {"prompt": prompt} if name == "completions" else {"messages": messages}
    if draws or rng.random() < 0.3:
        fields |= {"temperature": 0.8, "seed": rng.randrange(3), "n": rng.choice((1, 1, 2))}
    streams = rng.random() < 0.3
    return Request(f"/v1/{name}", {**fields, "stream": True} if streams else fields, streams)


def spelled(rng: random.Random, arguments: Arguments) -> Arguments:
    """Arguments at the top level, in ``vllm_xargs`` or in both, as objects or as JSON text."""
    top: Arguments = {}
    inside: Arguments = {}
    for name, value in arguments.items():
        place = top if rng.random() < 0.6 else inside
        if isinstance(value, float) and value.is_integer() and abs(value) < 100 and rng.random() < 0.3:
            value = int(value)
        if name == "guidance" and isinstance(value, dict) and rng.random() < 0.3:
            value = [value]
        is_object = isinstance(value, dict) or (isinstance(value, list) and name != "negative_prompt_token_ids")
        takes_text = name in ("guidance", "negative_messages", "awrs_json_schema", "guidance_branch_token_ids")
        if is_object and takes_text and rng.random() < 0.4:
            value = json.dumps(value)
        place[name] = value
    return {**top, "vllm_xargs": inside} if inside else top


def canonical(arguments: Arguments) -> Arguments:
    """All arguments in ``vllm_xargs``, objects as JSON text where it may be."""
    return {"vllm_xargs": dict(arguments)} if arguments else {}


def is_nothing(arguments: Arguments) -> bool:
    """Whether they describe a guidance that changes nothing."""
    arguments = {name: value for name, value in arguments.items() if name != "guidance_effect"}
    if any(name.startswith("awrs") for name in arguments):
        return False
    caif = {name for name in arguments if name.startswith("caif")}
    weight = arguments.get("caif_weight", 1)
    if caif and weight != 0:
        return False
    rest = {name: value for name, value in arguments.items() if name not in caif}
    # The scale is raised to its lower bound.
    return not rest or (rest.get("guidance_scale") == 1 and rest.get("guidance_min_scale", 1) == 1)


DIALECT = Dialect(requests, GUIDANCES, spelled, canonical, is_nothing, EXCLUDED, INNOCENT)


def tiny(folder: str) -> str:
    """A random model with the bundled model's tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import textguide

    _, tokenizer = textguide.load("smollm2-small", device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, head_dim=32, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving() -> Iterator[tuple[Judge, asyncio.AbstractEventLoop]]:
    """A judge of requests to the server, and the event loop in which the server runs."""
    import httpx
    from vllm.entrypoints.launchers.api_server import app_state, entry

    from textguide.logits_processors.vllm_plugin import server

    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        arguments = server.parse(tiny(folder), OPTIONS)

        async def start() -> tuple[Any, Any]:
            manager = entry.build_async_engine_client(arguments)
            client = await manager.__aenter__()
            app = entry.build_app(arguments, ("generate",), client.model_config)
            await app_state.init_app_state(client, app.state, arguments, ("generate",))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return manager, httpx.AsyncClient(transport=transport, base_url="http://here", timeout=300)

        manager, http = loop.run_until_complete(start())

        async def post(path: str, body: str) -> tuple[int, str]:
            answer = await http.post(path, content=body, headers={"content-type": "application/json"})
            return answer.status_code, answer.text

        try:
            yield Judge(DIALECT, post), loop
        finally:
            loop.run_until_complete(http.aclose())
            loop.run_until_complete(manager.__aexit__(None, None, None))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
