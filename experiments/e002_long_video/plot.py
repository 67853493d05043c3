# SPDX-License-Identifier: Apache-2.0
"""Lines over seconds as an SVG picture, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#00798c", "#8d5a3b", "#777777")
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 560, 200, 46, 28, 150


def panels(parts: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """One panel under the other, each {name: a share in [0, 1] for each second}; NaN leaves a gap. The picture's text."""
    step = HEIGHT + TOP + 34
    total = WIDTH + LEFT + LEGEND
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{step * len(parts) + 8}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{total}" height="{step * len(parts) + 8}" fill="white"/>',
    ]
    for i, (title, lines) in enumerate(parts.items()):
        out += _panel(title, lines, step * i + TOP)
    return "\n".join([*out, "</svg>", ""])


def _panel(title: str, lines: Mapping[str, Sequence[float]], top: float) -> list[str]:
    longest = max(map(len, lines.values()))
    x = lambda second: LEFT + WIDTH * (second + 0.5) / longest
    y = lambda share: top + HEIGHT * (1 - share)
    out = [f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>'
        )
    for second in range(0, longest, max(1, longest // 6)):
        out.append(
            f'<text x="{x(second):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{second} s</text>'
        )
    for n, (name, values) in enumerate(lines.items()):
        colour, dash = COLOURS[n % len(COLOURS)], ' stroke-dasharray="5 3"' if n >= len(COLOURS) else ""
        for piece in _pieces(values):
            points = " ".join(f"{x(second):.1f},{y(share):.1f}" for second, share in piece)
            out.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
            )
        at = top + 12 * n + 6
        out.append(
            f'<line x1="{LEFT + WIDTH + 10}" x2="{LEFT + WIDTH + 30}" y1="{at}" y2="{at}" stroke="{colour}"'
            f' stroke-width="2"{dash}/><text x="{LEFT + WIDTH + 36}" y="{at + 4}">{escape(name)}</text>'
        )
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
