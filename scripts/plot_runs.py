#!/usr/bin/env python3
"""Draws the loss curves of training runs, as an SVG.

    python3 scripts/plot_runs.py --out docs/formats.svg NAME=RUN/metrics.jsonl [NAME=...]

The first run is the reference: the upper panel shows every run's loss (mean of the last 20 steps), the
lower one how far each lies from the reference. Standard library only.
"""

import argparse
import json
from pathlib import Path

WIDTH, HEIGHT, LEFT, GAP = 860, 560, 70, 40
PANELS = ((30, 300), (300 + GAP + 30, 500))  # top, bottom
COLORS = ("#222222", "#d1495b", "#2e86ab", "#3b8b5a", "#e09f3e", "#7b4b94", "#888888")
WINDOW = 20


def read(path):
    """(steps, smoothed losses) of a metrics.jsonl."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    rows = [r for r in rows if "loss" in r]
    losses = [r["loss"] for r in rows]
    smooth = [sum(losses[max(0, i + 1 - WINDOW):i + 1]) / min(i + 1, WINDOW)
              for i in range(len(losses))]
    return [r["step"] for r in rows], smooth


def panel(out, curves, bounds, title):
    """One panel: axes with five ticks each, then a line a curve."""
    top, bottom = bounds
    right = WIDTH - 20
    x_max = max(steps[-1] for _, steps, _ in curves)
    low = min(min(values) for _, _, values in curves)
    high = max(max(values) for _, _, values in curves)
    span = (high - low) or 1
    x = lambda step: LEFT + (right - LEFT) * step / x_max
    y = lambda value: bottom - (bottom - top) * (value - low) / span
    out.append(f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>')
    for i in range(5):
        value, step = low + span * i / 4, x_max * i / 4
        out.append(f'<line x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                   f'stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
        out.append(f'<text x="{x(step):.1f}" y="{bottom + 16}" text-anchor="middle">{step:.0f}</text>')
    for (_, steps, values), color in zip(curves, COLORS):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.4"/>')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    curves = [(name, *read(path)) for name, path in (run.split("=", 1) for run in args.runs)]
    reference = dict(zip(curves[0][1], curves[0][2]))
    apart = [(name, steps, [v - reference.get(s, v) for s, v in zip(steps, values)])
             for name, steps, values in curves]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    panel(out, curves, PANELS[0], f"training loss, mean of {WINDOW} steps")
    panel(out, apart, PANELS[1], f"less that of {curves[0][0]}")
    for i, ((name, _, _), color) in enumerate(zip(curves, COLORS)):
        at = LEFT + i * (WIDTH - LEFT) / len(curves)
        out.append(f'<rect x="{at:.0f}" y="{HEIGHT - 22}" width="14" height="4" fill="{color}"/>')
        out.append(f'<text x="{at + 18:.0f}" y="{HEIGHT - 16}">{name}</text>')
    out.append("</svg>")
    args.out.write_text("\n".join(out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
