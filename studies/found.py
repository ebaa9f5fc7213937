"""Does a search find what beats bert? Whole searches of several seeds, each one observation; the paper shows one.

Searches from scratch judge a parent again with random numbers that did not choose it. So the next judgement of each
round's best says, without training any more, what the search had found by then:

    for seed in 0 1 2 3 4; do python opnas.py --preset evening --seed $seed --out runs/evening-$seed; done
    python studies/found.py --runs runs/evening-0 runs/evening-1 runs/evening-2 runs/evening-3 runs/evening-4
"""
import itertools
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
from draw import tsv  # noqa: E402
from glue import interval  # noqa: E402

NAMES, STRATEGIES = ("best", "bert", "autobert-zero"), ("op-nas", "ea", "random")

def curve(log):
    """[(core minutes so far, x 100 the next judgement of the best so far)] after each round whose best has one before
    the last round, whose trainings are longer."""
    points = []
    for number in range(log[-1].round - 1):
        before = [c for c in log if c.round <= number]
        after = [c for c in log if number < c.round < log[-1].round and c.tasks]
        best = [c.number for c in opnas.best_of(opnas.last_of(before), 1)]
        points += [(sum(c.seconds for c in before) / 60, 100 * statistics.fmean(x for _, x in c.tasks))
                   for c in after if [c.number] == best][:1]
    return points

def found(runs: tuple[str, ...] = ("runs/search",), out: str = "found.tsv"):
    """Does a search find what beats bert? A row for each search: its final trainings' mean scores, x 100; then the
    differences over searches, 95 %, and what each had found as it went on.

    runs: folders of finished searches"""
    rows = [("run", "strategy", "seed", "candidates", "core minutes", *NAMES, "curve")]
    for folder in map(Path, runs):
        s, log = json.loads((folder / "settings.json").read_text()), opnas.load(folder / "state.pt")["log"]
        log = [opnas.Candidate(*c) for c in log]
        scores = [[100 * x for path in folder.glob(f"{name}-?.pt") for _, x in opnas.load(path)["tasks"]]
                  for name in NAMES]
        points = " ".join(f"{minutes:.1f}:{score:.1f}" for minutes, score in curve(log))
        minutes = round(sum(c.seconds for c in log) / 60, 1)
        rows.append((folder, s["strategy"], s["seed"], len(opnas.last_of(log)), minutes,
                     *(round(statistics.fmean(x), 2) for x in scores), points))
    data.write_beside(Path(out), tsv(*rows))
    print(tsv(*rows), end="")
    worth = {(row[1], row[2], name): x for row in rows[1:] for name, x in zip(NAMES, row[5:])}
    for ours, other, name in itertools.product(STRATEGIES, STRATEGIES, NAMES):
        gaps = [x - worth[other, seed, name] for (strategy, seed, mine), x in worth.items()
                if (strategy, mine) == (ours, "best") and (other, seed, name) in worth]
        if gaps and (ours == other) == (name != "best"):
            print("winners of %s minus %s of %s: %.1f ± %.1f" % (ours, name, other, *interval(gaps)), f"({len(gaps)})")

if __name__ == "__main__":
    data.run(__doc__, usual=found)
