"""Uncommitted rows of a session: paths through them."""

from __future__ import annotations

import pytest
import torch

from andes_sdk.errors import SessionError
from andes_sdk.runtime.tree import Tree


def test_rows_that_are_no_path_are_refused_with_the_predecessors_of_all_rows() -> None:
    tree = Tree()
    tree.add(3, [-1, 0, 0], start=5, device=torch.device("cpu"))
    for path in ([], [0], [0, 1], [0, 2]):
        tree.check_path(path)
    for wrong in ([1], [1, 2], [0, 1, 2], [3], [-1]):
        with pytest.raises(SessionError, match="no path") as caught:
            tree.check_path(wrong)
        assert caught.value.why == "predecessors of the uncommitted rows: [-1, 0, 0]"
