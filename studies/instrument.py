"""Can the toy benchmark tell backbones apart? Full trainings from scratch of varied backbones, several seeds each.

An instrument is as good as its intraclass correlation (ICC): the share of a score's variance that lies between
backbones and not between trainings of the same one. The paper has no such study; its Table 5 rests on one training
each. About 40 seconds of one core a training; the same command again goes on with the rows that are missing:

    python studies/instrument.py --backbones 24 --seeds 3 --workers 2
"""
import collections
import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
from draw import begin, measured, trained  # noqa: E402
from glue import interval  # noqa: E402

def varied(count, layers, probe, seed):
    """{name: backbone}: the published four, then by turns random ones that do not collapse and mutants of bert, of
    autobert-zero and of those found so far."""
    found = {name: autobert.load_backbone(name, layers) for name in autobert.BACKBONES}
    rng, tables, seen = random.Random(f"instrument {seed}"), opnas.OperationPriority(), set(found.values())
    parents = [found["bert"], found["autobert-zero"]]
    while len(found) < count:
        kind = ("random", "mutant")[len(found) % 2]
        backbone = opnas.random_backbone(layers, rng)
        if kind == "mutant":
            backbone = rng.choice(parents)
            for _ in range(2):
                backbone = opnas.mutate(backbone, tables, rng, seen, collections.Counter())
        if backbone not in seen and not probe(backbone):
            found[f"{kind}-{len(found)}"] = backbone
            parents.append(backbone)
        seen.add(backbone)
    return found

def icc(scores, trainings=1):
    """The share of variance that lies between backbones (one-way), for the mean of so many trainings. scores:
    (backbones, seeds)."""
    k, within = scores.shape[1], scores.var(1, ddof=1).mean()
    between = max(0.0, scores.mean(1).var(ddof=1) - within / k)
    return between / (between + within / trainings)

def summarise(rows, tasks):
    """Print a line per task and for their mean: least, median, most, sd within; the ICC over all and within the better
    half, of one training and of the mean over the seeds; then a line per backbone, best first."""
    names = list(dict.fromkeys(row[0] for row in rows))
    seeds = min(sum(row[0] == name for row in rows) for name in names)
    table = np.array([[[float(x) for x in row[4:]] for row in rows if row[0] == name][:seeds] for name in names])
    scores = {"mean": table[:, :, 2:].mean(2), **{task: table[:, :, 2 + i] for i, task in enumerate(tasks)},
              "MLM": table[:, :, 0], "NSP": table[:, :, 1]}
    better = np.argsort(-scores["mean"].mean(1))[:len(names) // 2]
    titles = "".join(f"{title:>8}" for title in ("", "least", "median", "most", "within", "ICC", "better", "of mean",
                                                     "better"))
    print(f"{len(names)} backbones, {seeds} seeds\n{titles}")
    for name, x in scores.items():
        m = x.mean(1)
        cells = m.min(), np.median(m), m.max(), x.var(1, ddof=1).mean() ** 0.5, icc(x), icc(x[better])
        cells += icc(x, seeds), icc(x[better], seeds)
        print(f"{name:8}" + "".join(f"{cell:8.3f}" for cell in cells))
    print(f"\n100 x mean ± 95 % interval of {', '.join([*scores][:-2])}, mean minus bert's; MLM, NSP; each mean")
    for i in np.argsort(-scores["mean"].mean(1)):
        x = [scores[name][i] for name in scores]
        gap = scores["mean"][i] - scores["mean"][names.index("bert")]
        cells = "".join(" %7.1f ± %-5.1f" % interval(100 * y) for y in [*x[:-2], gap])
        print(f"{names[i]:14}{cells}{x[-2].mean():6.2f}{x[-1].mean():6.2f}  " + " ".join(f"{y:.3f}" for y in x[0]))

def instrument(backbones: int = 24, seeds: int = 3, lr: float = 3e-3, seed: int = 0,
               glue: str = "toy/glue", corpus: str = "toy/corpus.txt", out: str = "runs/instrument", workers: int = 2):
    """Can the toy benchmark tell backbones apart? Trains each from scratch with several seeds (about 40 seconds of one
    core a training), keeps OUT/rows.tsv, and prints the intraclass correlations.

    backbones: the published four, random ones and mutants
    seeds: trainings of each
    lr: of pre-training, the same for all
    seed: of the choice of backbones"""
    folder, s = Path(out), opnas.PRESETS["toy"]
    s = replace(s, pretrain=replace(s.pretrain, lr=lr))
    begin(folder, s, corpus, glue)
    genes = varied(backbones, opnas.PROXY.config.layers, opnas.PROXY.probe, seed)
    todo = [(name, str(i), " | ".join(genes[name])) for i, name in itertools.product(range(seeds), genes)]
    head = ("name", "seed", "backbone", "seconds", "mlm", "nsp", *s.tasks)
    summarise(measured(folder / "rows.tsv", head, todo, trained, workers, (folder, "cpu")), s.tasks)

if __name__ == "__main__":
    data.run(__doc__, usual=instrument)
