"""Prints vectors.json: slices of the random stream that cross block, 2^32-element and 2^32-block borders."""
import json

import numpy as np

from optod import zo

PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SLICES = [  # seed, step, query, tensor, first, n
    (0, 0, 0, 0, 0, 16),
    (1, 0, 0, 0, 0, 37),
    (1, 0, 0, 0, 3, 9),
    (1, 1, 0, 0, 0, 8),
    (1, 0, 1, 0, 0, 8),
    (1, 0, 0, 1, 0, 8),
    (0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, (1 << 24) - 1, 2, 11),
    (0x0123456789ABCDEF, 20000, 15, 290, 1_000_003, 70),
    (42, 7, 3, 5, (1 << 32) - 5, 40),
    (42, 7, 3, 5, (1 << 34) - 21, 64),
    (42, 7, 3, (1 << 24) - 1, (1 << 42) - 6, 6),
]


def main():
    document = {"philox": [dict(zip(("counter", "key", "output"), row)) for row in PHILOX], "normal": [], "add": []}
    for row in SLICES:
        entry = dict(zip(("seed", "step", "query", "tensor", "first", "n"), row))
        entry["z"] = zo.normal(*row).astype("<f4").tobytes().hex()
        entry["bits"] = zo.random_bits(*row).astype("<u4").tobytes().hex()
        document["normal"].append(entry)
    for scale, row in ((1e-3, SLICES[1]), (-2e-3, SLICES[7]), (0.37, SLICES[8])):
        entry = dict(zip(("seed", "step", "query", "tensor", "first", "n"), row))
        theta = np.linspace(-1, 1, row[5]).astype(np.float32)
        entry["theta"] = theta.astype("<f4").tobytes().hex()
        entry["scale"] = scale
        zo.add_scaled_normal(theta, *row[:4], scale, first=row[4])
        entry["result"] = theta.astype("<f4").tobytes().hex()
        document["add"].append(entry)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
