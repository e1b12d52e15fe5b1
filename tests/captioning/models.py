"""Tiny random captioning models of every family, with processors that belong to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image

SIDE = 32
PAD, BOS, EOS, IMAGE, VISION_START, VISION_END, FAKE, GLOBAL, NEWLINE = range(9)
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<vstart>", "<vend>", "<fake_token_around_image>", "<global-img>", "\n"]
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "red", "blue", "dog", "cat", "is", "on", ".", "User:", "describe", "it"]
VOCAB = len(SPECIAL) + len(WORDS) + 3
_IDS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": 16,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, **_IDS,
}  # fmt: skip


def tokenizer(**extra: Any) -> Any:
    """One token a word."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    numbers = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<pad>"}
    made = tf.PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **names, **extra)
    made.add_special_tokens({"additional_special_tokens": SPECIAL[3:8]})
    return made


def _size() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def _clip_images() -> Any:
    return tf.CLIPImageProcessorPil(size=_size(), crop_size=_size())


def vision_encoder_decoder() -> tuple[Any, Any]:
    decoder = tf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, add_cross_attention=True, is_decoder=True, **_IDS,
        tie_word_embeddings=False,
    )  # fmt: skip
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**_VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = BOS, PAD, EOS
    model = tf.VisionEncoderDecoderModel(config=config)
    model.generation_config.decoder_start_token_id = BOS
    return model, tf.TrOCRProcessor(image_processor=tf.ViTImageProcessorPil(size=_size()), tokenizer=tokenizer())


def git() -> tuple[Any, Any]:
    config = tf.GitConfig(
        vision_config=_VISION, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=False, **_IDS,
    )  # fmt: skip
    return tf.GitForCausalLM(config), tf.GitProcessor(_clip_images(), tokenizer())


def blip() -> tuple[Any, Any]:
    text = {
        **_IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "encoder_hidden_size": 32, "sep_token_id": EOS, "projection_dim": 16,
        "is_decoder": True,
    }  # fmt: skip
    config = tf.BlipConfig(
        text_config=text,
        vision_config={**_VISION, "initializer_range": 0.02},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    return tf.BlipForConditionalGeneration(config), tf.BlipProcessor(
        tf.BlipImageProcessorPil(size=_size()), tokenizer()
    )


def blip_2() -> tuple[Any, Any]:
    queries = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "encoder_hidden_size": 32, "vocab_size": VOCAB,
    }  # fmt: skip
    text = tf.OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, tie_word_embeddings=False, **_IDS,
    )  # fmt: skip
    config = tf.Blip2Config(
        vision_config=_VISION, qformer_config=queries, text_config=text, num_query_tokens=4, image_token_index=IMAGE
    )
    processor = tf.Blip2Processor(tf.BlipImageProcessorPil(size=_size()), tokenizer(), num_query_tokens=4)
    return tf.Blip2ForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**_VISION), text_config=tf.LlamaConfig(**_TEXT), image_token_index=IMAGE,
        vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        _clip_images(), tokenizer(), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>",
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), processor


def _idefics_config(kind: Any) -> Any:
    return kind(
        vision_config=_VISION, text_config=tf.LlamaConfig(**_TEXT), image_token_id=IMAGE, scale_factor=2,
        tie_word_embeddings=False, pad_token_id=PAD,
    )  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    images = tf.Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    words = tokenizer(extra_special_tokens={"image_token": "<image>"})
    return tf.Idefics3ForConditionalGeneration(_idefics_config(tf.Idefics3Config)), tf.Idefics3Processor(
        images, words, image_seq_len=1
    )


def smolvlm() -> tuple[Any, Any]:
    model = tf.SmolVLMForConditionalGeneration(_idefics_config(tf.SmolVLMConfig))
    return model, idefics3()[1]


def qwen2_vl() -> tuple[Any, Any]:
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8,
              "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    config = tf.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END, video_token_id=FAKE, tie_word_embeddings=False,
    )  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config), None


def paligemma() -> tuple[Any, Any]:
    text = tf.GemmaConfig(**{**_TEXT, "vocab_size": 1200}, head_dim=8)  # its processor adds 1152 tokens for places
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(**_VISION), text_config=text, image_token_index=IMAGE, projection_dim=32,
        hidden_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    images = tf.SiglipImageProcessorPil(size=_size())
    images.image_seq_length = 4
    words = tokenizer(extra_special_tokens={"image_token": "<image>"})
    return tf.PaliGemmaForConditionalGeneration(config), tf.PaliGemmaProcessor(images, words)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    f.__name__: f for f in (vision_encoder_decoder, git, blip, blip_2, llava, idefics3, smolvlm, qwen2_vl, paligemma)
}
NAMES = list(BUILDERS)


@cache
def build(name: str) -> tuple[Any, Any]:
    """The tiny model ``name`` in float32 and its processor, with weights large enough that images matter."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, processor = BUILDERS[name]()
        model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
            for number, part in model.named_parameters():
                if "crossattention" in number and part.dim() > 1:  # BLIP normalises its image away
                    part.mul_(3.0)
            head = model.get_output_embeddings() or model.text_decoder.get_output_embeddings()
            head.weight[: len(SPECIAL)] = 0.0  # a re-read text must not hold image tokens that the model wrote
    for part in (model, getattr(model, "text_decoder", None), getattr(model, "language_model", None)):
        if part is not None and getattr(part, "generation_config", None) is not None:
            part.generation_config.eos_token_id = None
            part.generation_config.pad_token_id = PAD
    return model, processor


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def qwen_inputs(rows: tuple[int, ...]) -> dict[str, Any]:
    """What the processor of Qwen2-VL gives (it needs torchvision for videos, so the test makes it by hand): images of
    4×4 patches, prompts of unlike length with padding on the left."""
    made = [torch.randn(16, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(row)) for row in rows]
    endings = [[43, 44], [30, 35, 32, 37, 40], [33]]
    texts = [[VISION_START, IMAGE, IMAGE, IMAGE, IMAGE, VISION_END, *endings[row]] for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return {
        "input_ids": ids, "attention_mask": mask, "pixel_values": torch.cat(made),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * len(rows)), "mm_token_type_ids": (ids == IMAGE).int(),
    }  # fmt: skip


@cache
def language_model() -> Any:
    """A text-only model over the same tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    return model
