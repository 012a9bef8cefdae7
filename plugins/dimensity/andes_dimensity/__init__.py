"""Models for MediaTek Dimensity 9500 (MT6993): exported for LiteRT-LM, with an integer reference to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from andes_sdk import hookimpl

from .options import Options

if TYPE_CHECKING:
    from andes_sdk.plan import Plan
    from andes_sdk.types import Exporter

__all__ = ["Dimensity"]


@frozen(eq=False, kw_only=True)
class Dimensity(Options):
    """The exporter "dimensity". Shortest use: `Pipeline.from_plugins([..., "qwen3", "dimensity"])`."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"rows": 64, "prompt": 8}
    companions: ClassVar[Sequence[object]] = ({"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}})

    @hookimpl
    def andes_exporters(self) -> Sequence[Exporter]:
        """One exporter, "dimensity": .litertlm or .tflite, by the name of the file."""
        from .export import DimensityExporter

        return [DimensityExporter(self)]

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Every choice of the lowering, and whether LiteRT is here."""
        from .environment import folder, is_ready

        graphs = f"prompt of {self.prompt} rows, 1 row" + (f", tree of {self.tree} rows" if self.tree else "")
        return {
            "matrices": f"{self.weights}, head and embedding {self.head}, pictures {self.vision}, each by channel",
            "graphs": graphs,
            "cache": f"{self.rows} rows, {'written in the graph' if self.layout == 'cpu' else 'input and output'}",
            "LiteRT": str(folder()) if is_ready() else "missing: andes deploy setup dimensity",
        }
