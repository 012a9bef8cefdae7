"""Tasks, found by clustering what is asked: no task may take more than its quota of the data.

Embeddings are TF-IDF over words and pairs of words, reduced by truncated SVD (LSA), or a server's. k-means; where the
number of clusters is not given, the one of a few that has the best silhouette on a sample.
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from andes_curation.references import pictures, questions
from andes_sdk.errors import TrainingError

from .server import Server
from .table import Table

WIDTH, SILHOUETTE, EXACT = 64, 2000, 20_000
"""Components of an embedding; samples on which the number of clusters is chosen; above the last, k-means on batches."""


@frozen
class Clusters(Table):
    """Keeps at most `quota` samples of each cluster, chosen by a hash of their content and the seed."""

    count: int
    quota: int
    seed: int
    embeddings: str
    server: Server
    name = "clusters"

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a server does the work."""
        return bool(self.embeddings)

    @property
    def version(self) -> str:
        """The server's model, if there is one; neither quota nor number of clusters is a fact of a sample."""
        return f"clusters/1 {self.embeddings}"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is asked, and its embedding where a server makes it."""
        text = f"{'picture ' * min(len(pictures(sample)), 3)}{questions(sample)}"
        if not self.embeddings:
            return {"text": text}
        reply = self.server.ask("embeddings", {"model": self.embeddings, "input": text or " "})
        try:
            vector = [float(x) for x in reply["data"][0]["embedding"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TrainingError("the server's reply is no embedding", who=self.embeddings, why=repr(error)) from None
        return {"text": text, "vector": vector}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        if len(facts) <= self.quota:
            return [None] * len(facts)
        labels = self.labels(facts)
        ranks = [hashlib.sha256(f"{self.seed} {i} {row['text']}".encode()).digest() for i, row in enumerate(facts)]
        reasons: list[str | None] = [None] * len(facts)
        for label in sorted(set(labels)):
            mine = sorted((i for i, one in enumerate(labels) if one == label), key=lambda i: ranks[i])
            for i in mine[self.quota :]:
                reasons[i] = f"cluster {label} has {len(mine)} samples, its quota is {self.quota}"
        return reasons

    def labels(self, facts: Sequence[Mapping[str, Any]]) -> list[int]:
        """A cluster for each sample, numbered by size."""
        vectors = np.array([row["vector"] for row in facts]) if self.embeddings else lsa([row["text"] for row in facts])
        distinct = len(np.unique(vectors.round(6), axis=0))
        if distinct < 2:
            return [0] * len(facts)
        found = _kmeans(vectors, min(self.count, distinct) if self.count else self._best(vectors, distinct), self.seed)
        order = {old: new for new, old in enumerate(np.argsort(-np.bincount(found), kind="stable").tolist())}
        return [order[int(label)] for label in found]

    def _best(self, vectors: np.ndarray, distinct: int) -> int:
        """The number of clusters with the best silhouette on a sample."""
        from sklearn.metrics import silhouette_score

        chosen = np.random.default_rng(self.seed).permutation(len(vectors))[:SILHOUETTE]
        sample = vectors[chosen]
        most = min(distinct, len(np.unique(sample.round(6), axis=0)) - 1)
        tried = {}
        for count in (2, 4, 8, 16, 32, 64):
            if count <= most:
                found = _kmeans(sample, count, self.seed)
                if len(set(found.tolist())) > 1:
                    tried[count] = silhouette_score(sample, found)
        return max(tried, key=lambda count: tried[count]) if tried else 1


def lsa(texts: Sequence[str]) -> np.ndarray:
    """(n,) texts -> (n, up to 64) unit vectors; zeros for a text without words."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2), tokenizer=_words, token_pattern=None, max_features=50_000, sublinear_tf=True
    )
    try:
        matrix = vectoriser.fit_transform(texts)
    except ValueError:  # not one word in all the texts
        return np.zeros((len(texts), 1))
    width = min(WIDTH, matrix.shape[1] - 1, matrix.shape[0] - 1)
    if width < 1:
        return np.asarray(matrix.todense())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # variances of texts that are all alike are 0 / 0
        return normalize(TruncatedSVD(width, random_state=0).fit_transform(matrix))


def _words(text: str) -> list[str]:
    """Runs of letters, marks and numbers: `\\w` of Python's patterns ends a word at each vowel sign."""
    return "".join(c if c == "_" or unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


def _kmeans(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if len(vectors) <= EXACT:
        return KMeans(count, random_state=seed, n_init=10).fit_predict(vectors)
    return MiniBatchKMeans(count, random_state=seed, n_init=10, batch_size=4096).fit_predict(vectors)
