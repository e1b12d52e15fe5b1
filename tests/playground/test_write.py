"""What runs behind the buttons is what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import textguide
from textguide.guidance import as_guidance
from textguide.playground.canvas import canvases
from textguide.playground.examples import EXAMPLES

from .conftest import CFG, NEEDS, PROMPT, Visitor

pytestmark = NEEDS
NEW = {"max_new_tokens": 6}


def test_the_text_is_that_of_generate(visitor: Visitor, models: Any) -> None:
    found = visitor.run("write", prompt=PROMPT, guidance=[CFG], options=NEW)
    out = textguide.generate(models.model, models.tokenizer, PROMPT, textguide.CFG(2.0), max_new_tokens=6)
    steps = [data for kind, data in found if kind == "step"]
    assert [step["chosen"]["token"] for step in steps] == out.new_tokens[0]
    kind, end = found[-1]
    assert kind == "end"
    assert end["text"] == out.texts[0]
    assert end["steps"] == steps
    assert end["label"] == "cfg 2"
    assert [step["scale"] for step in steps] == [2.0] * 6


def test_plain_decoding(visitor: Visitor, models: Any) -> None:
    end = visitor.end("write", prompt=PROMPT, guidance=None, options=NEW)
    out = textguide.generate(models.model, models.tokenizer, PROMPT, max_new_tokens=6)
    assert end["text"] == out.texts[0]
    assert (end["summary"], end["note"], end["guidance"]) == ("", "", None)
    assert all(step["chosen"]["plain"] == step["chosen"]["guided"] for step in end["steps"])


def test_the_likeliest_tokens_of_every_branch(visitor: Visitor) -> None:
    step = visitor.end("write", prompt=PROMPT, guidance=[CFG], options=NEW)["steps"][0]
    guided = [move["guided"] for move in step["likeliest"]]
    assert guided == sorted(guided, reverse=True)
    for value in (lambda m: m["guided"], lambda m: m["plain"], lambda m: m["branches"][0]):
        shown = sorted((value(move) for move in step["likeliest"]), reverse=True)[:5]
        assert len(shown) == 5
    assert step["guided_top"]["token"] == step["likeliest"][0]["token"]
    assert step["plain_top"]["token"] in [move["token"] for move in step["likeliest"]]


def test_a_fork_goes_on_from_another_token(visitor: Visitor, models: Any) -> None:
    first = visitor.end("write", prompt=PROMPT, guidance=[CFG], options=NEW)["steps"]
    other = next(move["token"] for move in first[2]["likeliest"] if move["token"] != first[2]["chosen"]["token"])
    forced = [*(step["chosen"]["token"] for step in first[:2]), other]
    steps = visitor.end("write", prompt=PROMPT, guidance=[CFG], options=NEW, forced=forced)["steps"]
    tokens = [step["chosen"]["token"] for step in steps]
    assert tokens[:3] == forced
    assert [step["kl"] for step in steps[:3]] == pytest.approx([step["kl"] for step in first[:3]], abs=1e-6)
    # What follows is what guidance says there: the likeliest tokens, and the likelihood that scoring gives them.
    assert all(step["chosen"]["token"] == step["guided_top"]["token"] for step in steps[3:])
    scored = textguide.score(
        models.model, models.tokenizer, PROMPT, [tokens], textguide.CFG(2.0), horizon=NEW["max_new_tokens"]
    )
    logged = torch.tensor([step["chosen"]["guided"] for step in steps]).log()
    torch.testing.assert_close(logged, scored.log_probs[0][0].float(), atol=1e-3, rtol=1e-3)


def test_scoring_under_many_scales(visitor: Visitor, models: Any) -> None:
    end = visitor.end("write", prompt=PROMPT, guidance=[CFG], options=NEW)
    assert end["scorable"] is None
    tokens = [step["chosen"]["token"] for step in end["steps"]]
    response = visitor.client.post(
        "/api/score", json={"prompt": PROMPT, "guidance": [CFG], "tokens": tokens, "scales": [0.0, 1.0, 2.0, 3.5]}
    )
    found = response.json()
    expected = textguide.score(
        models.model, models.tokenizer, PROMPT, [tokens], textguide.CFG(), scales=[0.0, 1.0, 2.0, 3.5]
    )
    torch.testing.assert_close(torch.tensor(found["log_probs"]), expected.log_probs[0].float(), atol=1e-5, rtol=1e-5)
    assert found["plain"] == pytest.approx(found["log_probs"][1], abs=1e-5)
    own = [step["chosen"]["guided"] for step in end["steps"]]
    assert torch.tensor(found["log_probs"][2]).exp().tolist() == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        ([{"method": "dola"}], "no scale"),
        ([CFG, {"method": "caif", "classifier": "sentiment", "target": "positive"}], "other parts"),
        ([{"method": "corrsynth"}], "on its own"),
    ],
)
def test_what_cannot_be_scored_says_why(visitor: Visitor, guidance: Any, said: str) -> None:
    assert said in visitor.refusal("score", prompt=PROMPT, guidance=guidance, tokens=[5], scales=[1.0])


def test_texts_that_are_written_together(visitor: Visitor, models: Any) -> None:
    guidance = [{"method": "awrs", "constraint": {"kind": "regex", "pattern": "[0-9]{2,4}"}, "particles": 4}]
    options = {"max_new_tokens": 5, "seed": 3}
    found = visitor.run("together", prompt="The year ", guidance=guidance, options=options)
    kind, end = found[-1]
    assert kind == "end"
    out = textguide.generate(models.model, models.tokenizer, "The year ", as_guidance(guidance), **options)
    assert end["texts"] == out.texts
    assert end["finish_reasons"] == out.finish_reasons
    assert out.distinct_texts is not None
    assert end["distinct_texts"] == out.distinct_texts[0]
    assert out.log_weights is not None
    weights = [weight if weight is not None else -torch.inf for weight in end["log_weights"]]
    assert weights == pytest.approx(out.log_weights.tolist())
    steps = [data for name, data in found if name == "rows"]
    assert end["steps"] == steps
    last = [weight if weight is not None else -torch.inf for weight in steps[-1]["log_weights"]]
    assert last == pytest.approx(weights)
    assert steps[-1]["deaths"] == end["deaths"]
    assert end["finished"][end["drawn"]]


def replayed(steps: list[dict[str, Any]]) -> list[str]:
    """What the page makes of the steps: texts that move with their rows."""
    texts: list[list[str]] = [[] for _ in steps[0]["tokens"]]
    for step in steps:
        if step["ancestors"] is not None:
            fresh = dict(step["rewritten"])
            texts = [
                [*texts[a][:-1], fresh[row]] if row in fresh else list(texts[a])
                for row, a in enumerate(step["ancestors"])
            ]
        for row, token in enumerate(step["tokens"]):
            if token is not None:
                texts[row].append(token)
    return ["".join(text) for text in texts]


@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        ([CFG, {"method": "feynman-kac", "particles": 5, "ess_threshold": 1.0}], {"max_new_tokens": 7, "seed": 2}),
        ([{"method": "eager", "entropy_threshold": 2.0, "max_branches": 5}], {"max_new_tokens": 7}),
        (
            [{"method": "awrs", "constraint": {"kind": "regex", "pattern": "[a-z ]{3,30}[.]"}, "particles": 4,
              "ess_threshold": 1.0}],
            {"max_new_tokens": 7, "seed": 2},
        ),
    ],
)  # fmt: skip
def test_the_steps_lead_to_the_texts(visitor: Visitor, guidance: Any, options: Any) -> None:
    end = visitor.end("together", prompt=PROMPT, guidance=guidance, options=options)
    assert any(step["ancestors"] is not None for step in end["steps"])
    if guidance[0]["method"] == "eager":  # one text at first
        assert [token is None for token in end["steps"][0]["tokens"]] == [False, True, True, True, True]
    assert end["constrained"] == (guidance[0]["method"] == "awrs")
    made = replayed(end["steps"])
    for row, text in enumerate(end["texts"]):
        assert made[row].replace("<|im_end|>", "").replace("<|endoftext|>", "") == text, row


def test_a_canvas_whose_text_has_its_masks_in_it(visitor: Visitor) -> None:
    example = next(one for one in canvases() if one["name"] == "sudoku9")
    prompt, guidance = example["prompt"], [{"method": "cfg", "scale": 1.25}]
    request = {"model": "sudoku9", "prompt": prompt, "guidance": guidance, "options": {"threshold": 0.9}}
    kind, end = visitor.run("diffuse", **request)[-1]
    model, tokenizer = textguide.diffusion.load("sudoku9", device="cpu")
    text = prompt.replace("0", tokenizer.mask_token)
    out = textguide.diffusion.infill(model, tokenizer, text, guidance=textguide.CFG(1.25), threshold=0.9)
    assert (kind, end["text"], end["columns"]) == ("end", out.texts[0], 9)
    assert (end["checked"], end["problem"]) == (True, out.problems[0])
    assert [cell["given"] for cell in end["cells"]] == [digit != "0" for digit in prompt]
    assert len(end["steps"]) == out.steps[0] < 51
    refused = visitor.refusal("diffuse", **{**request, "options": {"block_length": 9}})
    assert "block_length is for canvases after a prompt" in refused


def test_a_canvas(visitor: Visitor) -> None:
    guidance = [{"method": "acfg", "scale": 2.0, "remask_ratio": 0.5}]
    prompt = "0300124300000431"
    found = visitor.run("diffuse", model="sudoku4", prompt=prompt, guidance=guidance, options={"gen_length": 16})
    model, tokenizer = textguide.diffusion.load("sudoku4", device="cpu")
    out = textguide.diffusion.generate(
        model, tokenizer, prompt, guidance=as_guidance(guidance), gen_length=16, keep_history=True
    )
    kind, end = found[-1]
    assert kind == "end"
    assert end["text"] == out.texts[0]
    cells = [cell["text"] for cell in found[0][1]["cells"]]
    for step, kept in zip((data for name, data in found if name == "filled"), out.history, strict=True):
        again = kept.remasked[0].nonzero()[:, 0].tolist()
        assert [place for place, _ in step["remasked"]] == again
        assert kept.certainty is not None or not again
        for place, text, _ in step["filled"]:
            cells[place] = text
        # What is masked again is what the model is least sure of, among what is filled.
        filled = [i for i, cell in enumerate(end["cells"]) if cell["given"]]
        if again and kept.certainty is not None:
            worst = max(value for _, value in step["remasked"])
            spared = [float(kept.certainty[0, i]) for i in filled if i not in again]
            assert min(spared, default=1.0) >= worst - 1e-6 or step["index"] > 0
    assert [cell for cell in cells if cell is not None] == cells


def test_a_caption(visitor: Visitor) -> None:
    from textguide.playground.images import open_image, scenes

    scene = scenes()[0]
    end = visitor.end("caption", scene=scene["name"], guidance=[CFG], options={"max_new_tokens": 10})
    model, processor = textguide.captioning.load("drawn-scenes", device="cpu")
    image = open_image(scene["data"], 4096)
    out = textguide.caption(model, processor, image, textguide.CFG(2.0), max_new_tokens=10)
    assert end["text"] == out.texts[0]


@pytest.mark.parametrize(
    ("task", "example"),
    [(task, one) for task, ones in EXAMPLES.items() for one in ones],
    ids=lambda value: value["title"].replace(" ", "-") if isinstance(value, dict) else value,
)
def test_every_example_runs(visitor: Visitor, task: str, example: dict[str, Any]) -> None:
    values = {name: value for name, value in example.items() if name != "title"}
    if "max_new_tokens" in values["options"] and task == "write":
        values["options"] = {**values["options"], "max_new_tokens": 3}
    assert visitor.end(task, **values)["kind"] in ("text", "rows", "canvas")
