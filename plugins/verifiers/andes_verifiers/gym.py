"""The verifiers of reasoning-gym (arXiv 2505.24760).

A sample holds `"reasoning_gym": {"dataset": name, "entry": {question, answer, metadata}, "config": {…}}`.
Some of the library's verifiers hand the answer to Python's `eval` or to sympy's parser, which is `eval` too. A model's
answer is not to be trusted, so for those it must first be a plain literal, or plain arithmetic; other text scores 0.0.
"""

from __future__ import annotations

import ast
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

from .answers import final_answer

LITERAL = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
"""Data sets whose verifier evaluates answers as Python."""
ARITHMETIC = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
"""Data sets whose verifier evaluates answers through sympy."""
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "sec",
        "csc",
        "cot",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "exp",
        "log",
        "ln",
        "sqrt",
        "Abs",
    ]
)
_PLAIN = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub, ast.UAdd)


@frozen
class ReasoningGym:
    """The score, from 0.0 to 1.0, that the data set's own verifier gives to the final answer."""

    name: str = "reasoning_gym"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """An answer on which the verifier breaks, though it accepts the entry's own, scores 0.0.

        Raises:
            InputError: a sample without data set and entry, or an entry that the verifier cannot judge.
        """
        task = sample.get(self.name)
        if not (isinstance(task, Mapping) and isinstance(task.get("entry"), Mapping) and "dataset" in task):
            fix = 'add "reasoning_gym": {"dataset": "…", "entry": {…}} to the sample'
            raise InputError("the sample has no task of reasoning-gym", who=self.name, fix=fix)
        entry, name = dict(task["entry"]), str(task["dataset"])
        data = dataset(name, json.dumps(task.get("config", {}), sort_keys=True))
        said = final_answer(answer)
        if not harmless(name, said):
            return 0.0
        try:
            return _finite(data.score_answer(said, entry))
        except Exception:
            self._blame_the_entry(data, name, entry)
            return 0.0

    def _blame_the_entry(self, data: Any, name: str, entry: dict[str, Any]) -> None:
        try:
            _finite(data.score_answer(entry["answer"], entry))
        except Exception as error:
            raise InputError(
                f"the entry does not fit {name!r}", who=self.name, why=repr(error), fix="make it with reasoning-gym"
            ) from error


def _finite(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number


@functools.lru_cache(maxsize=256)
def dataset(name: str, config: str = "{}") -> Any:
    """A data set of reasoning-gym by name and JSON configuration, made once.

    Raises:
        InputError: no such data set, or a configuration that does not fit.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        from andes_sdk.config import suggestion

        raise InputError(f"reasoning-gym has no data set {name!r}", who="reasoning_gym", fix=suggestion(name, DATASETS))
    if name == "composite":
        # it would hand the answer on to a verifier that we have not looked at
        fix = 'write the one its entry names in metadata["source_dataset"]'
        raise InputError("a composite is judged by the data set of each entry", who="reasoning_gym", fix=fix)
    try:
        return reasoning_gym.create_dataset(name, **json.loads(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"the configuration does not fit {name!r}", who="reasoning_gym", why=str(error)) from error


def harmless(name: str, answer: str) -> bool:
    """Whether an answer may be given to a data set's verifier: always, but for those that evaluate it."""
    if name not in LITERAL | ARITHMETIC:
        return True
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except SyntaxError:
        # Python's eval refuses the same text; sympy rewrites text before it evaluates it, so it must not see this one
        return name in LITERAL
    except (ValueError, RecursionError, MemoryError):
        return False
    allowed = _literal if name in LITERAL else _arithmetic
    return all(allowed(node) for node in ast.walk(tree))


def _literal(node: ast.AST) -> bool:
    return isinstance(node, (*_PLAIN, ast.List, ast.Tuple, ast.Set, ast.Dict))


def _arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        return known and not node.keywords and len(node.args) == 1
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        small = isinstance(node.right, ast.Constant) and isinstance(node.right.value, int) and node.right.value < 100
        towers = any(isinstance(n, ast.Pow) for n in ast.walk(node.left))
        return small and not towers
    return isinstance(node, (*_PLAIN, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow))
