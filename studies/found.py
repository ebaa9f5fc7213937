"""Do whole searches find what beats bert? Each search, of another seed, is one observation; the paper shows one.

For searches without shared weights. These judge a parent again with random numbers that did not choose it, so the
judgement of a round's best in the next one says, without more training, what the search had found by then. Random
search has as many candidates, each judged once. A search takes 35 minutes on two cores, this study seconds:

    for seed in 0 1 2 3 4; do
        python opnas.py --preset evening --seed $seed --out runs/evening-$seed
        python opnas.py --preset evening --seed $seed --out runs/random-$seed --strategy random
    done
    python studies/found.py --runs runs/evening-? runs/random-?
"""
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
from draw import chart, tsv  # noqa: E402
from glue import interval  # noqa: E402

NAMES = ("best", "bert", "autobert-zero")
PAIRS = (("op-nas", "op-nas", "bert"), ("op-nas", "op-nas", "autobert-zero"), ("op-nas", "random", "best"),
         ("random", "random", "bert"))  # a winner's strategy; the strategy and name beside which it is set

def curve(log):
    """[(minutes of judgements so far, x 100 how the best so far is judged next)] after each round whose best is judged
    again in the next one, without the last round, whose trainings are longer."""
    points = []
    for number in range(log[-1].round - 1):
        before = [c for c in log if c.round <= number]
        best = [(number + 1, c.number) for c in opnas.best_of(opnas.last_of(before), 1)]
        points += [(sum(c.seconds for c in before) / 60, 100 * statistics.fmean(x for _, x in c.tasks))
                   for c in log if (c.round, c.number) in best and c.tasks]
    return points

def found(runs: tuple[str, ...] = ("runs/evening",), out: str = "found.tsv"):
    """Do whole searches find what beats bert? A row for each: the mean score of its final trainings, x 100. Then the
    differences over searches, 95 %, and what op-nas had found round by round, also as a picture beside OUT.

    runs: folders of finished searches"""
    rows, scores, curves = [("run", "strategy", "seed", "candidates", "minutes", *NAMES, "trainings", "curve")], {}, []
    for folder in map(Path, runs):
        about = json.loads((folder / "settings.json").read_text())
        log = [opnas.Candidate(*c) for c in opnas.load(folder / "state.pt")["log"]]
        minutes = round(sum(c.seconds for c in log) / 60, 1)
        ends = [[opnas.load(path)["tasks"] for path in folder.glob(f"{name}-?.pt")] for name in NAMES]
        ends = [[100 * statistics.fmean(x for _, x in tasks) for tasks in end] for end in ends]
        means, key = [*map(statistics.fmean, ends)], (about["strategy"], about["seed"])
        scores |= {(*key, name): mean for name, mean in zip(NAMES, means)}
        curves += [curve(log)] * (key[0] == "op-nas")
        points = " ".join(f"{minutes:.1f}:{score:.1f}" for minutes, score in curve(log))
        about = *key, len(opnas.last_of(log)), minutes
        rows.append((folder, *about, *(f"{x:.2f}" for x in means), len(ends[0]), points))
    data.write_beside(Path(out), tsv(*rows))
    print(tsv(*rows), end="")
    for ours, other, name in PAIRS:
        gaps = [x - scores[other, seed, name] for (strategy, seed, mine), x in scores.items()
                if (strategy, mine) == (ours, "best") and (other, seed, name) in scores]
        if gaps:
            print("%s: best minus %s of %s: %+.1f ± %.1f" % (ours, name, other, *interval(gaps)), f"({len(gaps)})")
    rounds = [zip(*points) for points in zip(*curves)]
    means = [(statistics.fmean(minutes), *interval(worths)) for minutes, worths in rounds]
    for row in means:
        print("after %.0f minutes of judgements the best so far is worth %.1f ± %.1f" % row)
    series = {"op-nas": tuple(zip(*((x, y, y - half, y + half) for x, y, half in means)))} if means else {}
    data.write_beside(Path(out).with_suffix(".svg"), chart("What searches find", "minutes of judgements",
                                                           "best so far, as judged next, x 100", series))

if __name__ == "__main__":
    data.run(__doc__, usual=found)
