"""Random arithmetic problems with one free number, after the numerical experiment of Cheng et al., "Trace is the Next AutoDiff" (2024).

A problem is a chain of 2 to 4 operations + - *. Each joins the result so far with a fresh constant (70 %), the free number x or an earlier result (30 %),
in either order. x starts at an integer of [-10, 10]; the target is the value at another one, so that it can be reached exactly. Drawn again: chains on
which x has no influence (start and target are equal) or whose values exceed 10,000 somewhere on [-10, 10].

    error of x = |f(x) - target|
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, List, Tuple

__all__ = ["Operation", "Problem", "problem", "LOW", "HIGH"]

LOW, HIGH = -10, 10                  # of x at the start and at the target, and of random search
_LARGEST = 10_000.0
NAMES = {"+": "add", "-": "subtract", "*": "multiply"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """symbol: + - *.  left, right: ("x", 0), ("constant", index) or ("result", index of an earlier operation)."""

    symbol: str
    left: Tuple[str, int]
    right: Tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Problem:
    """constants, operations: in the order of their making; the last operation is the output.  start: of x.  solution: an x that reaches the target."""

    constants: Tuple[float, ...]
    operations: Tuple[Operation, ...]
    start: float
    solution: float

    def results(self, x: float) -> List[float]:
        """The value of every operation; inf where it is beyond float."""
        return [value for value, _ in self._forward(x)]

    def value(self, x: float) -> float:
        return self.results(x)[-1]

    def slope(self, x: float) -> float:
        """The derivative of the output, by forward differentiation."""
        return self._forward(x)[-1][1]

    @property
    def target(self) -> float:
        return self.value(self.solution)

    def error(self, x: float) -> float:
        return abs(self.value(x) - self.target)

    def _forward(self, x: float) -> List[Tuple[float, float]]:
        out: List[Tuple[float, float]] = []

        def at(place: Tuple[str, int]) -> Tuple[float, float]:
            kind, index = place
            return (x, 1.0) if kind == "x" else (self.constants[index], 0.0) if kind == "constant" else out[index]
        for operation in self.operations:
            (a, da), (b, db) = at(operation.left), at(operation.right)
            out.append({"+": (a + b, da + db), "-": (a - b, da - db), "*": (a * b, da * b + a * db)}[operation.symbol])
        return out


def problem(number: int) -> Problem:
    """Problem 0, 1, ...: the same everywhere."""
    rng = random.Random(f"arithmetic-{number}")
    while True:
        drawn = _draw(rng)
        inside = all(abs(value) <= _LARGEST for x in range(LOW, HIGH + 1) for value in drawn.results(float(x)))
        if inside and drawn.error(drawn.start) > 0:
            return drawn


def _draw(rng: Any) -> Problem:
    constants: List[float] = []
    operations: List[Operation] = []
    for number in range(rng.randint(2, 4)):
        so_far = ("x", 0) if number == 0 else ("result", number - 1)
        if rng.random() < 0.7:
            constants.append(float(rng.choice([c for c in range(-9, 10) if c != 0])))
            other: Tuple[str, int] = ("constant", len(constants) - 1)
        else:
            other = rng.choice([("x", 0), *(("result", i) for i in range(number))])
        pair = [so_far, other]
        rng.shuffle(pair)
        operations.append(Operation(rng.choice("+-*"), pair[0], pair[1]))
    start, solution = rng.sample(range(LOW, HIGH + 1), 2)
    return Problem(tuple(constants), tuple(operations), float(start), float(solution))
