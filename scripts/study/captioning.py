"""The trade between reference metrics and retrieval on the bundled captioner of drawn scenes (arXiv 2307.16686)::

    python scripts/train/scenes.py --split test --count 500 --output scenes
    python scripts/study/captioning.py --data scenes --coco $TEXTGUIDE_DATA/captions/coco_karpathy_test.json

CFG over γ, and language-model guidance with SmolLM2 behind real captions of COCO and, beside it, behind captions of
drawn scenes. For the language model the captioner is given SmolLM2's tokenizer: its words are tokens of SmolLM2 anyway,
so its embeddings and its output layer are spread over the larger vocabulary, and every other token is ruled out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

import textguide
from textguide import CFG, LMGuidance, captioning
from textguide.captioning import VocabularyMap
from textguide.eval import CaptioningOptions, run_captioning
from textguide.eval.captions import data

SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
ALPHAS = {"coco": (1.0, 2.0, 5.0, 8.0), "drawn": (2.0, 5.0)}
SHOWN = 20


class Biased(torch.nn.Module):
    """The output layer of the small vocabulary, with its logits put at their places in the large one."""

    def __init__(self, head: Any, places: torch.Tensor, size: int) -> None:
        super().__init__()
        self.head, self.places, self.size = head, places, size

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        small = self.head(states)
        full = small.new_full((*small.shape[:-1], self.size), -1e4)
        return full.index_copy(-1, self.places, small)


def with_tokenizer(model: Any, processor: Any, tokenizer: Any, size: int) -> tuple[Any, Any]:
    """The captioner over another tokenizer that has all of its tokens; it writes the same captions."""
    import transformers

    own = processor.tokenizer
    tokens = VocabularyMap.between(own, len(own), tokenizer, size, least=1.0)
    places = tokens.index.clone()
    places[own.eos_token_id], places[own.bos_token_id] = tokenizer.eos_token_id, tokenizer.bos_token_id
    places[own.pad_token_id] = tokenizer.unk_token_id
    decoder = model.decoder
    old = decoder.get_input_embeddings()
    new = torch.nn.Embedding(size, old.embedding_dim)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[places] = old.weight
    head = decoder.get_output_embeddings()
    decoder.set_input_embeddings(new)
    decoder.lm_head = Biased(head, places, size)
    for config in (decoder.config, model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.unk_token_id
    decoder.config.vocab_size = size
    model.config.decoder_start_token_id = tokenizer.bos_token_id
    model.generation_config.decoder_start_token_id = tokenizer.bos_token_id
    return model, transformers.TrOCRProcessor(image_processor=processor.image_processor, tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="drawn scenes of the test split")
    parser.add_argument("--coco", type=Path, required=True, help="Karpathy's test split of COCO, for the prompt")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, default=Path("docs/results/captioning"))
    arguments = parser.parse_args()

    language_model, tokenizer = textguide.load("smollm2")
    model, processor = captioning.load("drawn-scenes")
    pictures = data.read(arguments.data)
    before = textguide.caption(model, processor, [p.path for p in pictures[:32]], CFG(2.0)).texts
    size = language_model.config.vocab_size
    model, processor = with_tokenizer(model, processor, tokenizer, size)
    after = textguide.caption(model, processor, [p.path for p in pictures[:32]], CFG(2.0)).texts
    if before != after:
        raise SystemExit("the captioner says something else with the other tokenizer")

    coco = [row["captions"][0].strip() for row in json.loads(arguments.coco.read_text())[:SHOWN]]
    drawn = _drawn_captions()
    settings: list[Any] = [CFG(scale) for scale in SCALES]
    for name, captions in (("coco", coco), ("drawn", drawn)):
        prompt = "".join(f"{caption}\n" for caption in captions)
        settings += [LMGuidance(alpha=alpha, prompt=prompt) for alpha in ALPHAS[name]]
    run_captioning(
        arguments.data,
        settings,
        model,
        processor,
        judge=captioning.load("drawn-scenes-dual"),
        language_model=(language_model, tokenizer),
        output=arguments.output,
        options=CaptioningOptions(batch_size=100, limit=arguments.limit),
        names={"model": "drawn-scenes", "judge": "drawn-scenes-dual", "language_model": "smollm2"},
        command=f"python scripts/study/captioning.py {_command()}",
    )


def _drawn_captions() -> list[str]:
    """Captions as people write them of scenes of the training split."""
    sys.path.append(str(Path(__file__).parents[1] / "train"))
    import scenes

    rows = zip(scenes.scenes("train", 0), range(SHOWN), strict=False)
    return [scenes.caption(scene, chance) for (scene, chance), _ in rows]


def _command() -> str:
    """The arguments without the folders of this machine."""
    return shlex.join(Path(word).name if "/" in word else word for word in sys.argv[1:])


if __name__ == "__main__":
    main()
