"""Cross-encoders: scores of pairs of texts, and documents ranked for a query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamagpu.engine.arguments import items, whole_in
from llamagpu.engine.encoder_model import EncoderModel
from llamagpu.errors import UnsupportedModelError, UsageError, shown
from llamagpu.gpu import widen_bf16
from llamagpu.gpu.thread import wait
from llamagpu.kernels.activations import ACTIVATIONS
from llamagpu.model.fingerprint import encoder_fingerprint
from llamagpu.model.fit import CLASSIFIERS

Floats = npt.NDArray[np.float32]
Activation = Literal["auto", "sigmoid", "softmax", "identity"]
# The layers from the first token's vector to the labels: names of their tensors, and what follows each layer.
_HEADS: dict[str, tuple[tuple[str, str], ...]] = {
    "bert": (("bert.pooler.dense", "tanh"), ("classifier", "")),
    "roberta": (("classifier.dense", "tanh"), ("classifier.out_proj", "")),
    "distilbert": (("pre_classifier", "relu"), ("classifier", "")),
}
_HEADS |= dict.fromkeys(("xlm-roberta", "camembert", "data2vec-text", "mpnet"), _HEADS["roberta"])
_HEADS["electra"] = (("classifier.dense", "gelu"), ("classifier.out_proj", ""))
_HEADS["ernie"] = (("ernie.pooler.dense", "tanh"), ("classifier", ""))
_FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: np.asarray(ACTIVATIONS["gelu"](x.astype(np.float64))[0], np.float32),
    "": lambda x: x,
    "identity": lambda x: x,
    "sigmoid": lambda x: np.asarray(1 / (1 + np.exp(-x.astype(np.float64))), np.float32),
}


class CrossEncoder(EncoderModel):
    """Scores of pairs of texts by a model for sequence classification (``BertForSequenceClassification`` and its like).

    with CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2") as encoder:
        print(encoder.rank("How many people live in Berlin?", ["Berlin has 3.5 million people.", "A cat."]))
    """

    def __init__(self, model: str | Path, *, max_length: int | None = None, **options: Any):
        super().__init__(model, max_length=max_length, ignored=CLASSIFIERS, **options)
        try:
            self._layers = [(self._dense(name), after) for name, after in _HEADS[self.config.model_type]]
        except BaseException:
            self.close()
            raise
        self.num_labels = len(self._layers[-1][0][1])

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files, the same on every machine. It ignores dtypes."""
        return encoder_fingerprint(self.source)

    def predict(
        self, sentences: Sequence[Any], batch_size: int = 32, *, activation: Activation = "auto"
    ) -> npt.NDArray[np.float32]:
        """Scores of pairs: of a list of pairs, float32 [pairs], or [pairs, labels] if there are several labels; of a
        single pair, its score or scores.

        Args:
            batch_size: pairs that are tokenized and queued together; the device makes its own packs.
            activation: ``auto`` is the model's own; without one, sigmoid for one label and identity for several.

        Raises:
            UsageError: an item is not a pair of texts.
        """
        whole_in("batch_size", batch_size, 1)
        given = items(sentences, "a list of pairs")
        single = len(given) == 2 and all(isinstance(text, str) for text in given)
        pairs = [_pair(p, i) for i, p in enumerate([given] if single else given)]
        queued = [self.texts.submit(pairs[i : i + batch_size], ("cls",)) for i in range(0, len(pairs), batch_size)]
        first = [wait(batch.vectors) for batch in queued]
        scores = self._score(np.concatenate(first)) if first else np.empty((0, self.num_labels), np.float32)
        scores = self._activated(scores, activation)
        scores = scores[:, 0] if self.num_labels == 1 else scores
        return np.asarray(scores[0] if single else scores)

    def rank(
        self, query: str, documents: Iterable[str], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """Documents by their score for a query, the best first: dictionaries with ``corpus_id`` (the place in
        ``documents``), ``score``, and ``text`` on request. Equal scores keep the documents' order.

        Raises:
            UsageError: the model has several labels, or an item is not text.
        """
        if self.num_labels != 1:
            raise UsageError(f"{self.name} has {self.num_labels} labels.", "Ranking needs one.", "Use predict.")
        texts = items(documents, "a list of documents")
        scores = self.predict([(query, text) for text in texts])
        order = np.argsort(-scores, kind="stable")[: None if top_k is None else whole_in("top_k", top_k, 1)]
        more = [{"text": texts[i]} if return_documents else {} for i in order]
        return [{"corpus_id": int(i), "score": float(scores[i])} | m for i, m in zip(order, more, strict=True)]

    def _score(self, x: Floats) -> Floats:
        """Scores [n, labels] from the first tokens' vectors, one by one: bits of a product of matrices depend on n."""
        out = []
        for v in x:
            for (weight, bias), after in self._layers:
                v = _FUNCTIONS[after](weight @ v + bias)
            out.append(v)
        return np.stack(out)

    def _activated(self, scores: Floats, activation: str) -> Floats:
        if activation not in ("auto", "sigmoid", "softmax", "identity"):
            raise UsageError(f"activation is {shown(activation)}.", "It is auto, sigmoid, softmax or identity.")
        if activation == "auto":
            activation = self._own_activation() or ("sigmoid" if self.num_labels == 1 else "identity")
        if activation == "softmax":
            wide = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
            return np.asarray(wide / wide.sum(axis=1, keepdims=True), np.float32)
        return _FUNCTIONS[activation](scores)

    def _own_activation(self) -> str | None:
        """The activation that sentence-transformers wrote into config.json."""
        raw = self.source.config()
        block = raw.get("sentence_transformers")
        named = (
            block.get("activation_fn") if isinstance(block, dict) else raw.get("sbert_ce_default_activation_function")
        )
        name = str(named).rpartition(".")[2].lower() if named else None
        if name is not None and name not in ("sigmoid", "identity"):
            raise UnsupportedModelError(f"The activation {shown(named)} of config.json is not supported.")
        return name

    def _dense(self, name: str) -> tuple[Floats, Floats]:
        """Weight [out, in] and bias [out] of a layer of the head."""
        stored = self.source.tensors()
        found = []
        for suffix in ("weight", "bias"):
            full = f"{name}.{suffix}"
            if full not in stored or not isinstance(stored[full].format, str):
                raise UnsupportedModelError(
                    f"The checkpoint has no float tensor {full}.",
                    "A model for sequence classification has one.",
                    "Use Embedder for encoders without a classifier.",
                )
            values = self.source.rows(full, np.arange(stored[full].shape[0]))
            assert not isinstance(values, tuple)
            wide = widen_bf16(values) if stored[full].format == "bf16" else values
            found.append(np.ascontiguousarray(wide, np.float32))
        return found[0], found[1]


def _pair(given: Any, place: int) -> tuple[str, str]:
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__") or len(given) != 2:
        raise UsageError(f"Item {place} is {shown(given)}, not a pair of texts.")
    first, second = given
    if not isinstance(first, str) or not isinstance(second, str):
        raise UsageError(f"Item {place} is {shown(given)}, not a pair of texts.")
    return first, second
