"""Models for MediaTek Dimensity 9500 (MT6993): exported for LiteRT-LM, with an integer reference to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from attrs import frozen

from andes_sdk import hookimpl

from .options import Options

if TYPE_CHECKING:
    from andes_sdk.plan import Plan
    from andes_sdk.types import Backend, Exporter

__all__ = ["Dimensity"]


@frozen(eq=False, kw_only=True)
class Dimensity(Options):
    """Backend and exporter for Dimensity. Shortest use: `Pipeline.from_plugins([..., "dimensity"])`."""

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"rows": 1024, "prompt": 128}
    companions: ClassVar[Sequence[object]] = ({"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}})

    @hookimpl
    def andes_backends(self) -> Sequence[Backend]:
        """One backend, "dimensity": the integer reference."""
        from .reference import DimensityBackend

        return [cast("Backend", DimensityBackend(self))]

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
        used = plan.backend == "dimensity"
        return {
            "reference": f"activations {self.activations}" if used else f"inactive: the backend is {plan.backend!r}",
            "matrices": f"{self.weights}, head and embedding {self.head}, pictures {self.vision}, each by channel",
            "graphs": graphs,
            "pictures": self._pictures(),
            "adapters": f"inputs of rank {self.lora}: q, k, v, o" if self.lora else "none in the graphs: lora is 0",
            "cache": f"{self.rows} rows, {'written in the graph' if self.layout == 'cpu' else 'input and output'}",
            "LiteRT": str(folder()) if is_ready() else "missing: andes deploy setup dimensity",
        }

    def _pictures(self) -> str:
        from .buckets import ranges

        if self.tokens:
            return ranges(self.tokens)
        return f"one size, {self.picture or 'the least of the preprocessor'}: LiteRT-LM stretches others to it"
