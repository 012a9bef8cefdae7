"""Filters for the data of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, gt, in_, le

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import DataFilter

MODALITIES = ("text", "image", "multi-image")


@frozen(eq=False, kw_only=True)
class Curation:
    """Filters modality, duplicates, boxes, leak, clusters, score for `andes curate`.

    Shortest use: Pipeline.from_plugins([..., {"curation": {"quota": 500}}]).
    """

    contract = "1.1"

    modalities: list[str] = field(
        factory=lambda: list(MODALITIES),
        validator=deep_iterable(in_(MODALITIES)),
        metadata={"help": "modality: those to keep, of text, image, multi-image"},
    )
    distance: int = field(
        default=4,
        validator=[ge(0), le(64)],
        metadata={"help": "duplicates, leak: bits of 64 in which the hashes of equal pictures may differ"},
    )
    benchmarks: list[str] = field(
        factory=list, metadata={"help": "leak: data files that must not be trained on", "local": True}
    )
    ngram: int = field(default=8, validator=ge(1), metadata={"help": "leak: words that count as a passage"})
    overlap: float = field(
        default=0.5,
        validator=[gt(0.0), le(1.0)],
        metadata={"help": "leak: share of a question's passages that is a leak"},
    )
    clusters: int = field(default=0, validator=ge(0), metadata={"help": "clusters: how many; 0: by silhouette"})
    quota: int = field(default=1000, validator=ge(1), metadata={"help": "clusters: samples kept of each"})
    embeddings: str = field(
        default="", metadata={"help": "clusters: model of the server for embeddings; empty: TF-IDF, computed here"}
    )
    judge: str = field(default="", metadata={"help": "score: model of the server; empty: rules, computed here"})
    server: str = field(default="", metadata={"help": "OpenAI-compatible address, such as http://127.0.0.1:8000/v1"})
    key: str = field(default="OPENAI_API_KEY", metadata={"help": "environment variable with the server's key"})
    folders: list[str] = field(
        factory=list,
        metadata={"help": "score: further folders whose pictures a judge may see, beside the data's", "local": True},
    )
    remote: bool = field(default=False, metadata={"help": "score: fetch pictures from addresses for the judge"})
    least: float = field(default=3.0, validator=[ge(1.0), le(5.0)], metadata={"help": "score: lowest kept, of 1 to 5"})
    seed: int = field(default=0, metadata={"help": "clusters: of k-means and of the choice within a cluster"})

    @hookimpl
    def andes_data_filters(self) -> Sequence[DataFilter]:
        """The filters by name."""
        from .clusters import Clusters
        from .content import Boxes, Duplicates, Modality
        from .leak import Leak
        from .score import Score
        from .server import Server

        server = Server(self.server, self.key)
        return [
            Modality(tuple(self.modalities)),
            Duplicates(self.distance),
            Boxes(),
            Leak(tuple(self.benchmarks), self.ngram, self.overlap, self.distance),
            Clusters(self.clusters, self.quota, self.seed, self.embeddings, server),
            Score(self.least, self.judge, server, tuple(self.folders), self.remote),
        ]
