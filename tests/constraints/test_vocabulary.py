"""The bytes of every token: what they say in sequence is what was encoded."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tiny_folder import make_tokenizer
from textguide.constraints import Vocabulary
from textguide.constraints.tokenizer_bytes import byte_alphabet

CORPUS = [
    "The dragon flew over Paris, and the people stopped.",
    "naïve café",
    "a 😀 b",
    "x = {'a': 1}\n\tend",
    "漢字",
] * 3
TEXTS = [
    "Hello, world!", " leading", "trailing ", "two  spaces", "a\nb\n\n\tc", "naïve café", "e\u0301", "😀👍🏽", "漢字",
    "\u200d\ufeff", "\x00\x7f\x85", "{'a': [1, -2.5e3]}", "don't do not .", "",
]  # fmt: skip
SPECIAL = ["<s>", "</s>", "<unk>"]


def wrap(inner: Tokenizer) -> Any:
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    inner.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return wrap(inner)


def llama_like(prefix: bool) -> Any:
    """SentencePiece BPE with bytes as its fallback, as Llama 2 and Gemma spell it."""
    names = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdeflorThnwvP,.",
        "▁T",
        "he",
        "▁The",
        "▁▁",
    ]
    inner = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [("▁", "T"), ("h", "e"), ("▁T", "he"), ("▁", "▁")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", "▁")
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return wrap(inner)


def metaspace() -> Any:
    """SentencePiece unigram as T5 spells it."""
    pieces = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁The", -3.0), ("▁a", -3.0)]
    pieces += [(character, -5.0) for character in "abcdefghijklmnopqrstuvwxyzTPH,.!'{}[]:012=-é😀\n\t"]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return wrap(inner)


def word_piece() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "the", "dragon", "##ing", ".", ",", "!", "'"]
    inner = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return wrap(inner)


def words() -> Any:
    names = [*SPECIAL, "the", "dragon", "flew"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(inner)


def joined(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.tokens[token] for token in ids)


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize(
    ("tokenizer", "drops"),
    [(byte_level(), False), (llama_like(False), False), (llama_like(True), True)],
    ids=["byte-level", "sentencepiece", "sentencepiece with a prefix"],
)
def test_lossless_tokenizers_give_the_text_back(tokenizer: Any, drops: bool) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.drops_leading_space is drops
    assert vocabulary.ends == {1}

    def check(text: str) -> None:
        written = joined(vocabulary, encode(tokenizer, text))
        assert written == (b" " if drops and text else b"") + text.encode()
        assert vocabulary.visible(written) == text.encode()

    for text in TEXTS:
        check(text)
    settings(max_examples=100, deadline=None, derandomize=True)(
        given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))(check)
    )()


@pytest.mark.parametrize("make", [metaspace, word_piece, words, make_tokenizer])
def test_others_give_what_decode_shows(make: Any) -> None:
    tokenizer = make()
    vocabulary = Vocabulary.of(tokenizer)
    for text in ["The dragon flew", "the dragon, flying !", "don't", " a  b ", ""]:
        ids = encode(tokenizer, text)
        assert vocabulary.visible(joined(vocabulary, ids)).decode() == tokenizer.decode(ids, skip_special_tokens=True)


def test_emoji_split_over_tokens() -> None:
    tokenizer = byte_level()
    ids = encode(tokenizer, "👍")
    assert len(ids) > 1
    assert joined(Vocabulary.of(tokenizer), ids) == "👍".encode()


def test_special_tokens_have_no_bytes_and_added_text_has() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>"]})
    vocabulary = Vocabulary.of(tokenizer, size=len(tokenizer) + 5)
    for name in [*SPECIAL, "<mark>"]:
        assert vocabulary.tokens[tokenizer.convert_tokens_to_ids(name)] == b""
    assert vocabulary.tokens[tokenizer.convert_tokens_to_ids("<tool>")] == b"<tool>"
    assert vocabulary.size == len(tokenizer) + 5
    assert vocabulary.tokens[-5:] == (b"",) * 5


def test_ends() -> None:
    tokenizer = byte_level()
    assert Vocabulary.of(tokenizer, ends=[2, 1]).ends == {1, 2}
    assert Vocabulary.of(tokenizer, ends=[]).ends == set()
    letter = tokenizer.convert_tokens_to_ids("a")
    assert Vocabulary.of(tokenizer, ends=letter).tokens[letter] == b""
    assert Vocabulary.of(tokenizer, size=1).ends == set()  # the model cannot write it


def test_made_once_and_again_when_tokens_are_added() -> None:
    tokenizer = byte_level()
    first = Vocabulary.of(tokenizer)
    assert Vocabulary.of(tokenizer) is first
    assert Vocabulary.of(tokenizer, ends=0) is not first
    tokenizer.add_tokens(["new"])
    assert Vocabulary.of(tokenizer).tokens[-1] == b"new"


def test_ids_with_gaps() -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 5}, unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    assert Vocabulary.of(wrap(inner)).tokens == (b"", b"", b"", b"", b"", b"a")


def test_equal_vocabularies_are_interchangeable() -> None:
    one, two = Vocabulary.of(byte_level()), Vocabulary.of(byte_level())
    assert one is not two
    assert one == two
    assert hash(one) == hash(two)
    assert one != Vocabulary(one.tokens, frozenset())


def test_the_alphabet_is_gpt2s() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["!"], alphabet["ÿ"], alphabet["Ń"]) == (32, 10, 33, 255, 173)


def test_what_cannot_be_understood_is_named() -> None:
    inner = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    inner.decoder = decoders.BPEDecoder("</w>")
    with pytest.raises(ValueError, match=r"(?s)tokenizer=\w+ .*BPEDecoder.* is not supported; pass a Vocabulary"):
        Vocabulary.of(tf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="a"))


def test_a_misread_tokenizer_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from textguide.constraints import tokenizer_bytes

    monkeypatch.setattr(tokenizer_bytes, "_byte_level", lambda name: name.encode())
    with pytest.raises(ValueError, match="but it decodes them to"):
        Vocabulary.of(byte_level())


class Characters(tf.PythonBackend):
    """A tokenizer in plain Python: nothing says how its tokens become text, but decoding them."""

    def __init__(self, letters: str, **options: Any) -> None:
        self.letters = letters
        super().__init__(eos_token="</s>", unk_token="<unk>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return {**{letter: i for i, letter in enumerate(self.letters)}, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.find(token) if token in self.letters else self.unk_token_id

    def _convert_id_to_token(self, index: int) -> str:
        return self.letters[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def test_tokenizers_in_python_are_read_by_decoding() -> None:
    tokenizer = Characters("abc é😀")
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.tokens[:6] == (b"a", b"b", b"c", b" ", "é".encode(), "😀".encode())
    assert vocabulary.tokens[tokenizer.eos_token_id] == b""
    with pytest.raises(ValueError, match=r"tokenizer=Characters .*token 1 is part of a character"):
        Vocabulary.of(Characters("a\ufffd"))


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_wrong_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="size="):
        Vocabulary.of(byte_level(), size=size)


def test_an_end_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="ends contains the id 7"):
        Vocabulary((b"a",), frozenset([7]))


@pytest.mark.real_model
def test_the_bundled_tokenizer() -> None:
    import textguide

    model, tokenizer = textguide.load("smollm2")
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size)
    assert vocabulary.size == 49152
    assert {vocabulary.tokens[token] for token in range(17)} == {b""}
    assert all(vocabulary.tokens[17:])
    for text in TEXTS:
        assert joined(vocabulary, encode(tokenizer, text)) == text.encode()
