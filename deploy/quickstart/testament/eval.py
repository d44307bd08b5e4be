"""Scores a way to tell New Testament verses: a verse is called so when it has one of the `size` best words of a `ranking`.

Data: Debian's packages bible-kjv and bible-kjv-text (31,102 verses, public domain). Words are ranked on 3,000 verses drawn with a fixed seed,
the score is balanced accuracy on 3,000 others (mean of the two testaments' recalls; 0.5 = guessing); `held_out` is the same on a third sample.
What is printed before the last line is the feedback that the optimizer reads.
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


def ranked_words(sample, ranking):
    """Words that mark the New Testament, best first: by odds, by frequency there, or by both."""
    new = [have for have, is_new in sample if is_new]
    old = [have for have, is_new in sample if not is_new]
    in_new = collections.Counter(word for have in new for word in have)
    in_old = collections.Counter(word for have in old for word in have)

    def weight(word):
        share_new, share_old = (in_new[word] + 1) / len(new), (in_old[word] + 1) / len(old)
        odds = math.log(share_new / share_old)
        return {"odds": odds, "frequency": share_new - share_old, "both": share_new * odds}[ranking]
    return sorted(sorted(word for word in in_new if len(word) > 2), key=weight, reverse=True)


def recalls(sample, words):
    """(share of New Testament verses found, share of Old Testament verses left alone)"""
    right, total = collections.Counter(), collections.Counter()
    for have, is_new in sample:
        total[is_new] += 1
        right[is_new] += bool(have & words) == is_new
    return right[True] / total[True], right[False] / total[False]


def main():
    ranking, size = os.environ["OPTOD_PARAM_RANKING"], int(os.environ["OPTOD_PARAM_SIZE"])
    everything = verses()
    random.Random(7).shuffle(everything)
    words = frozenset(ranked_words(everything[:3000], ranking)[:size])
    found, spared = recalls(everything[3000:6000], words)
    if found < spared:
        print(f"Only {found:.0%} of the New Testament verses are found: size {size} is too small, a longer list finds more.")
    else:
        print(f"{1 - spared:.0%} of the Old Testament verses are wrongly taken: size {size} is too large, a shorter list takes fewer.")
    print("The list begins with:", ", ".join(sorted(words)[:10]))
    held_out = sum(recalls(everything[6000:9000], words)) / 2
    print(json.dumps({"score": round((found + spared) / 2, 4), "held_out": round(held_out, 4)}))


if __name__ == "__main__":
    main()
