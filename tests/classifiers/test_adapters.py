"""scikit-learn, embeddings, compression, the language model as judge."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from textguide.classifiers import (
    EmbeddingClassifier,
    Encoder,
    EstimatorClassifier,
    Examples,
    GzipClassifier,
    HeadClassifier,
    ZeroShotClassifier,
    load_encoder,
    resolve,
    train_embedding,
)
from textguide.classifiers.causal_head import Head
from textguide.support.errors import ModelUnavailableError

from ..architectures import Tokenizer, build
from . import models, oracle

TEXTS = ["a good film", "bad", "", "not very good ."]


@pytest.mark.parametrize("head", ["proba", "binary", "many"])
def test_estimators(head: str) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    classes = ["neg", "pos", "neg", "pos", "mid", "mid"] if head != "binary" else ["neg", "pos"] * 3
    model = LogisticRegression() if head == "proba" else LinearSVC()
    pipeline = make_pipeline(text.CountVectorizer(), model).fit(
        ["bad", "good", "bad film", "very good", "so", "so so"], classes
    )
    classifier = EstimatorClassifier(pipeline, name="mine")
    assert classifier.labels == tuple(sorted(set(classes)))
    got = classifier.log_prob(TEXTS)
    if head == "proba":
        expected = torch.tensor(pipeline.predict_proba(TEXTS)).log()
    elif head == "many":
        expected = torch.tensor(pipeline.decision_function(TEXTS)).log_softmax(1)
    else:
        z = torch.tensor(pipeline.decision_function(TEXTS))
        expected = torch.stack([-z, z], 1).sigmoid().log()
    torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=0)
    assert got.argmax(1)[1] == classifier.index("neg")
    assert classifier.log_prob([]).shape == (0, len(classifier.labels))
    assert classifier.to_dict()["labels"] == list(classifier.labels)


def test_estimators_that_say_zero_stay_finite() -> None:
    class Sure:
        classes_ = (0, 1)

        def predict_proba(self, texts: list[str]) -> Any:
            return [[0.0, 1.0]] * len(texts)

    assert EstimatorClassifier(Sure()).log_prob(["x"])[0, 0] == pytest.approx(-27.63, abs=0.01)
    with pytest.raises(ValueError, match="fit it first"):
        EstimatorClassifier(object())
    with pytest.raises(ValueError, match="do not fit the 2 classes"):
        EstimatorClassifier(Sure(), ("a", "b", "c"))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    models.bert_tokenizer(folder).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.BertModel(models.bert_config()).save_pretrained(folder)
    return folder


def test_embeddings(encoder_folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(encoder_folder))
    got = encoder(TEXTS)
    for text, vector in zip(TEXTS, got, strict=True):
        ids = torch.tensor([[2, *encoder.tokenizer(text, add_special_tokens=False).input_ids, 3]])
        with torch.no_grad():
            mean = encoder.model(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=0)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    examples = Examples(("good", "bad", "very good", "not bad film"), ("pos", "neg", "pos", "neg"))
    classifier = train_embedding(examples, encoder, strength=10.0)
    assert classifier.log_prob(examples.texts).argmax(1).tolist() == [1, 0, 1, 0]
    classifier.save(tmp_path / "saved")
    loaded = resolve(f"embedding:{tmp_path / 'saved'}")
    torch.testing.assert_close(loaded.log_prob(TEXTS), classifier.log_prob(TEXTS))
    torch.testing.assert_close(resolve(str(tmp_path / "saved")).log_prob(TEXTS), loaded.log_prob(TEXTS))


def test_descriptions_tell_heads_apart(encoder_folder: Path) -> None:
    encoder = load_encoder(str(encoder_folder))
    one, same, other = (
        EmbeddingClassifier(encoder, torch.full((16, 1), x), torch.zeros(1), ("a", "b")) for x in (1, 1, 2)
    )
    assert one.to_dict() == same.to_dict() != other.to_dict()
    model, tokenizer = build("llama"), Tokenizer()
    heads = [Head(torch.full((32, 1), x), torch.zeros(1)) for x in (1.0, 1.0, 2.0)]
    first, again, third = (HeadClassifier(model, tokenizer, head, ("a", "b"), model_name="tiny") for head in heads)
    assert first.to_dict() == again.to_dict() != third.to_dict()


def test_wrong_embeddings(encoder_folder: Path, tmp_path: Path) -> None:
    encoder: Encoder = load_encoder(str(encoder_folder))
    with pytest.raises(ValueError, match="embeddings of width 16"):
        EmbeddingClassifier(encoder, torch.zeros(17, 1), torch.zeros(1), ("a", "b"))
    with pytest.raises(ModelUnavailableError, match="not a model folder"):
        load_encoder(str(tmp_path))


def test_gzip_is_its_definition() -> None:
    examples = ["good great fine good", "bad awful poor bad", "great film, a great film", "poor film, a poor film"]
    classes = ["pos", "neg", "pos", "neg"]
    classifier = GzipClassifier(examples, classes, k=3)
    assert classifier.labels == ("neg", "pos")

    def size(text: str) -> int:
        return len(zlib.compress(text.encode(), 9))

    for text in [*TEXTS, "great great film"]:
        ranked = []
        for example, label in zip(examples, classes, strict=True):
            x, y, xy = size(text), size(example), size(text + " " + example)
            ranked.append(((xy - min(x, y)) / max(x, y), label))
        ranked = sorted(ranked, key=lambda pair: pair[0])[:3]
        votes = {"neg": 0.5, "pos": 0.5}
        for distance, label in ranked:
            votes[label] += 2.718281828459045 ** ((ranked[0][0] - distance) / 0.1)
        expected = torch.tensor([votes["neg"], votes["pos"]])
        torch.testing.assert_close(classifier.log_prob([text])[0].exp(), expected / expected.sum(), atol=1e-4, rtol=0)
    assert classifier.log_prob(["a great film, a great film"]).argmax() == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"k": 0}, "k=0"), ({"k": 3}, "k=3"), ({"smoothing": 0}, "smoothing=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"labels": ("a", "c")}, "differ in b, c"),
    ],
)  # fmt: skip
def test_wrong_gzip(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        GzipClassifier(["x", "y"], ["a", "b"], **{"k": 1, **options})


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("words", [("p", "n"), ("pos", "n")])
def test_zero_shot_is_its_definition(name: str, words: tuple[str, str]) -> None:
    model, tokenizer = build(name), Tokenizer()
    judge = ZeroShotClassifier(model, tokenizer, ("pos", "neg"), words=words, template="is: {text} it:", batch_size=3)
    texts = ["the cat", "the", "", "the cat sat"]
    expected = []
    for text in texts:
        scores = []
        for word in words:
            prompt, answer = tokenizer(f"is: {text} it:").input_ids, tokenizer(word).input_ids
            with torch.no_grad():
                distribution = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
            parts = [distribution[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
            scores.append(sum(parts) / (len(parts) if len("".join(words)) > 2 else 1))
        expected.append(torch.stack(scores).log_softmax(0))
    torch.testing.assert_close(judge.log_prob(texts), torch.stack(expected), atol=1e-4, rtol=0)
    rows = [[" sat", "", " ran"], ["x"]]
    got = judge.continuations(["the cat", "y"], rows)
    for mine, theirs in zip(got, oracle.continuations(judge, ["the cat", "y"], rows), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_wrong_zero_shot() -> None:
    model, tokenizer = build("llama"), Tokenizer()
    with pytest.raises(ValueError, match=r"must contain \{text\} once"):
        ZeroShotClassifier(model, tokenizer, ("a", "b"), template="no text")
    with pytest.raises(ValueError, match="different tokens"):
        ZeroShotClassifier(model, tokenizer, ("a", "b"), words=("x", "x"))
    with pytest.raises(ValueError, match="not a decoder-only"):
        ZeroShotClassifier(build("t5"), tokenizer, ("a", "b"))
    with pytest.raises(ValueError, match="needs a language model"):
        resolve("zero-shot:a,b")
    assert resolve("zero-shot:a,b", model, tokenizer).labels == ("a", "b")
