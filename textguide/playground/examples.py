"""Examples to start from, one per task and idea; a test runs each of them."""

from __future__ import annotations

from typing import Any

from .canvas import ABOUT

DATE = {"kind": "regex", "pattern": "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"}
PERSON = {
    "kind": "json-schema",
    "schema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "whitespace": "none",
}
SUM = {"kind": "grammar", "grammar": 'start: NUMBER (" + " NUMBER)+ " = " NUMBER\nNUMBER: /[0-9]{1,3}/\n'}

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "write": [
        {
            "title": "Follow the prompt more closely",
            "prompt": "The dragon flew over Paris, France,",
            "guidance": [{"method": "cfg", "scale": 1.5}],
            "options": {"max_new_tokens": 32},
        },
        {
            "title": "A pirate, away from the usual assistant",
            "prompt": [
                {"role": "system", "content": "You are a pirate. Talk like one."},
                {"role": "user", "content": "Tell me about the weather today."},
            ],
            "guidance": [{"method": "cfg", "scale": 1.5, "negative_system": "You are a helpful assistant."}],
            "options": {"max_new_tokens": 40, "repetition_penalty": 1.1},
        },
        {
            "title": "A cheerful text, guided by a classifier",
            "prompt": "The film that we saw last night was",
            "guidance": [
                {"method": "caif", "classifier": "sentiment", "target": "positive", "weight": 4.0, "top_k": 50}
            ],
            "options": {"max_new_tokens": 32, "temperature": 0.8, "seed": 1},
        },
        {
            "title": "Against a smaller model",
            "prompt": "The best way to learn a language is",
            "guidance": [{"method": "contrastive"}],
            "options": {"max_new_tokens": 32},
        },
        {
            "title": "Late layers against early ones",
            "prompt": "The capital of Australia is",
            "guidance": [{"method": "dola"}],
            "options": {"max_new_tokens": 24},
        },
    ],
    "together": [
        {
            "title": "A date, constrained by a regular expression",
            "prompt": "The first man walked on the moon on (in ISO format) ",
            "guidance": [{"method": "awrs", "constraint": DATE, "particles": 5}],
            "options": {"max_new_tokens": 14, "seed": 1},
        },
        {
            "title": "A person, constrained by a JSON schema",
            "prompt": "A person from a novel, as JSON: ",
            "guidance": [{"method": "awrs", "constraint": PERSON, "particles": 4}],
            "options": {"max_new_tokens": 32, "seed": 1},
        },
        {
            "title": "A sum, constrained by a grammar",
            "prompt": "Two numbers and their sum: ",
            "guidance": [{"method": "awrs", "constraint": SUM, "particles": 4}],
            "options": {"max_new_tokens": 16, "seed": 1},
        },
        {
            "title": "Samples of the guided product",
            "prompt": "The dragon flew over Paris, France,",
            "guidance": [{"method": "cfg", "scale": 1.5}, {"method": "feynman-kac", "particles": 6}],
            "options": {"max_new_tokens": 20, "seed": 1},
        },
        {
            "title": "Forks where the model is uncertain",
            "prompt": "Once upon a time",
            "guidance": [{"method": "eager", "entropy_threshold": 2.5, "max_branches": 6}],
            "options": {"max_new_tokens": 20, "temperature": 0.7, "seed": 1},
        },
    ],
    "diffuse": [
        {
            "title": "A sudoku under A-CFG",
            "model": "sudoku4",
            "prompt": ABOUT["sudoku4"]["prompt"],
            "guidance": [{"method": "acfg", "scale": 2.0, "remask_ratio": 0.5}],
            "options": {"max_new_tokens": 16, "steps": 16},
        },
        {
            "title": "A 9×9 sudoku, the most certain cells first",
            "model": "sudoku9",
            "prompt": ABOUT["sudoku9"]["prompt"],
            "guidance": [],
            "options": {"threshold": 0.95},
        },
        {
            "title": "A molecule",
            "model": "molecules",
            "prompt": "",
            "guidance": [],
            "options": {"max_new_tokens": 24, "steps": 24, "temperature": 0.7, "seed": 1},
        },
    ],
    "caption": [
        {
            "title": "A more specific caption",
            "scene": "a-diamond-and-a-triangle",
            "guidance": [{"method": "cfg", "scale": 2.0}],
            "options": {"max_new_tokens": 24},
        }
    ],
}
