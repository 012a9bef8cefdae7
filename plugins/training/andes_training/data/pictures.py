"""The pictures of a sample: found where its messages say, loaded once, changed at random as its recipe allows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from andes_sdk.errors import InputError
from andes_training.data.bad import BadSample

if TYPE_CHECKING:
    from andes_training.data.samples import Sample
    from andes_training.recipe import DataRecipe

Augmentation = Callable[[Image.Image], Image.Image]


def augmentation(source: DataRecipe, rng: random.Random) -> Augmentation:
    """The random changes that a file's recipe allows, the same for every picture of one sample."""
    mirror = source.flip and rng.random() < 0.5
    angle = rng.uniform(-source.rotate, source.rotate)
    dx, dy = (rng.uniform(-source.shift, source.shift) for _ in range(2))

    def augment(image: Image.Image) -> Image.Image:
        if source.rotate or source.shift:
            move = (dx * image.width, dy * image.height)
            image = image.rotate(angle, Image.Resampling.BILINEAR, translate=move)  # type: ignore[arg-type]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image

    return augment


class Pictures:
    """Replaces what messages say about pictures by the pictures.

    A part names a picture by URL or path (relative to the data file), by the name it has in the sample's `images`, or,
    as `{"type": "image"}` alone, by its turn in `images`. Each is loaded once however many conversations show it.
    """

    def __init__(self, sample: Sample, load: Callable[[Any], Any], augment: Augmentation = lambda image: image) -> None:
        """`load` turns a source (path, URL or bytes) into what takes its place in the messages, a picture as a rule.

        Raises:
            BadSample: `images` is no list of pictures.
        """
        self._sample, self._load, self._augment = sample, load, augment
        images = sample.entry.get("images")
        if not isinstance(images, list | None):
            raise self._bad("`images` is no list", f"it is a {type(images).__name__}", "write a list of pictures")
        self._given = [self._source(image) for image in images or ()]
        self._names = {name: i for i, (name, _) in enumerate(self._given) if name}
        self._loaded: dict[Any, Any] = {}

    def fill(self, messages: Sequence[Any]) -> list[Any]:
        """One conversation with its pictures in place.

        Raises:
            BadSample: a picture cannot be loaded, or the conversation shows more or fewer than `images` holds.
        """
        turns, used = iter(range(len(self._given))), set[int]()
        filled = [self._message(message, turns, used) for message in messages]
        if len(used) < len(self._given):
            raise self._bad(
                f"its messages show {len(used)} of {len(self._given)} pictures in `images`",
                "every conversation of a sample must show all of them",
                'add {"type": "image"} where a picture belongs, or leave it out',
            )
        return filled

    def _message(self, message: Any, turns: Any, used: set[int]) -> Any:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
            return message
        return {**message, "content": [self._part(part, turns, used) for part in message["content"]]}

    def _part(self, part: Any, turns: Any, used: set[int]) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("image", "image_url"):
            return part
        reference = part.get(kind)
        self._known(part, ("type", kind))
        if isinstance(reference, Mapping) and "url" in reference:
            self._known(reference, ("url", "detail"))
            if reference.get("detail") not in (None, "auto"):
                return part  # refused with its place by the rules for messages
            reference = reference["url"]
        index = self._names.get(reference) if isinstance(reference, str) else None
        if reference is None:
            index = next(turns, None)
            if index is None:
                raise self._bad(
                    "its messages show more pictures than it has",
                    f"`images` holds {len(self._given)}",
                    "add the picture to `images`, or name its path",
                )
        if index is None:
            key = reference if isinstance(reference, str) else id(reference)
            return {"type": "image", "image": self._picture(key, self._source(reference)[1])}
        used.add(index)
        return {"type": "image", "image": self._picture(("images", index), self._given[index][1])}

    def _known(self, value: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        """Refuse keys of a picture's part that nothing reads."""
        others = [key for key, entry in value.items() if key not in keys and entry is not None]
        if others:
            why, fix = f"keys with a meaning: {', '.join(keys)}", 'write {"type": "image", "image": "path.png"}'
            raise BadSample(
                f"nothing reads {others[0]!r} of a picture", reason="message", who=self._sample.where, why=why, fix=fix
            )

    def _picture(self, key: Any, source: Any) -> Any:
        """What `load` makes of a source; loaded once for each key."""
        if key not in self._loaded:
            try:
                picture = self._load(source)
            except InputError as error:
                raise self._bad("a picture cannot be used", str(error), error.fix) from error
            self._loaded[key] = self._augment(picture) if isinstance(picture, Image.Image) else picture
        return self._loaded[key]

    def _source(self, value: Any) -> tuple[str, Any]:
        """Name and source of a picture as data holds it."""
        name, source = value if isinstance(value, str) else "", value
        if isinstance(value, Mapping):
            name = str(value.get("path") or "")
            source = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(source, str) and not source.lower().startswith(("data:", "http:", "https:", "file:")):
            source = self._sample.folder / source
        if source is None:
            raise self._bad("a picture of `images` is empty", "neither bytes nor a path", "write one of them")
        return name, source

    def _bad(self, what: str, why: str, fix: str) -> BadSample:
        return BadSample(what, reason="picture", who=self._sample.where, why=why, fix=fix)
