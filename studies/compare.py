"""Which strategy finds the better backbone for one budget (Fig. 6): op-nas, uniform evolution or random search?

All run with the same seeds. Those that share weights have as many judgements; random search has full trainings from
scratch, --trainings of them, which take about as long. Each winner is then trained from scratch. The same command again
goes on. At toy size half an hour of a core a seed; on landscapes, without training, five minutes in all:

    python studies/compare.py --seeds 5 --out runs/compare
    python studies/compare.py --landscapes --seeds 60 --out runs/landscapes
"""
import contextlib
import functools
import itertools
import json
import math
import random
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from autobert import Diverged, kernel_of, load_backbone  # noqa: E402
from draw import before_the_last, chart, measured, tsv  # noqa: E402
from glue import interval  # noqa: E402

# ---- The arms ----
ARMS = {"op-nas": {}, "ea+ws": {"strategy": "ea"}, "random+ws": {"strategy": "random"},
        "random": {"strategy": "random", "warm": 0},  # on landscapes also as printed, and two controls
        "literal": {"tau": 1.0, "alpha": 0.01}, "ea-copy": {"strategy": "ea"}, "op-nas-copy": {}}

def settings_of(seed, arm, s, trainings=0):
    """An arm's settings. CHOICE: one budget is as many judgements, so random search gets new candidates where others
    judge parents again; from scratch it gets so many full trainings, if any, which are to take as long."""
    changed = replace(s, seed=int(seed), **ARMS[arm])
    if changed.strategy == "random":
        changed = replace(changed, population=s.population + s.rounds * s.parents * s.again)
    if arm == "random" and trainings:
        changed = replace(changed, population=trainings, rounds=0, finalists=0, steps=s.final_steps, rows=0)
    return changed

def copying(backbone, tables, rng, counts, mutate=opnas.mutate_inter):
    """opnas.mutate_inter, but a layer that turns into an attention copies another layer's, if there is one."""
    others = [gene for gene in backbone if not kernel_of(gene)]
    return tuple(rng.choice(others) if others and kernel_of(old) and not kernel_of(new) else new
                 for old, new in zip(backbone, mutate(backbone, tables, rng, counts)))

def curve_of(s, log, value):
    """[[pre-training steps so far, value of the best Candidate by its last score], ..] after each judgement but those
    of the last round."""
    judged = [c for c in before_the_last(s, log) if c.number is not None]
    bests = (opnas.best_of(opnas.last_of(judged[:i + 1]), 1) for i in range(len(judged)))
    return [[2 * s.warm + s.steps * (i + 1), round(sum(map(value, best)), 5)] for i, best in enumerate(bests)]

