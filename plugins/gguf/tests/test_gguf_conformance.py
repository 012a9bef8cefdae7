"""The published conformance kit on both plugins."""

import filecmp

from andes_gguf import Gguf
from andes_gguf.small import write_small

from andes_sdk.testing import conformance

TINY = Gguf.testing["path"]

test_conformance = conformance("gguf")
test_conformance_export = conformance("gguf-export")


def test_the_shipped_tiny_file_is_the_one_that_write_small_makes(tmp_path):
    assert filecmp.cmp(write_small(tmp_path / "tiny.gguf"), TINY, shallow=False)
