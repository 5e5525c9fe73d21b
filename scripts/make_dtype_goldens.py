#!/usr/bin/env python3
"""Makes tests/golden/dtype/: blocks of every GGUF element type and what they decode to.

Needs the packages gguf and numpy, whose dequantisation is the reference. Blocks are random
bytes (so that every bit of a layout matters) with sane half-precision scales; for the simple
types a few blocks come from quantising real numbers. NAME.blocks holds the blocks, NAME.f32 the
decoded little-endian floats.

    python3 scripts/make_dtype_goldens.py tests/golden/dtype
"""
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

# name: (type, bytes a block, offsets of the half-precision scales)
TYPES = {
    "f16": (T.F16, 2, ()),
    "bf16": (T.BF16, 2, ()),
    "q8_0": (T.Q8_0, 34, (0,)),
    "q4_0": (T.Q4_0, 18, (0,)),
    "q4_1": (T.Q4_1, 20, (0, 2)),
    "q5_0": (T.Q5_0, 22, (0,)),
    "q5_1": (T.Q5_1, 24, (0, 2)),
    "q4_K": (T.Q4_K, 144, (0, 2)),
    "q5_K": (T.Q5_K, 176, (0, 2)),
    "q6_K": (T.Q6_K, 210, (208,)),
}
QUANTISED = {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}


def random_blocks(rng, n, size, scale_offsets):
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for offset in scale_offsets:
        scales = rng.normal(0, 0.05, n).astype(np.float16)
        scales[0] = np.float16(3e-7)  # a subnormal
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(n, 2)
    return blocks


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20260131)
    for name, (kind, size, offsets) in TYPES.items():
        if not offsets:
            # Finite values only: NaN payloads are for the unit test.
            values = rng.normal(0, 1, 256).astype(np.float32)
            values[:4] = [0.0, -0.0, 3e-7, -65504.0]
            blocks = quants.quantize(values, kind).view(np.uint8).reshape(1, -1)
        else:
            blocks = random_blocks(rng, 3 if size > 100 else 8, size, offsets)
            if name in QUANTISED:
                real = quants.quantize(rng.normal(0, 1, 128).astype(np.float32), kind)
                blocks = np.concatenate([blocks, real.reshape(-1, size)])
        decoded = quants.dequantize(blocks, kind).astype("<f4")
        (out / f"{name}.blocks").write_bytes(blocks.tobytes())
        (out / f"{name}.f32").write_bytes(decoded.tobytes())
        print(f"{name}: {blocks.size} bytes, {decoded.size} values")


if __name__ == "__main__":
    main()
