"""A web server of one's own that streams guided text to several visitors."""

from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import textguide
from textguide import CFG

model, tokenizer = textguide.load("smollm2-small", device="cpu")
app = FastAPI()


@app.get("/write")
def write(prompt: str, scale: float) -> StreamingResponse:
    return StreamingResponse(textguide.stream(model, tokenizer, prompt, CFG(scale), max_new_tokens=6))


client = TestClient(app)
calls = [("The dragon flew over", 1.5), ("The king", 2.0), ("A ship", 1.25)]
with ThreadPoolExecutor(3) as visitors:
    answers = list(visitors.map(lambda call: client.get("/write", params=dict(zip(("prompt", "scale"), call))), calls))
for (prompt, scale), answer in zip(calls, answers):
    assert answer.status_code == 200
    assert answer.text == textguide.generate(model, tokenizer, prompt, CFG(scale), max_new_tokens=6).texts[0]

chunks = textguide.stream(model, tokenizer, "The dragon", CFG(1.5), max_new_tokens=50)
next(chunks)
chunks.close()
assert list(chunks) == []
