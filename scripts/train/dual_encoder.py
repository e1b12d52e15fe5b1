"""Train the bundled dual encoder of drawn scenes and captions (one core, under 30 minutes)::

    pip install 'textguide[captioning]'
    python scripts/train/dual_encoder.py

It judges captions (CLIPScore, retrieval), so it learns from scenes that the captioner has never seen, and from captions
with more detail than most people give.
"""

from __future__ import annotations

from pathlib import Path

import masked
import scenes
import torch
import vision
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

LEVELS = (0.06, 0.12, 0.22, 0.30, 0.30)
CARD = """# drawn-scenes-dual: a dual encoder of drawn scenes and captions

A `CLIPModel` ({parameters:,} parameters) trained from random weights by
`scripts/train/dual_encoder.py --steps {steps}` for {cpu_minutes} minutes of processor time on {threads} CPU core(s).

* Images: {scenes:,} drawn scenes of the split `dual` (`scripts/train/scenes.py`); no scene of the splits `train`,
  `validation` and `test`.
* Captions: one per scene, at levels of detail drawn with the weights {levels}.
* Objective: contrastive, {batch} pairs per step; its image encoder also learned to predict the content of each of
  four cells, with a head that was discarded. It found {recall} of {gallery} validation scenes at rank 1 by their
  detailed captions (level 4).
* It can only judge captions of drawn shapes.
* Licence: Apache-2.0, as the rest of the project.
"""


def build() -> CLIPModel:
    """The model from random weights."""
    size = len(vision.tokenizer())
    text = {
        "vocab_size": size, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 40, "bos_token_id": vision.BEGIN,
        "eos_token_id": vision.END, "pad_token_id": vision.PAD, "projection_dim": 96,
    }  # fmt: skip
    image = {
        "image_size": scenes.SIDE, "patch_size": 16, "hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": 96,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=96))


def processor() -> CLIPProcessor:
    """Images to 64×64 pixels from −1 to 1, and the tokenizer with begin and end tokens."""
    side = scenes.SIDE
    size = {"height": side, "width": side}
    images = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return CLIPProcessor(image_processor=images, tokenizer=vision.tokenizer(ends=True))


def main() -> None:
    output = Path("textguide/captioning/models/drawn-scenes-dual")
    arguments = vision.parser(__doc__, steps=900, batch=128, rate=1e-3, name="dual", output=output).parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, tokenizer = build(), vision.tokenizer(ends=True)
    cells = vision.Cells(model.config.vision_config.hidden_size)

    def similarities(images: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled cosines, texts by images, and the states of the images' patches."""
        rows = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, pixel_values=images)
        return out.logits_per_text.float(), out.vision_model_output.last_hidden_state

    def loss_of(step: int) -> torch.Tensor:
        images, texts, places = vision.batch("dual", step, arguments.batch, 1, LEVELS)
        logits, states = similarities(images, texts)
        target = torch.arange(len(texts))
        cross = torch.nn.functional.cross_entropy
        return (cross(logits, target) + cross(logits.T, target)) / 2 + cells.loss(states, places)

    shown, detailed, _ = vision.batch("validation", 0, 200, 1, (0, 0, 0, 0, 1))

    @torch.no_grad()
    def recall() -> float:
        found = similarities(shown, detailed)[0].argmax(-1) == torch.arange(len(detailed))
        return round(float(found.float().mean()), 3)

    facts = vision.train(
        torch.nn.ModuleList([model, cells]),
        loss_of,
        steps=arguments.steps,
        rate=arguments.rate,
        checkpoint=arguments.checkpoint,
        watch=lambda: f"R@1 {recall():.3f}",
    )
    facts |= {"parameters": sum(p.numel() for p in model.parameters())}
    facts |= {"batch": arguments.batch, "scenes": arguments.steps * arguments.batch, "levels": list(LEVELS)}
    facts |= {"recall": recall(), "gallery": len(detailed)}
    print(facts)
    masked.write(model, processor(), arguments.output, facts, CARD.format(**facts))


if __name__ == "__main__":
    main()
