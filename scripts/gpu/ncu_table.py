#!/usr/bin/env python3
"""Nsight Compute's CSV (--page raw) on stdin, summed up by kernel: the dearest first."""

import csv
import re
import sys

TIME, BYTES = "gpu__time_duration.sum", "dram__bytes.sum"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"
SCALE = {"ns": 1e-3, "us": 1, "usecond": 1, "nsecond": 1e-3, "ms": 1e3, "byte": 1, "Kbyte": 1e3,
         "Mbyte": 1e6, "Gbyte": 1e9}


def number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return 0.0


def main():
    lines = [line for line in sys.stdin if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if len(rows) < 2:
        sys.exit("ncu_table: no kernels")
    units, sums = rows[0], {}
    for row in rows[1:]:
        name = re.sub(r"\(.*", "", row["Kernel Name"])
        n, us, moved, tensor = sums.get(name, (0, 0, 0, 0))
        t = number(row[TIME]) * SCALE.get(units[TIME], 1e-3)
        size = number(row.get(BYTES, "")) * SCALE.get(units.get(BYTES), 1)
        sums[name] = (n + 1, us + t, moved + size,
                      tensor + t * number(row.get(TENSOR, "")))
    total = sum(us for _, us, _, _ in sums.values())
    print(f"{'us':>10} {'share':>6} {'calls':>6} {'us/call':>8} {'GB/s':>7} {'tensor %':>8}  "
          "kernel")
    for name, (n, us, moved, tensor) in sorted(sums.items(), key=lambda item: -item[1][1])[:40]:
        print(f"{us:10.1f} {100 * us / total:5.1f}% {n:6} {us / n:8.2f} "
              f"{1e-3 * moved / max(us, 1e-9):7.0f} {tensor / max(us, 1e-9):8.1f}  {name}")
    print(f"{total:10.1f} in {sum(n for n, *_ in sums.values())} launches")


if __name__ == "__main__":
    main()
