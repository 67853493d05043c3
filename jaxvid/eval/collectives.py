# SPDX-License-Identifier: Apache-2.0
"""What devices send each other in a compiled program, read off its text.

A loop's body counts as often as it runs, where the compiler knows how often that is.
"""

from __future__ import annotations

import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OP = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) (?:({'|'.join(KINDS)})(?:-start)?|while|conditional|call|fusion|\S+)\("
)
_SHAPE = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Messages of one kind: how many a device takes part in, and the bytes of their results on it."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.count + other.count, self.bytes + other.bytes)

    def __rmul__(self, times: int) -> Traffic:
        return Traffic(times * self.count, times * self.bytes)


def collectives(text: str) -> dict[str, Traffic]:
    """Traffic by kind in the text of a compiled program (``compiled.as_text()``); kinds that do not occur are absent."""
    bodies, entry = _computations(text)
    known: dict[str, dict[str, Traffic]] = {}

    def walk(name: str) -> dict[str, Traffic]:
        if name not in known:
            known[name] = {}  # a computation never calls itself; this only guards against malformed text
            total: dict[str, Traffic] = {}
            for line in bodies.get(name, ()):
                found = _OP.match(line)
                if found and found[2]:
                    total[found[2]] = total.get(found[2], Traffic()) + Traffic(1, _bytes(found[1]))
                trips = _TRIPS.search(line)
                times = int(trips[1]) if trips else 1
                inside = _CALLED.findall(line) if "=" in line else []
                for branches in _BRANCHES.findall(line):
                    inside += [b.strip().lstrip("%") for b in branches.split(",")]
                for callee in inside:
                    for kind, traffic in walk(callee).items():
                        total[kind] = total.get(kind, Traffic()) + times * traffic
            known[name] = total
        return known[name]

    return walk(entry) if entry else {}


def _computations(text: str) -> tuple[dict[str, list[str]], str | None]:
    """Lines of every computation by name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry = current = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and "=" not in line.split("(", 1)[0]:
            current = head[2]
            bodies[current] = []
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            bodies[current].append(line)
    return bodies, entry


def _bytes(shape: str) -> int:
    """Of an array, or of the largest array of a tuple (an operand and its result count once)."""
    sizes = []
    for kind, dims in _SHAPE.findall(shape):
        bits = _BITS.get(kind) or (8 if kind.startswith("f8") else int(re.sub(r"\D", "", kind)))
        sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    return max(sizes, default=0)
