"""Which strategy finds the better backbone for one budget (Fig. 6): op-nas, uniform evolution or random search?

All run with the same seeds and as many pre-training steps in all; the winner of each search is then trained from scratch.
At toy size about three hours on two cores. The same command again goes on:

    python studies/compare.py --seeds 5 --out runs/compare

Other arms: literal is op-nas as printed, with tau = 1 and alpha = 0.01. ea-copy and op-nas-copy are controls, in which a
layer that turns into an attention copies another layer's. On landscapes, which need no training, five minutes:

    python studies/compare.py --landscapes --seeds 60 --out runs/landscapes

The folder gets pairs.tsv (a search a row), table.txt and curves.svg.
"""
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import random
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from autobert import kernel_of  # noqa: E402
from draw import chart, interval, tsv  # noqa: E402

# ---- The arms ----
ARMS = {name: {"strategy": name} for name in ("op-nas", "ea+ws", "random+ws", "random")} | {
    "literal": {"tau": 1.0, "alpha": 0.01}, "ea-copy": {"strategy": "ea+ws"}, "op-nas-copy": {}}

def settings_of(arm, s):
    """An arm's settings, from those of op-nas. CHOICE: one budget is as many pre-training steps in all. What evolution
    spends on judging parents again, random+ws spends on more candidates; random trains as many for longer."""
    size, again = s.parents * s.children, s.rounds * s.parents * s.again
    steps = s.steps * (opnas.judgements(s) + (s.cold - 1) * s.warm) // (s.population + s.rounds * size)
    more = {"random+ws": {"rounds": s.rounds + again // size}, "random": {"steps": steps}}
    return replace(s, **ARMS[arm], **more.get(arm, {}))

def copying(backbone, tables, rng, counts, mutate=opnas.mutate_inter):
    """opnas.mutate_inter, but a layer that turns into an attention copies another layer's, if there is one."""
    others = [gene for gene in backbone if not kernel_of(gene)]
    return tuple(rng.choice(others) if others and kernel_of(old) and not kernel_of(new) else new
                 for old, new in zip(backbone, mutate(backbone, tables, rng, counts)))

def mutating(arm):
    """A context in which opnas mutates as the arm does."""
    return mock.patch.object(opnas, "mutate_inter", copying if arm.endswith("-copy") else opnas.mutate_inter)

def curve_of(log, cost, value):
    """[(what was spent so far, value of the best candidate by its last score)], after each judgement."""
    spent = itertools.accumulate(map(cost, log))
    bests = (opnas.best_of(opnas.last_of(log[:i]), 1) for i in range(1, len(log) + 1))
    return [(x, sum(map(value, best))) for x, best in zip(spent, bests)]

# ---- On the task ----
def on_the_task(s, corpus, glue, out, device, key):
    """(score and MLM loss of the winner after full training, curve of best scores) of an (arm, seed)."""
    arm, seed = key
    s, folder, score, mlm = settings_of(arm, replace(s, seed=int(seed))), out / f"{arm}-{seed}", 0.0, math.nan
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as file, contextlib.redirect_stdout(file), mutating(arm):
        with mock.patch.object(opnas, "judge_winner", lambda run, winner: None):
            opnas.search(vars(s), corpus=corpus, glue=glue, out=str(folder), workers=1, device=device)
    proxy, log = opnas.PROXY, [opnas.Candidate(*c) for c in opnas.load(folder / "state.pt")["log"]]
    with contextlib.suppress(autobert.Diverged):
        model = proxy.model(autobert.load_backbone(folder / "best.json"), s.seed)
        mlm, _ = proxy.pretrain(model, s.final_steps, s.seed)
        score = statistics.fmean(x for _, x in proxy.scores(model, s.seed, final=True))
    steps, plan = {"first": s.steps * s.cold}, opnas.plan(s)
    judged = [c for c in log if c.number is not None]
    return score, mlm, curve_of(judged, lambda c: steps.get(plan[c.round][0], s.steps), lambda c: c.score)

# ---- On landscapes ----
LAYERS, NOISE = 12, 0.04  # the noise is that of a score, its sd half that of the true fitness of random backbones
FAMILIES = {  # what a node adds; w(...) is a fixed Gaussian number, reads its operands' ops
    "by position": lambda w, layer, t, op, reads: w(t, op),
    "by op": lambda w, layer, t, op, reads: w(op),
    "by motif": lambda w, layer, t, op, reads: 3 * sum(w(op, r) for r in reads if abs(w(op, r, "is one")) > 1.6),
    "op in context": lambda w, layer, t, op, reads: w(op, reads[0]),
    "misleading": lambda w, layer, t, op, reads: (-1) ** layer * w(t, op),  # good in one layer, bad in the next
    "none": None,  # a number of its own for every backbone
}

def landscape(family, seed):
    """A made-up true fitness of backbones, (0, 1): logistic(z / 3), z about N(mean, 1) at random. z is the sum over layers
    / sqrt(layers); a layer is worth w(layer, kernel), or the sum over its nodes / sqrt(nodes) of what FAMILIES says."""
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

def on_a_landscape(s, key):
    """(true fitness of the best in the end, curve of it) of an (arm, "seed family"); the search sees it with noise."""
    (arm, pair), (seed, family) = key, key[1].split(" ", 1)
    true = landscape(family, seed)

    def fitness(number, batch, log):
        for c in batch:  # the noise is the backbone's, so that it is the same for every arm
            score = true(c.backbone) + NOISE * random.Random(f"{seed} {c.backbone}").gauss(0, 1)
            yield replace(c, score=min(1.0, max(0.0, score)))

    with mutating(arm):
        log = opnas.evolve(settings_of(arm, replace(s, seed=int(seed))), LAYERS, fitness)
    curve = curve_of(log, lambda c: 1, lambda c: true(c.backbone))
    return curve[-1][1], curve

# ---- What it says ----
def measured(path, head, todo, job, workers):
    """[{column: text}] for the keys `todo`, tuples of text with which their rows begin: a row is in the table at `path`,
    or else [*key, *job(key)], written as it comes."""
    lines = path.read_text().splitlines()[1:] if path.exists() else ()
    rows = {tuple(row[:len(todo[0])]): row for row in (line.split("\t") for line in lines)}
    missing = [key for key in todo if key not in rows]
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        for key, found in zip(missing, (map if workers == 1 else pool.map)(job, missing)):
            rows[key] = [*key, *map(str, found)]
            data.write_beside(path, tsv(head, *rows.values()))
            print(" ".join(map("{}={}".format, head, rows[key]))[:120], flush=True)
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()
    return [dict(zip(head, rows[key])) for key in todo]
