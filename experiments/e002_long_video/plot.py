# SPDX-License-Identifier: Apache-2.0
"""A small panel for each method with lines over seconds, as an SVG picture, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49")
WIDTH, HEIGHT, GAP, TOP, LEFT, ACROSS = 190, 90, 26, 34, 40, 4
SMOOTH = 5  # seconds that a point is the mean of: a single one is one reading of a few objects


def panels(parts: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A panel a method with a line a part, ``{part: {method: shares in [0, 1], second by second}}``; NaN leaves a gap."""
    names = list(dict.fromkeys(name for lines in parts.values() for name in lines))
    rows = -(-len(names) // ACROSS)
    wide, high = LEFT + ACROSS * (WIDTH + GAP), TOP + rows * (HEIGHT + TOP) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" font-family="sans-serif" font-size="11">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for n, part in enumerate(parts):
        x = LEFT + 260 * n
        out.append(
            f'<line x1="{x}" x2="{x + 20}" y1="14" y2="14" stroke="{COLOURS[n]}" stroke-width="2"/>'
            f'<text x="{x + 26}" y="18">{escape(part)}, mean of {SMOOTH} s</text>'
        )
    for i, name in enumerate(names):
        place = LEFT + (i % ACROSS) * (WIDTH + GAP), TOP + 16 + (i // ACROSS) * (HEIGHT + TOP)
        out += _panel(name, [lines.get(name, []) for lines in parts.values()], *place)
    return "\n".join([*out, "</svg>", ""])


def _panel(name: str, lines: Sequence[Sequence[float]], left: float, top: float) -> list[str]:
    longest = max(map(len, lines))
    x = lambda second: left + WIDTH * (second + 0.5) / longest
    y = lambda share: top + HEIGHT * (1 - share)
    out = [f'<text x="{left}" y="{top - 5}" font-weight="bold">{escape(name)}</text>']
    for share in (0, 0.5, 1):
        out.append(
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
        )
        if left == LEFT:
            out.append(
                f'<text x="{left - 4}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
            )
    for second in range(0, longest, max(1, longest // 3)):
        out.append(
            f'<text x="{x(second):.1f}" y="{top + HEIGHT + 12}" text-anchor="middle" fill="#777">{second} s</text>'
        )
    for colour, values in zip(COLOURS, lines, strict=False):
        for piece in _pieces(_smooth(values)):
            points = " ".join(f"{x(second):.1f},{y(share):.1f}" for second, share in piece)
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return out


def _smooth(values: Sequence[float]) -> list[float]:
    """Each second's mean with its neighbours; one that was not read stays so."""
    half, out = SMOOTH // 2, []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        out.append(value if math.isnan(value) else sum(near) / len(near))
    return out


def _pieces(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Stretches without NaN."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for second, share in enumerate(values):
        if math.isnan(share):
            pieces.append([])
        else:
            pieces[-1].append((second, share))
    return [piece for piece in pieces if piece]