# ---- On the task ----
def trained(s, out, device, key):
    """(score,) of a (seed, arm, steps): an arm's winner trained from scratch. The arms "median", the median candidate
    of op-nas by its score, and "bert" search nothing."""
    (pair, arm, steps), seed, score = key, 100 * int(key[0]), 0.0
    folder = out / f"{pair}-{arm if arm in ARMS else 'op-nas'}"
    opnas.start_worker(folder, device)
    backbone = load_backbone("bert" if arm == "bert" else folder / "best.json", opnas.PROXY.config.layers)
    if arm == "median":
        log = before_the_last(s, [opnas.Candidate(*c) for c in opnas.load(folder / "state.pt")["log"]])
        ranked = opnas.best_of(opnas.last_of(log), len(log))
        backbone = ranked[len(ranked) // 2].backbone
    with contextlib.suppress(Diverged):
        model = opnas.PROXY.model(backbone, seed)
        opnas.PROXY.pretrain(model, int(steps), seed)
        score = statistics.fmean(x for _, x in opnas.PROXY.scores(model, seed, final=True))
    return (score,)

def on_the_task(s, trainings, corpus, glue, out, workers, device, key):
    """(best score before the last round, score of the winner fully trained, seconds of all judgements, curve) of a
    (seed, arm)."""
    (seed, arm), curve, seconds = key, [], 0
    mine = settings_of(seed, arm if arm in ARMS else "op-nas", s, trainings)
    if arm in ARMS:
        folder = out / "-".join(key)
        with mock.patch.object(opnas, "judge_winner", lambda run: None):
            opnas.search(vars(mine) | {"final_seeds": 0}, corpus=corpus, glue=glue, out=str(folder), workers=workers,
                         device=device)
        log = [opnas.Candidate(*c) for c in opnas.load(folder / "state.pt")["log"]]
        curve, seconds = curve_of(mine, log, lambda c: c.score), round(sum(c.seconds for c in log))
    return curve[-1][1] if curve else 0.0, *trained(mine, out, device, (*key, s.final_steps)), seconds, curve

# ---- On landscapes ----
LAYERS, NOISE = 12, 0.04  # the noise is that of a score, its sd half that of the true fitness of random backbones
LANDSCAPES = opnas.SearchSettings(warm=0, population=50, parents=5, children=5, rounds=4, again=0, finalists=0,
                                   steps=1)
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

def on_a_landscape(s, key):
    """(true fitness of the best in the end, curve) of a ("seed family", arm); the search sees it with noise."""
    (seed, family), arm = key[0].split(" ", 1), key[1]
    s, true = settings_of(seed, arm, s), landscape(family, seed)

    def fitness(number, batch, log):  # subtle: the noise is the backbone's, so that it is the same for every arm
        noise = [NOISE * random.Random(f"{seed} {c.backbone}").gauss(0, 1) for c in batch]
        return [replace(c, score=min(1.0, max(0.0, true(c.backbone) + x))) for c, x in zip(batch, noise)]

    with mock.patch.object(opnas, "mutate_inter", copying if arm.endswith("-copy") else opnas.mutate_inter):
        curve = curve_of(s, opnas.evolve(s, LAYERS, fitness), lambda c: true(c.backbone))
    return curve[-1][1], curve

# ---- What they say ----
def pairs(rows, measures, families):
    """Rows of pairs.tsv, two arms of a measure: means, paired difference with its 95 % interval, the least one that
    so many pairs would show with a power of 80 %, share of pairs in which it is above (a tie: half). Family "": all."""
    table = [("measure", "arm", "mean", "other", "its mean", "difference", "+-", "detectable", "above", "pairs")]
    todo = ((measure, family, two) for (measure, arms), family in itertools.product(measures.items(), families)
            for two in itertools.combinations(arms, 2))
    for measure, family, (a, b) in todo:
        found = {(row["arm"], row["pair"]): float(row[measure]) for row in rows if row["pair"].endswith(family)}
        both = [(x, found[b, pair]) for (arm, pair), x in found.items() if arm == a]
        mean, half = interval([x - y for x, y in both])
        above = statistics.fmean((x > y) + (x == y) / 2 for x, y in both)
        x, y, *more = (f"{z:.4f}" for z in (*map(statistics.fmean, zip(*both)), mean, half, 1.43 * half, above))
        table.append((f"{measure} {family}".strip(), a, x, b, y, *more, len(both)))
    return table

def picture(rows):
    """Fig. 6 as SVG: each strategy's mean over the pairs with its 95 % interval, from two pairs on."""
    series = {}
    for arm in dict.fromkeys(row["arm"] for row in rows if row["curve"] != "[]"):
        runs = [json.loads(row["curve"]) for row in rows if row["arm"] == arm]
        columns = [interval([y for _, y in points]) for points in zip(*runs)]
        series[arm] = [x for x, _ in runs[0]], *zip(*((mean, mean - half, mean + half) for mean, half in columns))
    return chart("Search strategies", "pre-training steps; on landscapes candidates", "best so far, mean", series)

def compare(s: opnas.SearchSettings, landscapes: bool = False, seeds: int = 5, corpus: str = "toy/corpus.txt",
            glue: str = "toy/glue", out: str = "runs/compare", trainings: int = 7, longer: int = 0,
            workers: int = 2, device: str = "auto"):
    """Which strategy finds the better backbone for one budget (Fig. 6)? Search with each, train the winners, op-nas'
    median candidate and bert, and compare those of one seed: the folder gets searches.tsv (a row each), pairs.tsv
    (every two) and curves.svg.

    landscapes: made-up fitness functions in place of training; 60 seeds are ten of a family
    seeds: pairs, from --seed on
    trainings: full ones of random search, about the seconds of the others
    longer: steps of one more training of each winner, in longer.tsv; 0: none
    corpus: a folder that `data.py prepare` wrote, or a text file
    glue: the folder that holds CoLA, SST-2, .."""
    out, s = Path(out), replace(LANDSCAPES if landscapes else opnas.SearchSettings(), **s)
    about, known = json.dumps({"landscapes": landscapes, "trainings": trainings, **asdict(s)}), out / "settings.json"
    if known.exists():
        data.check_same(json.loads(known.read_text()), json.loads(about), out)
    data.write_beside(known, about)
    names, arms, families = map(str, range(s.seed, s.seed + seeds)), [*ARMS][:4], [""]
    measures = {"best": arms[:3], "winner": [*arms, "median", "bert"]}
    head, job = ("winner", "seconds"), functools.partial(on_the_task, s, trainings, corpus, glue, out, workers, device)
    if landscapes:
        measures, head = {"best": [arm for arm in ARMS if arm != "random+ws"]}, ()
        families = ["", *FAMILIES][:seeds + 1]
        names, job = map("{} {}".format, names, itertools.cycle(FAMILIES)), functools.partial(on_a_landscape, s)
    head, todo = ("pair", "arm", "best", *head, "curve"), [*itertools.product(names, [*measures.values()][-1])]
    rows = [dict(zip(head, row)) for row in measured(out / "searches.tsv", head, todo, job, 1, ())]
    table = pairs(rows, measures, families)
    if longer:
        start = out / f"{s.seed}-op-nas", device
        more = measured(out / "longer.tsv", ("pair", "arm", "steps", "score"), [(*key, str(longer)) for key in todo],
                        functools.partial(trained, s, out, device), workers, start)
        table += pairs([dict(zip(("pair", "arm", "steps", "longer"), row)) for row in more],
                       {"longer": measures["winner"]}, [""])[1:]
    print(tsv(*(row for row in table if " " not in row[0])), end="")  # those of all families
    data.write_beside(out / "pairs.tsv", tsv(*table))
    data.write_beside(out / "curves.svg", picture(rows))

if __name__ == "__main__":
    data.run(__doc__, compare, usual=compare)
