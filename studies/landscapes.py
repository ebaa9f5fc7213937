"""Which decisions of the search pay? Whole searches on made-up fitness functions, where an evaluation costs nothing.

The paper leaves much of Algorithm 1 open. Our search runs beside other strategies, beside the literal reading, and with
some of our decisions taken back, one at a time: the same seed, the same function, as many judgements. A judgement is
noisy. Scores rise from round to round, as a super-net matures; the last round trains from scratch and has the whole
rise. A probe turns most random backbones away, and a few candidates diverge. About 15 minutes of one core. The
same command again goes on:

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
LAYERS, NOISE = 6, 0.04  # sd of a judgement; the true fitness of random backbones has twice that
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
    """Turns away two of three random backbones, those with dist in two layers."""
    return "collapsed" if sum("dist" in gene for gene in backbone) > 1 else None

def learns(backbone):
    """Nine of ten others do; those that end in dist do not."""
    return not any(ops.parse(gene)[-1][0] == "dist" for gene in backbone if not kernel_of(gene))

# ---- The arms ----
def flip_at_random(backbone, tables, *more, mutate=opnas.mutate_inter):
    """opnas.mutate_inter as in the paper: empty tables draw uniformly."""
    return mutate(backbone, OperationPriority(), *more)

def flip_to_copy(backbone, tables, *more, mutate=opnas.mutate_inter):
    """opnas.mutate_inter, but a layer that turns into an attention copies another layer's, if there is one. It shows
    how much is gained by passing a good attention on to other layers."""
    others = [gene for gene in backbone if not kernel_of(gene)]
    return tuple(more[0].choice(others) if others and kernel_of(old) and not kernel_of(new) else new
                 for old, new in zip(backbone, mutate(backbone, tables, *more)))

class Unexplored(OperationPriority):
    """Draws only kernels that a layer has had, if any."""
    def ucb(self, place):
        u, had = super().ucb(place), self.tables.get(place, opnas.KERNELS)
        return u if isinstance(place, int) else {kernel: u[kernel] for kernel in had}

def without_rejected(M, *more):
    """OperationPriority of those with a score."""
    return OperationPriority([c for c in M if c.score is not None], *more)

SETTINGS = opnas.SearchSettings(population=50, parents=5, children=5, rounds=4, finalists=3)
ARMS = {  # settings; what takes the place of a part of opnas
    "op-nas": ({}, {}), "ea": ({"strategy": "ea"}, {}), "random": ({"strategy": "random", "population": 70}, {}),
    "tau 1, alpha .01": ({"tau": 1.0, "alpha": 0.01}, {}), "flips at random": ({}, {"mutate_inter": flip_at_random}),
    "flips copy": ({}, {"mutate_inter": flip_to_copy}),
    "ea, flips copy": ({"strategy": "ea"}, {"mutate_inter": flip_to_copy}),
    "parents judged once": ({"again": 0, "children": 6}, {}), "mean of judgements": ({}, {}),
    "no finalists": ({"finalists": 0, "population": 80}, {}),  # at toy size one costs ten judgements
    "rejected do not count": ({}, {"OperationPriority": without_rejected}), "turned away count": ({}, {}),
    "only kernels seen": ({}, {"OperationPriority": Unexplored})}

def searched(rise, key):
    """(true fitness of the winner,) of a ("seed family", arm)."""
    (seed, family), arm, away = key[0].split(" ", 1), key[1], []
    settings, parts = ARMS[arm]
    s, true = replace(SETTINGS, seed=int(seed), **settings), landscape(family, seed)
    kinds, total = [kind for kind, *_ in opnas.plan(s)], s.population + s.rounds * s.parents * (s.children + s.again)
    if arm == "turned away count":
        parts = {"OperationPriority": lambda M, *more: OperationPriority([*M, *away], *more)}

    def asked(backbone):
        reason = probe(backbone)
        away.extend([opnas.Candidate(None, 0, None, backbone)] * bool(reason))
        return reason

    def fitness(number, batch, log):
        missing, judged = rise * (1 - sum(c.number is not None for c in log) / total), []  # none in the last round
        for c in batch:  # subtle: a backbone has the same noise in the same round of every arm
            x = true(c.backbone) - missing + NOISE * random.Random(f"{seed} {number} {c.backbone}").gauss(0, 1)
            mean = arm == "mean of judgements" and kinds[number] != "last"
            before = [y.tasks[0] for y in log if mean and y.number == c.number]
            judged.append(replace(c, score=fmean([*before, x]) if learns(c.backbone) else None, tasks=(x,)))
        return judged

    with mock.patch.multiple(opnas, **{"OperationPriority": OperationPriority, **parts}):
        log = opnas.evolve(s, LAYERS, fitness, asked)
    last = [c for c in log if kinds[c.round] == "last"]
    return (true(opnas.best_of(last or opnas.last_of(log), 1)[0].backbone),)

def landscapes(seeds: int = 60, rise: float = 0.12, out: str = "runs/landscapes"):
    """Which decisions of the search pay? Searches on made-up fitness functions, and their paired differences with 95 %
    intervals. Writes searches.tsv, and pairs.tsv, which has each family of functions, too.

    seeds: pairs; the six families take turns
    rise: of scores from first to last round; results/search-toy.txt has 1.5 sd, which is .12 here"""
    names, head = map("{} {}".format, range(seeds), itertools.cycle(FAMILIES)), ("pair", "arm", "winner")
    todo, job = [*itertools.product(names, ARMS)], functools.partial(searched, rise)
    rows = [dict(zip(head, row)) for row in measured(Path(out) / "searches.tsv", head, todo, job, 1, ())]
    twos = [*itertools.product(["op-nas"], [*ARMS][1:]), ("ea, flips copy", "ea")]
    table = pairs(rows, {"winner": twos}, ["", *FAMILIES][:seeds + 1])
    print(tsv(*table[:len(twos) + 1]), end="")  # of all families
    data.write_beside(Path(out) / "pairs.tsv", tsv(*table))

if __name__ == "__main__":
    data.run(__doc__, usual=landscapes)
