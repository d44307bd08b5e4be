"""What a search that sees scores alone makes of the quickstart's job A: the best of N random points of its 27 million, over many tries.

    python3 tests/bench/quickstart_random.py [--evaluations 6] [--tries 10000] [--seed 1]
"""

import argparse
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "quickstart" / "concordance"))
import eval as job


def main():
    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--evaluations", type=int, default=6, help="random points of one try")
    flags.add_argument("--tries", type=int, default=10000)
    flags.add_argument("--seed", type=int, default=1)
    args = flags.parse_args()
    table, draw = job.rows(), random.Random(args.seed)
    best = sorted(max(job.judge(table, [draw.randint(1, 300) for _ in range(3)])[0] for _ in range(args.evaluations)) for _ in range(args.tries))
    print(f"best of {args.evaluations} random points, {args.tries} tries: median {best[len(best) // 2]:.2f}, "
          f"better than the start (0) in {sum(score > 0 for score in best) / len(best):.1%}, best {best[-1]:.2f}")


if __name__ == "__main__":
    main()
