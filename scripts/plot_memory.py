#!/usr/bin/env python3
"""Draws what each preset takes, by component, from `gptd plan --json`, as an SVG.

    python3 scripts/plot_memory.py --out docs/memory.svg

Three bars a preset: training at full speed, training in the least memory, and generating. A mark
shows what common guides expect of training a model of the size. Standard library only.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ("small", "150M", "200M", "250M", "150M_1024", "200M_1024", "250M_1024", "350M_1024",
           "500M_1024")
GROUPS = {  # drawn from the left; what is not named is "the rest"
    "weights": ("#264653", ("weights",)),
    "f32 masters": ("#2a7f8e", ("master",)),
    "gradients": ("#57a773", ("gradients",)),
    "optimizer": ("#e9c46a", ("optimizer",)),
    "activations": ("#f4a261", ("activations",)),
    "logits": ("#d1495b", ("logits",)),
    "KV cache": ("#7b4b94", ("kv_cache",)),
    "the rest": ("#9aa0a6", ()),
}
WIDTH, LEFT, RIGHT, TOP = 900, 170, 40, 96
BAR, BAR_GAP, PRESET_GAP = 13, 3, 16
AS_FAST = 1.05  # of the fastest plan's time: the guide's measure


def plan(gptd, preset):
    reply = subprocess.run([gptd, "plan", "--config", f"configs/{preset}.json", "--device", "cuda",
                            "--json"], cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(reply.stdout)


def expected(gptd):
    """{preset: GB of training in common guides}, from the guide's own table."""
    guide = subprocess.run([gptd, "plan", "--guide"], cwd=ROOT, check=True, capture_output=True,
                           text=True).stdout
    rows = re.findall(r"^\| (\S+) \| [\d,]+ \| ([\d.]+) / [\d.]+ \|", guide, re.M)
    return {name: float(training) for name, training in rows}


def slices(components):
    named = {name for _, names in GROUPS.values() for name in names}
    for label, (color, names) in GROUPS.items():
        wanted = names or [name for name in components if name not in named]
        yield label, color, sum(components.get(name, 0) for name in wanted) / 1e9


def text(x, y, words, anchor="start", size=12, extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {extra}>'
            f'{words}</text>')


def legend(out):
    x, y = LEFT, 52
    for label, (color, _) in GROUPS.items():
        out.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{color}"/>')
        out.append(text(x + 16, y, label))
        x += 34 + 6.6 * len(label)
    out.append(f'<path d="M{LEFT + 5} 62v13" stroke="#111" stroke-width="2.5"/>')
    out.append(text(LEFT + 16, 73, "what common guides expect of training a model of this size"))


def axis(out, x_of, most, bottom):
    for gb in range(0, int(most) + 1, 2):
        out.append(f'<line x1="{x_of(gb):.1f}" x2="{x_of(gb):.1f}" y1="{TOP}" y2="{bottom}" '
                   'stroke="#e3e3e3"/>')
        out.append(text(x_of(gb), bottom + 16, f"{gb} GB", "middle", 11, 'fill="#555"'))


def bar(out, part, name, y, x_of):
    x = 0
    for label, color, gb in slices(part["components"]):
        if gb <= 0:
            continue
        out.append(f'<rect x="{x_of(x):.1f}" y="{y}" width="{x_of(x + gb) - x_of(x):.1f}" '
                   f'height="{BAR}" fill="{color}"><title>{name}: {label} {gb:.2f} GB</title>'
                   '</rect>')
        x += gb
    out.append(text(x_of(x) + 5, y + BAR - 2.5, f"{x:.2f}", size=11, extra='fill="#333"'))
    out.append(text(LEFT - 6, y + BAR - 2.5, name, "end", 11, 'fill="#555"'))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gptd", default=str(ROOT / "build" / "gptd"))
    args = parser.parse_args()
    guides = expected(args.gptd)
    most = max(guides[name] for name in PRESETS) + 1
    x_of = lambda gb: LEFT + (WIDTH - LEFT - RIGHT) * gb / most
    height = 3 * BAR + 2 * BAR_GAP + PRESET_GAP
    bottom = TOP + height * len(PRESETS)
    out = []
    axis(out, x_of, most, bottom)
    for i, preset in enumerate(PRESETS):
        report, y = plan(args.gptd, preset), TOP + i * height + PRESET_GAP / 2
        down = [report["training"], *report["alternatives"]]
        fast = [p for p in down if p.get("slowdown", 1) <= AS_FAST][-1]
        parts = ((fast, "train, fast"), (down[-1], "train, small"),
                 (report["generation"], "generate"))
        out.append(text(12, y + 1.5 * BAR + 6, preset, size=13, extra='font-weight="bold"'))
        for k, (part, name) in enumerate(parts):
            bar(out, part, name, y + k * (BAR + BAR_GAP), x_of)
        x = x_of(guides[preset])
        out.append(f'<path d="M{x:.1f} {y - 3}v{2 * BAR + BAR_GAP + 6}" stroke="#111" '
                   f'stroke-width="2.5"><title>guides: {guides[preset]:g} GB</title></path>')
    legend(out)
    title = text(12, 26, "Memory by component: training beside generating, bf16, each preset's "
                 "full batch", size=15, extra='font-weight="bold"')
    args.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 28}" '
        'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>\n'
        + title + "\n" + "\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main()
