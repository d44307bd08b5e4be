"""Scores a word list: a verse of the King James Bible is called New Testament when it has at least `hits` of the words.

Data: Debian's packages bible-kjv and bible-kjv-text (31,102 verses, public domain). Score: balanced accuracy on 3,000 verses drawn with a
fixed seed (mean of the two testaments' recalls; 0.5 = guessing); `held_out` is the same on 3,000 others. What is printed before the last line
is the feedback that the optimizer reads.
"""
import collections
import json
import math
import os
import random
import re
import subprocess

NEW_TESTAMENT_STARTS_AT = 23145   # verses of Genesis to Malachi


def verses():
    """[(set of words, is New Testament)] in the order of the book."""
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(" ", 1)[1] for line in text.splitlines() if " " in line]
    return [(frozenset(re.findall(r"[a-z]+", line.lower())), i >= NEW_TESTAMENT_STARTS_AT) for i, line in enumerate(lines)]


def balanced_accuracy(sample, words, hits):
    right = collections.Counter()
    total = collections.Counter()
    for have, new in sample:
        total[new] += 1
        right[new] += (len(have & words) >= hits) == new
    return 0.5 * (right[True] / total[True] + right[False] / total[False])


def telling_words(positives, negatives, taken, count):
    """Words that are frequent in `positives` and rare in `negatives` (log odds weighted by frequency)."""
    pos = collections.Counter(w for have in positives for w in have)
    neg = collections.Counter(w for have in negatives for w in have)
    def weight(w):
        return pos[w] / len(positives) * math.log((pos[w] + 1) / len(positives) / ((neg[w] + 1) / len(negatives)))
    return [w for w in sorted((w for w in pos if w not in taken and len(w) > 2), key=weight, reverse=True)[:count]]


def main():
    words = frozenset(re.findall(r"[a-z]+", os.environ["OPTOD_PARAM_WORDS"].lower()))
    hits = int(os.environ["OPTOD_PARAM_HITS"])
    everything = verses()
    order = list(range(len(everything)))
    random.Random(7).shuffle(order)
    train = [everything[i] for i in order[:3000]]
    held_out = [everything[i] for i in order[3000:6000]]
    score = balanced_accuracy(train, words, hits)
    missed = [have for have, new in train if new and len(have & words) < hits]
    wrong = [have for have, new in train if not new and len(have & words) >= hits]
    old = [have for have, new in train if not new]
    print(f"{len(missed)} New Testament verses were missed, {len(wrong)} Old Testament verses were wrongly taken.")
    if missed:
        print("Words of missed verses that the list lacks:", ", ".join(telling_words(missed, old, words, 12)))
    harmful = [w for w, n in collections.Counter(w for have in wrong for w in have & words).most_common(3) if n > 30]
    if harmful:
        print("Words of the list that take many wrong verses:", ", ".join(harmful))
    print(json.dumps({"score": round(score, 4), "held_out": round(balanced_accuracy(held_out, words, hits), 4)}))


if __name__ == "__main__":
    main()
