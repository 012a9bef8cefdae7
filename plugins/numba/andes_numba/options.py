"""Options of the plugin, apart from it: what computes reads them without the plugin's hooks."""

from __future__ import annotations

import os

from attrs import field, frozen
from attrs.validators import ge, in_

from .affinity import is_affinity

COMPILING = "ANDES_NUMBA_COMPILING"
FORMATS = ("w4_g32", "w4_g128", "w8", "f16", "ternary_g128", "nm14_w4", "nm28_w4", "nm14_w2", "ternary34_g128")


@frozen(eq=False, kw_only=True)
class Options:
    """Formats, kernels, threads and precisions."""

    format: str = field(
        default="w4_g32",
        validator=in_(FORMATS),
        metadata={"help": f"of matrices that are not packed yet: {', '.join(FORMATS)}"},
    )
    head: str = field(
        default="", validator=in_(("", *FORMATS)), metadata={"help": "format of the LM head; empty: as the others"}
    )
    kernels: str = field(
        default="auto",
        validator=in_(("auto", "avx512vnni", "avx2", "portable")),
        metadata={"help": "kernel set: auto (the best this processor has), avx512vnni, avx2 or portable"},
    )
    threads: int = field(
        default=0, validator=ge(0), metadata={"help": "threads; 0: one per CPU in `affinity`, or all Numba may start"}
    )
    affinity: str = field(
        default="", validator=is_affinity, metadata={"help": "CPUs, one for each thread, such as 0,2,4-7; empty: any"}
    )
    activations: str = field(
        default="int8",
        validator=in_(("int8", "exact")),
        metadata={"help": "activations in products: int8 with a scale per group of columns, or exact float32"},
    )
    kv: str = field(
        default="f16", validator=in_(("f32", "f16", "int8")), metadata={"help": "keys and values: f32, f16 or int8"}
    )
    compiling: str = field(
        factory=lambda: os.environ.get(COMPILING, "beside"),
        validator=in_(("beside", "first")),
        metadata={
            "help": "machine code that is missing: beside compiles the most in another process, and answers meanwhile; "
            f"first lets answers wait for all of it. The variable {COMPILING} sets the default"
        },
    )
    vision: str = field(
        default="auto",
        validator=in_(("auto", "w8", "bf16", "f32", "torch")),
        metadata={
            "help": "encoder and projector: w8 (int8), bf16, f32, torch; auto is f32 with exact activations, otherwise "
            "bf16, or w8 on processors that cannot multiply bf16"
        },
    )
