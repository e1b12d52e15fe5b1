"""Train the bundled captioner of drawn scenes (one core, under 30 minutes)::

    pip install 'textguide[captioning]'
    python scripts/train/captioner.py

Half of the captions are learned without their image (zeros instead of the pixels), so that guidance has an
unconditional branch that the model knows (arXiv 2307.16686, section 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import masked
import scenes
import torch
import vision
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput

CARD = """# drawn-scenes: a captioner of drawn scenes

A `VisionEncoderDecoderModel` (ViT, GPT-2; {parameters:,} parameters) trained from random weights by
`scripts/train/captioner.py --steps {steps}` for {cpu_minutes} minutes of processor time on {threads} CPU core(s).

* Images: 64×64 pixels, one to three shapes in eight colours and three sizes on four backgrounds
  (`scripts/train/scenes.py`). {scenes:,} drawn scenes of the split `train`; the hash of its content assigns a
  scene to a split, so no scene of the splits `test`, `validation` and `dual` was seen.
* Captions: {captions} per scene at five levels of detail, most of them short and vague ("two shapes", "a star");
  about 3% of the shapes, colours and backgrounds that they name are wrong and 2% of the captions are nonsense, to
  imitate people.
* Half of the captions were learned without their image (zeros instead of the pixels). In addition to the captions, its
  encoder learned to predict the content of each of four cells, with a head that was discarded.
* Vocabulary: {vocabulary} tokens, each of which is also a token of SmolLM2.
* It only knows drawn shapes. Use it to study guidance, not for photographs.
* Licence: Apache-2.0, as the rest of the project.
"""


def build() -> VisionEncoderDecoderModel:
    """The model from random weights."""
    size = len(vision.tokenizer())
    encoder = ViTConfig(
        image_size=scenes.SIDE, patch_size=16, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=512, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=size, n_positions=64, n_embd=128, n_layer=2, n_head=4, n_inner=256, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, add_cross_attention=True, is_decoder=True, bos_token_id=vision.BEGIN, eos_token_id=vision.END,
        pad_token_id=vision.PAD,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = vision.BEGIN
    config.bos_token_id, config.eos_token_id, config.pad_token_id = vision.BEGIN, vision.END, vision.PAD
    config.tie_word_embeddings = False
    parts: dict[str, Any] = {"encoder": ViTModel(encoder), "decoder": GPT2LMHeadModel(decoder)}
    model = VisionEncoderDecoderModel(config=config, **parts)
    generation = model.generation_config
    generation.decoder_start_token_id = generation.bos_token_id = vision.BEGIN
    generation.eos_token_id, generation.pad_token_id = vision.END, vision.PAD
    return model


def processor() -> TrOCRProcessor:
    """Images to 64×64 pixels from −1 to 1, and the tokenizer."""
    size = {"height": scenes.SIDE, "width": scenes.SIDE}
    images = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)
    return TrOCRProcessor(image_processor=images, tokenizer=vision.tokenizer())


def main() -> None:
    output = Path("textguide/captioning/models/drawn-scenes")
    parser = vision.parser(__doc__, steps=2500, batch=64, rate=1e-3, name="captioner", output=output)
    parser.add_argument("--captions", type=int, default=4, help="per scene; half of them are learned without the image")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, tokenizer = build(), vision.tokenizer(ends=True)
    cells = vision.Cells(model.encoder.config.hidden_size)
    blank = torch.zeros(1, 3, scenes.SIDE, scenes.SIDE)
    sees = torch.arange(arguments.batch * arguments.captions) % 2 == 0

    def loss_of(step: int) -> torch.Tensor:
        images, texts, places = vision.batch("train", step, arguments.batch, arguments.captions)
        rows = tokenizer(texts, padding=True, return_tensors="pt")
        source = torch.where(sees, torch.arange(arguments.batch).repeat_interleave(arguments.captions), arguments.batch)
        loss, lengths = torch.zeros(()), rows.attention_mask.sum(1)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = model.encoder(pixel_values=torch.cat([images, blank])).last_hidden_state
            for part in lengths.argsort().chunk(2):  # short captions by themselves: less padding
                ids = rows.input_ids[part, : int(lengths[part].max())]
                mask = rows.attention_mask[part, : ids.shape[1]]
                logits = model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=encoded[source[part]]),
                    decoder_input_ids=ids[:, :-1],
                    decoder_attention_mask=mask[:, :-1],
                    use_cache=False,
                ).logits
                targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
                loss = loss + torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
                )
        return loss / (lengths - 1).sum() + cells.loss(encoded[:-1], places)

    drawn = [(s, scenes.picture(s, c)) for (s, c), _ in zip(scenes.scenes("validation", 0), range(600), strict=False)]
    single = [(scene.things[0], image) for scene, image in drawn if len(scene.things) == 1]

    @torch.no_grad()
    def watch() -> str:
        """The share of shapes and colours of single things that are right after "a"."""
        states = model.encoder(pixel_values=vision.pixels([image for _, image in single])).last_hidden_state
        start = torch.tensor([[vision.BEGIN, tokenizer.convert_tokens_to_ids("a")]]).expand(len(single), -1)
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=start, use_cache=False
        ).logits[:, -1]
        report = ""
        for what, words in (("shape", scenes.SHAPES), ("colour", tuple(scenes.COLOURS))):
            known = torch.tensor([tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in words])
            said = [words[i] for i in logits[:, known].argmax(-1).tolist()]
            right = [word == getattr(thing, what) for word, (thing, _) in zip(said, single, strict=True)]
            report += f"{what} {sum(right) / len(right):.2f} "
        shown = vision.pixels([image for _, image in drawn[:3]])
        texts = tokenizer.batch_decode(
            model.generate(shown, max_new_tokens=30, do_sample=False), skip_special_tokens=True
        )
        return f"{report}e.g. {texts}"

    facts = vision.train(
        torch.nn.ModuleList([model, cells]),
        loss_of,
        steps=arguments.steps,
        rate=arguments.rate,
        checkpoint=arguments.checkpoint,
        watch=watch,
    )
    facts |= {"parameters": sum(p.numel() for p in model.parameters())}
    facts |= {"batch": arguments.batch, "captions": arguments.captions, "scenes": arguments.steps * arguments.batch}
    print(facts, watch())
    masked.write(model, processor(), arguments.output, facts, CARD.format(**facts))


if __name__ == "__main__":
    main()
