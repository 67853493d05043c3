# SPDX-License-Identifier: Apache-2.0
"""What devices send each other in a compiled program, read off its text.

A loop's body counts as often as it runs: as the compiler says, or else (it does not for TPUs) as the loop's condition does,
which for `jax.lax.scan` counts from 0. On TPUs a message that travels while something is computed stands in several fused
computations, of which one counts: they share a channel.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OP = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) (?:({'|'.join(KINDS)})(-start)?|(fusion)|while|conditional|call|\S+)\("
)
_SHAPE = re.compile(r"\b(pred|[sufc]\d+|bf16|f8\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


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

    def messages(name: str) -> Iterator[tuple[str, str | None, Traffic]]:
        """(kind, channel, traffic) of a fused computation and those inside it."""
        for line in bodies.get(name, ()):
            found = _OP.match(line)
            if found and found[2]:
                channel = _CHANNEL.search(line)
                yield found[2], channel and channel[1], Traffic(1, _bytes(found[1], found[2], bool(found[3])))
            elif found and found[4]:
                for callee in _CALLED.findall(line):
                    yield from messages(callee)

    def times(line: str) -> int:
        """How often a line's computations run."""
        trips, condition = _TRIPS.search(line), _CONDITION.search(line)
        if trips:
            return int(trips[1])
        limits = _LIMIT.findall("\n".join(bodies.get(condition[1], ()))) if condition else []
        return int(limits[0]) if len(limits) == 1 else 1

    def walk(name: str) -> dict[str, Traffic]:
        if name not in known:
            known[name] = {}  # a computation never calls itself; this only guards against malformed text
            total: dict[str, Traffic] = {}
            travelling = set()
            for line in bodies.get(name, ()):
                found = _OP.match(line)
                if found and found[2]:
                    traffic = Traffic(1, _bytes(found[1], found[2], bool(found[3])))
                    total[found[2]] = total.get(found[2], Traffic()) + traffic
                inside = _CALLED.findall(line) if "=" in line else []
                if found and found[4]:
                    for kind, channel, traffic in (m for callee in inside for m in messages(callee)):
                        if channel is None or (kind, channel) not in travelling:
                            total[kind] = total.get(kind, Traffic()) + traffic
                        travelling.add((kind, channel))
                    continue
                for branches in _BRANCHES.findall(line):
                    inside += [b.strip().lstrip("%") for b in branches.split(",")]
                for callee in inside:
                    for kind, traffic in walk(callee).items():
                        total[kind] = total.get(kind, Traffic()) + times(line) * traffic
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


def _bytes(shape: str, kind: str, start: bool) -> int:
    """Of a message's results: of all the arrays that travel together, without the operands that a start lists first."""
    sizes = []
    for name, dims in _SHAPE.findall(shape):
        bits = _BITS.get(name) or (8 if name.startswith("f8") else int(re.sub(r"\D", "", name)))
        if dims or not start:  # a start has numbers of its own
            sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
    if start and kind in ("all-gather", "collective-permute"):
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes)
