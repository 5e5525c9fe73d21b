#!/usr/bin/env python3
"""Draws the loss curves of training runs as an SVG, and prints their ends as a table.

    python3 scripts/plot_runs.py --out docs/formats.svg NAME=FILE[,FILE...] [NAME=...]

A FILE is a run's metrics.jsonl; several of one name are the same run with other seeds, in the same
order in every name. The first name is the reference. Upper panel: every name's training loss, mean
of the last 20 steps and over seeds, with a band from the lowest seed to the highest. Middle: how
far each lies from the reference, seed by seed, after the first tenth, inside the band of the
reference's own seeds. Lower: the same magnified, each with its band. Standard library only.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

WIDTH, HEIGHT, LEFT, RIGHT = 860, 800, 70, 840
PANELS = ((30, 290), (340, 520), (570, 740))  # top, bottom
COLORS = ("#222222", "#d1495b", "#2e86ab", "#3b8b5a", "#e09f3e", "#7b4b94", "#888888")
LEGEND_COLUMNS = 4
WINDOW = 20
POINTS = 150  # of a curve, at most


def read(path):
    """(steps, smoothed losses, last validation loss or None) of a metrics.jsonl."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    rows = [r for r in rows if "loss" in r]
    losses = [r["loss"] for r in rows]
    smooth = [mean(losses[max(0, i + 1 - WINDOW):i + 1]) for i in range(len(losses))]
    val = [r["val_loss"] for r in rows if "val_loss" in r]
    return [r["step"] for r in rows], smooth, val[-1] if val else None


def band(curves):
    """(lowest, mean, highest) at each step of curves of one length."""
    columns = list(zip(*curves))
    return [min(c) for c in columns], [mean(c) for c in columns], [max(c) for c in columns]


def apart(curves, reference):
    """Each curve less the reference's of the same seed."""
    return [[a - b for a, b in zip(curve, other)] for curve, other in zip(curves, reference)]


def points(xs, ys):
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))


def panel(out, steps, bands, bounds, title, colors, begin=0):
    """One panel: axes with five ticks each, a band a curve and the lines on top, from the index
    `begin` on."""
    top, bottom = bounds
    kept = slice(begin, None, -(-len(steps) // POINTS))
    bands = [[curve[kept] for curve in curves] for curves in bands]
    low = min(min(lowest) for lowest, _, _ in bands)
    high = max(max(highest) for _, _, highest in bands)
    span = (high - low) or 1
    xs = [LEFT + (RIGHT - LEFT) * step / steps[-1] for step in steps[kept]]
    y = lambda value: bottom - (bottom - top) * (value - low) / span
    out.append(f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>')
    for i in range(5):
        value = low + span * i / 4
        out.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                   f'stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
                   f'{value:.4f}</text>')
        out.append(f'<text x="{LEFT + (RIGHT - LEFT) * i / 4:.1f}" y="{bottom + 16}" '
                   f'text-anchor="middle">{steps[-1] * i / 4:.0f}</text>')
    for (lowest, _, highest), color in zip(bands, colors):
        outline = points(xs, map(y, lowest)) + " " + points(xs[::-1], map(y, highest[::-1]))
        out.append(f'<polygon points="{outline}" fill="{color}" fill-opacity="0.13"/>')
    for (_, middle, _), color in zip(bands, colors):
        out.append(f'<polyline points="{points(xs, map(y, middle))}" fill="none" '
                   f'stroke="{color}" stroke-width="1.3"/>')


def draw(names, steps, losses):
    reference = losses[0]
    middle = band(reference)[1]
    n = len(middle)
    begin = n // 10  # before that, curves are so steep that little else would show
    own = band([[v - m for v, m in zip(curve, middle)] for curve in reference])
    differences = [band(apart(curves, reference)) for curves in losses[1:]]
    thin = [(m, m, m) for _, m, _ in differences]  # without their bands
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    panel(out, steps, [band(curves) for curves in losses], PANELS[0],
          f"training loss, mean of {WINDOW} steps", COLORS)
    panel(out, steps, [(own[0], [0] * n, own[2]), *thin], PANELS[1],
          f"less that of {names[0]}; grey: its own seeds", COLORS, begin)
    panel(out, steps, differences, PANELS[2], f"less that of {names[0]}, magnified", COLORS[1:],
          begin)
    for i, (name, color) in enumerate(zip(names, COLORS)):
        at, y = LEFT + i % LEGEND_COLUMNS * (RIGHT - LEFT) / LEGEND_COLUMNS, HEIGHT - 32
        y += i // LEGEND_COLUMNS * 18
        out.append(f'<rect x="{at:.0f}" y="{y - 6}" width="14" height="4" fill="{color}"/>')
        out.append(f'<text x="{at + 18:.0f}" y="{y}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def print_table(names, ends):
    """Validation losses at the end: over seeds, and seed by seed against the reference."""
    spread = lambda values: f"{stdev(values):.5f}" if len(values) > 1 else ""
    print(f"| run | validation loss, mean of {len(ends[0])} | deviation of seeds | less {names[0]} "
          "| deviation |\n| --- | --- | --- | --- | --- |")
    for name, values in zip(names, ends):
        difference = [a - b for a, b in zip(values, ends[0])]
        beside = f"{mean(difference):+.5f} | {spread(difference)}" if values != ends[0] else "|"
        print(f"| {name} | {mean(values):.5f} | {spread(values)} | {beside} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("runs", nargs="+", metavar="NAME=FILE[,FILE...]")
    args = parser.parse_args()
    names, groups = zip(*(run.split("=", 1) for run in args.runs))
    if len(names) > len(COLORS):
        parser.error(f"{len(names)} names; there are colours for {len(COLORS)}")
    runs = [[read(path) for path in group.split(",")] for group in groups]
    steps = runs[0][0][0]
    if any(run[0] != steps for group in runs for run in group):
        parser.error("the runs do not have the same steps")
    args.out.write_text(draw(names, steps, [[run[1] for run in group] for group in runs]),
                        encoding="utf-8")
    print_table(names, [[run[2] for run in group] for group in runs])


if __name__ == "__main__":
    main()
