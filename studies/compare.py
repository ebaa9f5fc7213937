"""Which strategy finds the better backbone for one budget (Fig. 6): op-nas, uniform evolution or random search?

All run with the same seeds. Those that share weights have as many judgements; random search has full trainings from
scratch, --trainings of them, which take about as long. Each winner is then trained from scratch. The same command again
goes on. At toy size half an hour of a core a seed (studies/landscapes.py needs no training):

    python studies/compare.py --seeds 5 --out runs/compare
"""
import contextlib
import functools
import itertools
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
from autobert import Diverged, load_backbone  # noqa: E402
from draw import before_the_last, chart, measured, pairs, tsv  # noqa: E402
from glue import interval  # noqa: E402

# ---- The arms ----
ARMS = {"op-nas": {}, "ea+ws": {"strategy": "ea"}, "random+ws": {"strategy": "random"},
        "random": {"strategy": "random", "warm": 0}}

def settings_of(seed, arm, s, trainings):
    """An arm's settings. CHOICE: one budget is as many judgements, so random search gets new candidates where others
    judge parents again; from scratch it gets so many full trainings, which are to take as long."""
    changed = replace(s, seed=int(seed), **ARMS[arm])
    if changed.strategy == "random":
        changed = replace(changed, population=s.population + s.rounds * s.parents * s.again)
    if arm == "random":
        changed = replace(changed, population=trainings, rounds=0, finalists=0, steps=s.final_steps, rows=0)
    return changed

def curve_of(s, log):
    """[[pre-training steps so far, best last score], ..] after each judgement but those of the last round."""
    judged = [c for c in before_the_last(s, log) if c.number is not None]
    bests = (opnas.best_of(opnas.last_of(judged[:i + 1]), 1) for i in range(len(judged)))
    return [[2 * s.warm + s.steps * (i + 1), round(sum(c.score for c in best), 5)] for i, best in enumerate(bests)]

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
        curve, seconds = curve_of(mine, log), round(sum(c.seconds for c in log))
    return curve[-1][1] if curve else 0.0, *trained(mine, out, device, (*key, s.final_steps)), seconds, curve

# ---- What they say ----
def picture(rows):
    """Fig. 6 as SVG: each strategy's mean over the pairs with its 95 % interval, from two pairs on."""
    series = {}
    for arm in dict.fromkeys(row["arm"] for row in rows if row["curve"] != "[]"):
        runs = [json.loads(row["curve"]) for row in rows if row["arm"] == arm]
        columns = [interval([y for _, y in points]) for points in zip(*runs)]
        series[arm] = [x for x, _ in runs[0]], *zip(*((mean, mean - half, mean + half) for mean, half in columns))
    return chart("Search strategies", "pre-training steps", "best so far, mean", series)

def compare(s: opnas.SearchSettings, seeds: int = 5, corpus: str = "toy/corpus.txt",
            glue: str = "toy/glue", out: str = "runs/compare", trainings: int = 7, longer: int = 0,
            workers: int = 2, device: str = "auto"):
    """Which strategy finds the better backbone for one budget (Fig. 6)? Search with each, train the winners, op-nas'
    median candidate and bert, and compare them seed by seed. Writes searches.tsv (a search a row), pairs.tsv (two arms
    a row) and curves.svg.

    seeds: pairs, from --seed on
    trainings: full ones of random search, about the seconds of the others
    longer: steps of one more training of each winner, in longer.tsv; 0: none
    corpus: a folder that `data.py prepare` wrote, or a text file
    glue: the folder that holds CoLA, SST-2, .."""
    out, s = Path(out), replace(opnas.SearchSettings(), **s)
    about, known = json.dumps({"trainings": trainings, **asdict(s)}), out / "settings.json"
    if known.exists():
        data.check_same(json.loads(known.read_text()), json.loads(about), out)
    data.write_beside(known, about)
    arms, names = [*ARMS, "median", "bert"], map(str, range(s.seed, s.seed + seeds))
    head, todo = ("pair", "arm", "best", "winner", "seconds", "curve"), [*itertools.product(names, arms)]
    job = functools.partial(on_the_task, s, trainings, corpus, glue, out, workers, device)
    rows = [dict(zip(head, row)) for row in measured(out / "searches.tsv", head, todo, job, 1, ())]
    twos = [*itertools.combinations(arms, 2)]
    table = pairs(rows, {"best": [*itertools.combinations(arms[:3], 2)], "winner": twos})
    if longer:
        start = out / f"{s.seed}-op-nas", device
        more = measured(out / "longer.tsv", ("pair", "arm", "steps", "score"), [(*key, str(longer)) for key in todo],
                        functools.partial(trained, s, out, device), workers, start)
        table += pairs([dict(zip(("pair", "arm", "steps", "longer"), row)) for row in more], {"longer": twos})[1:]
    print(tsv(*table), end="")
    data.write_beside(out / "pairs.tsv", tsv(*table))
    data.write_beside(out / "curves.svg", picture(rows))

if __name__ == "__main__":
    data.run(__doc__, compare, usual=compare)
