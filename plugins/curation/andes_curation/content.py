"""What a sample holds: its modality, whether it occurred before, whether its boxes lie in their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from andes_training.data.bad import BadSample
from andes_training.data.boxes import find_boxes
from attrs import frozen

from andes_curation.references import answers, messages, pictures, text_of, texts
from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image

from .table import Table, digest, far, perceptual_hashes
from .words import normalised


@frozen
class Modality(Table):
    """Drops samples with a broken picture or without an answer, and modalities that are not wanted."""

    wanted: tuple[str, ...]
    name = "modality"
    version = "modality/1"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Number of pictures, and what is broken."""
        found, broken = pictures(sample), ""
        for source in found:
            try:
                load_image(source)
            except InputError as error:
                broken = error.what if not error.why else f"{error.what}: {error.why}"
        return {"pictures": len(found), "broken": broken, "answered": bool(answers(sample).strip())}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        return [self._reason(row) for row in facts]

    def _reason(self, row: Mapping[str, Any]) -> str | None:
        if row["broken"]:
            return f"a picture is broken: {row['broken']}"
        if not row["answered"]:
            return "has no answer"
        kind = ("text", "image", "multi-image")[min(row["pictures"], 2)]
        return None if kind in self.wanted else f"its modality is {kind}"


@frozen
class Duplicates(Table):
    """Drops samples whose normalised text occurred before with the same pictures, by perceptual hash."""

    distance: int
    name = "duplicates"
    version = "duplicates/2"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Digest of the text, hashes of the pictures."""
        said = "\n".join(f"{m.get('role')} {normalised(text_of(m))}" for m in messages(sample))
        rest = [normalised(str(sample[key])) for key in ("chosen", "rejected") if key in sample]
        return {"text": digest("\n".join([said, *rest])), "hashes": perceptual_hashes(sample)}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`. Only samples of equal text are compared with one another."""
        seen: dict[tuple[str, int], list[list[str]]] = {}
        reasons: list[str | None] = []
        for row in facts:
            before = seen.setdefault((row["text"], len(row["hashes"])), [])
            again = any(all(map(self._same, row["hashes"], other)) for other in before)
            reasons.append("its text and pictures occurred before" if again else None)
            if not again:
                before.append(row["hashes"])
        return reasons

    def _same(self, one: str, other: str) -> bool:
        return far(one, other) <= self.distance


@frozen
class Boxes(Table):
    """Drops samples with a box outside its picture, or one that is written wrongly."""

    name = "boxes"
    version = "boxes/2"

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Number of boxes, and what is wrong with one."""
        try:
            return {"boxes": sum(len(find_boxes(text)) for text in texts(sample)), "wrong": ""}
        except BadSample as error:
            return {"boxes": 0, "wrong": f"{error.what}: {error.why}"}

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """See `andes_sdk.types.TableFilter`."""
        return [row["wrong"] or None for row in facts]
