"""Objects that are built when they are first needed."""

import copy
import pickle
from functools import partial

import pytest
from andes_qwen3.lazy import Lazy


def test_it_is_built_once_and_again_after_a_failure():
    calls = []

    def build():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not yet")
        return [1, 2]

    lazy = Lazy(build)
    assert not lazy.built
    with pytest.raises(ValueError, match="not yet"):
        lazy.get()
    assert not lazy.built
    assert lazy.get() is lazy.get()
    assert lazy.built
    assert len(calls) == 2


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda lazy: pickle.loads(pickle.dumps(lazy))])
def test_a_copy_builds_its_own(copied):
    lazy = Lazy(partial(list, (1, 2)))
    lazy.get()
    other = copied(lazy)
    assert not other.built
    assert other.get() == lazy.get()
    assert other.get() is not lazy.get()


def test_what_is_built_may_need_another_object():
    inner = Lazy(partial(list, (1, 2)))
    assert Lazy(lambda: [*inner.get(), 3]).get() == [1, 2, 3]
