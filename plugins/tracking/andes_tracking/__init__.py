"""Training metrics in TensorBoard or trackio."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import in_, matches_re

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk import Plan
    from andes_sdk.types import Event

NAME = r"[^\W_][\w.-]{0,99}"
"""What becomes the name of a file: no path, nothing hidden."""


@frozen(eq=False, kw_only=True)
class Tracking:
    """Watch training in a browser. Shortest use: Pipeline.from_plugins([..., "tracking"])."""

    contract = "1.1"

    backend: str = field(
        default="tensorboard",
        validator=in_(("tensorboard", "trackio")),
        metadata={"help": "'tensorboard' or 'trackio'; the package of that name must be installed"},
    )
    folder: str = field(
        default="runs/tracking", metadata={"help": "where TensorBoard's files go; not used by trackio", "local": True}
    )
    project: str = field(
        default="andes", validator=matches_re(NAME), metadata={"help": "trackio's project; not used by TensorBoard"}
    )
    name: str = field(
        default="run",
        validator=matches_re(NAME),
        metadata={"help": "trackio's name of the run; not used by TensorBoard"},
    )
    _open: dict[str, Any] = field(factory=dict, init=False, repr=False)

    @hookimpl
    def andes_check(self, plan: Plan) -> Sequence[str]:
        """Say so before training if the backend is not installed."""
        if find_spec(self.backend) is None:
            return [
                f"tracking needs {self.backend}, which is not installed: pip install 'andes-tracking[{self.backend}]'"
            ]
        return []

    @hookimpl
    def andes_event(self, event: Event) -> None:
        """Open at the first stage's start, write each step, flush at a stage's end."""
        if event.kind == "stage-start":
            from .boards import open_board

            self._open["stage"] = str(event.values.get("label", event.values["stage"]))
            if "board" not in self._open:
                self._open["board"] = open_board(self.backend, self.folder, self.project, self.name)
            self._open["board"].begin(self._open["stage"], event.step or 0)
        elif event.kind == "step" and "board" in self._open:
            numbers = {k: float(v) for k, v in event.values.items() if isinstance(v, int | float)}
            self._open["board"].write(self._open["stage"], event.step or 0, numbers)
        elif event.kind == "stage-end" and "board" in self._open:
            self._open["board"].end()
