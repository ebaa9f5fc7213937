"""Which decisions of the search pay? Whole searches on made-up fitness functions, where an evaluation costs nothing.

The paper leaves much of Algorithm 1 open. Here each of our decisions is taken back alone, in paired searches: the same
seed, the same function, as many judgements. A judgement has what a real one has. It is noisy. It rises while a super-net
matures, from round to round, but not in the last one, which trains from scratch. A probe turns most random backbones
away, and a few candidates do not learn. About 20 minutes of one core; the same command again goes on:

    python studies/landscapes.py --seeds 60
"""
import functools
import itertools
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from autobert import kernel_of  # noqa: E402
from draw import measured, pairs, tsv  # noqa: E402
from opnas import OperationPriority  # noqa: E402

# ---- What is searched ----
LAYERS, NOISE, RISE = 6, 0.04, 0.2  # of a score: sd, half that of the true fitness of random backbones; from first to last
FAMILIES = {  # what a node adds; w(...) is a fixed Gaussian number, reads its operands' ops
    "by position": lambda w, layer, t, op, reads: w(t, op),
    "by op": lambda w, layer, t, op, reads: w(op),
    "by motif": lambda w, layer, t, op, reads: 3 * sum(w(op, r) for r in reads if abs(w(op, r, "is one")) > 1.6),
    "op in context": lambda w, layer, t, op, reads: w(op, reads[0]),
    "misleading": lambda w, layer, t, op, reads: (-1) ** layer * w(t, op),  # good in one layer, bad in the next
    "none": None}  # a number of its own for every backbone

def landscape(family, seed):
    """A made-up true fitness of backbones, 0..1: logistic(z / 3), z about N(mean, 1) at random. z: sum over layers /
    sqrt(layers); a layer is worth w(layer, kernel), or the sum over its nodes / sqrt(nodes) of what FAMILIES says."""
    w = functools.cache(lambda *key: random.Random(f"{seed} {key}").gauss(0, 1))
    node = FAMILIES[family]

    @functools.cache
    def worth(layer, gene):
        if kernel_of(gene):
            return w(layer, gene)
        dag = ops.parse(gene)
        names = [*ops.INPUTS, *(op for op, *_ in dag)]
        return sum(node(w, layer, t, op, [names[a] for a in args]) for t, (op, *args) in enumerate(dag)) / len(dag)**.5

    def true(backbone):
        z = sum(itertools.starmap(worth, enumerate(backbone))) / len(backbone)**.5 if node else w(*backbone)
        return 1 / (1 + math.exp(-z / 3))
    return true

def probe(backbone):
    """Turns away two of three random backbones, by an op as the real one does."""
    return "collapsed" if sum("dist" in gene for gene in backbone) > 1 else None

def learns(backbone):
    """All but a tenth of the others learn."""
    return not any(ops.parse(gene)[-1][0] == "dist" for gene in backbone if not kernel_of(gene))

# ---- The arms: settings, and what takes the place of a part of opnas ----
def copying(backbone, tables, rng, counts, mutate=opnas.mutate_inter):
    """opnas.mutate_inter, but a layer that turns into an attention copies another layer's, if there is one."""
    others = [gene for gene in backbone if not kernel_of(gene)]
    return tuple(rng.choice(others) if others and kernel_of(old) and not kernel_of(new) else new
                 for old, new in zip(backbone, mutate(backbone, tables, rng, counts)))

class Unexplored(OperationPriority):
    """Draws only kernels that a layer has had, if any."""
    def ucb(self, place):
        u, had = super().ucb(place), self.tables.get(place, opnas.KERNELS)
        return u if isinstance(place, int) else {kernel: u[kernel] for kernel in had}

SETTINGS = opnas.SearchSettings(population=50, parents=5, children=5, rounds=4, finalists=3)
ARMS = {  # "op-nas" is as we decided
    "op-nas": {}, "ea": {"strategy": "ea"}, "random": {"strategy": "random", "population": 70},
    "as printed: tau 1": {"tau": 1.0, "alpha": 0.01},
    "ea, flips copy": {"strategy": "ea", "mutate_inter": copying}, "flips copy": {"mutate_inter": copying},
    "parents judged once": {"again": 0, "children": 6}, "mean of judgements": {},
    "no finalists": {"finalists": 0, "population": 53},
    "rejected do not count": {"OperationPriority": lambda M, *more: OperationPriority(
        [c for c in M if c.score is not None], *more)},
    "turned away count": {}, "kernels unexplored": {"OperationPriority": Unexplored}}

def searched(key):
    """(true fitness of the winner,) of a ("seed family", arm)."""
    (seed, family), arm, away = key[0].split(" ", 1), key[1], []
    fields = {name: x for name, x in ARMS[arm].items() if hasattr(SETTINGS, name)}
    patches = {"OperationPriority": OperationPriority, **ARMS[arm]}
    s, true = replace(SETTINGS, seed=int(seed), **fields), landscape(family, seed)
    total = sum(new + again for _, new, again in opnas.plan(s)) - s.finalists
    if arm == "turned away count":
        patches["OperationPriority"] = lambda M, *more: OperationPriority([*M, *away], *more)

    def asked(backbone):
        reason = probe(backbone)
        away.extend([opnas.Candidate(None, 0, None, backbone)] * bool(reason))
        return reason

    def fitness(number, batch, log):
        done, judged = sum(c.number is not None for c in log), []
        for c in batch:  # subtle: the noise is the same for every arm
            x = true(c.backbone) + NOISE * random.Random(f"{seed} {number} {c.backbone}").gauss(0, 1)
            x -= RISE * max(0, 1 - done / total) * (opnas.plan(s)[number][0] != "last")
            before = [y.tasks[0] for y in log if y.number == c.number and arm == "mean of judgements"]
            judged.append(replace(c, score=fmean([*before, x]) if learns(c.backbone) else None, tasks=(x,)))
        return judged

    with mock.patch.multiple(opnas, **{name: x for name, x in patches.items() if name not in fields}):
        log = opnas.evolve(s, LAYERS, fitness, asked)
    last = [c for c in log if opnas.plan(s)[c.round][0] == "last"]
    return (true(opnas.best_of(last or opnas.last_of(log), 1)[0].backbone),)

def landscapes(seeds: int = 60, out: str = "runs/landscapes"):
    """Which decisions of the search pay? Searches on made-up fitness functions, with each decision taken back alone,
    and their paired differences with 95 % intervals; the folder gets searches.tsv and pairs.tsv, which has each
    family of functions, too.

    seeds: pairs; 60 are ten of each family"""
    names = map("{} {}".format, range(seeds), itertools.cycle(FAMILIES))
    todo, head = [*itertools.product(names, ARMS)], ("pair", "arm", "winner")
    rows = measured(Path(out) / "searches.tsv", head, todo, searched, 1, ())
    rows = [dict(zip(head, row)) for row in rows]
    twos = [("op-nas", arm) for arm in [*ARMS][1:]]
    print(tsv(*pairs(rows, {"winner": twos})), end="")
    data.write_beside(Path(out) / "pairs.tsv", tsv(*pairs(rows, {"winner": twos}, ["", *FAMILIES][:seeds + 1])))

if __name__ == "__main__":
    data.run(__doc__, usual=landscapes)
