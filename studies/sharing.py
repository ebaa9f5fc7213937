"""Does weight sharing pay (Sec. 3.2), and do a search's scores foretell those of full training (Fig. 8)?

New backbones, half random, half mutants of a search's best, train from its super-net's weights (warm) and from random
ones (scratch). Half an hour at toy size on two cores; the same command again goes on, and writes RUN/sharing:

    python studies/sharing.py --run runs/search
"""
import collections
import contextlib
import math
import random
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
from autobert import Diverged  # noqa: E402
import draw  # noqa: E402
from draw import chart, measured, tsv  # noqa: E402
from glue import kendall_tau  # noqa: E402
from supernet import SuperNet  # noqa: E402

# ---- Backbones and their trainings ----
# a training, a row of points.tsv. kind: random or mutant; start: warm or scratch; mlm: nats, 99 if it diverged
Point = collections.namedtuple("Point", "kind start steps backbone mlm score seconds")

def newcomers(s, log, count):
    """[(kind, backbone), ..] that the log has not and the probe lets pass, by turns random ones and mutants. These have
    the parents and UCB tables that the search's next round would have."""
    M, seen, found, rng = opnas.last_of(log), {c.backbone for c in log}, [], random.Random(f"sharing {s.seed}")
    tables = opnas.OperationPriority(M, s.alpha, math.inf if s.strategy == "ea+ws" else s.tau)
    while len(found) < count:
        kind, parent = ("random", "mutant")[len(found) % 2], rng.choice(opnas.best_of(M, s.parents))
        backbone = (opnas.random_backbone(opnas.PROXY.config.layers, rng) if kind == "random" else
                    opnas.mutate(parent.backbone, tables, rng, seen, collections.Counter()))
        if backbone not in seen and not opnas.PROXY.probe(backbone):
            found.append((kind, " | ".join(backbone)))
        seen.add(backbone)
    return found

def trained(key):
    """(mlm, score, seconds) of a (kind, start, steps, backbone). Warm it is what the search would find, were it next;
    from scratch it trains on the same batches."""
    (_, start, steps, backbone), proxy, begun, mlm, score = key, opnas.PROXY, time.time(), 99, 0.0
    genes, seed, state = tuple(backbone.split(" | ")), proxy.s.seed, opnas.load(proxy.folder / "state.pt")
    warm = SuperNet(proxy.config, slots=state["slots"]).child
    model = warm(genes) if start == "warm" else proxy.model(genes, seed)
    with contextlib.suppress(Diverged):
        mlm, _ = proxy.pretrain(model, int(steps), seed, state["offset"])
        score = float(np.mean([x for _, x in proxy.scores(model, seed, proxy.s.rows)]))
    return mlm, score, time.time() - begun

# ---- What they say ----
def steps_to_reach(curve, score):
    """Steps at which the running maximum of [(steps, score), ..] first reaches a score; None if it never does. Between
    two points the maximum is a line over log steps. Example: [(100, 0.2), (400, 0.4)], 0.3 -> 200.0"""
    best, before = -math.inf, None
    for steps, value in sorted(curve):
        if value >= score:
            return before * (steps / before) ** ((score - best) / (value - best)) if before else float(steps)
        best, before = max(best, value), steps
    return None

def savings(ways, own):
    """A sentence: the steps that training from scratch takes to the scores of `own` warm ones."""
    found, scratch = [], [way for (start, _), way in sorted(ways.items()) if start == "scratch"]
    for warm, *points in zip(ways["warm", own], *scratch):
        steps = steps_to_reach([(p.steps, p.score) for p in points], warm.score)
        found.append(((steps or points[-1].steps) / own, steps is None, steps == points[0].steps))
    factors, never, at_once = zip(*found)
    low, median, high = np.quantile(factors, (0.25, 0.5, 0.75))
    return (f"From scratch it takes {median:.1f} times the steps (quartiles {low:.1f} and {high:.1f}) to the scores of "
            f"{own} warm ones.\nOf {len(found)} backbones {sum(never)} never get there (lower bounds), {sum(at_once)} "
            "at once (upper bounds).\nThe paper saves 80 to 87 % of the GPU hours: a factor of 5 to 8.\n")

def agreement(way, full, what):
    """Kendall's tau-b of "score" or "mlm" in two lists of Points, a 95 % interval by resampling backbones, and p."""
    x, y = (np.array([getattr(p, what) for p in points]) for points in (way, full))
    return "{:6.2f} [{:5.2f},{:5.2f}] p={:.3f}".format(*draw.agreement(x, y), kendall_tau(x, y)[1])

def comparison(ways, full):
    """A table: of each start and steps means, and how the ranking agrees with that of the Points `full`."""
    lines = [f"   start  steps  score    MLM  seconds   tau-b with {full[0].steps} steps, n = {len(full)}: score; MLM"]
    for (start, steps), way in sorted(ways.items()):
        mlm, score, seconds = (np.mean(column) for column in zip(*(p[-3:] for p in way)))
        ranks = "".join(agreement(way, full, what) for what in ("score", "mlm") if way != full)
        lines.append(f"{start:>8}{steps:7}{score:7.3f}{mlm:7.3f}{seconds:9.1f}   {ranks}")
    return "\n".join([*lines, "", ""])

def pictures(ways, own, full):
    """{file: SVG}: scores against steps, and Fig. 8: each backbone after `own` warm steps and fully trained."""
    warm, rows = ways["warm", own], [(start, steps, *np.quantile([p.score for p in way], (0.5, 0.25, 0.75)))
                                     for (start, steps), way in sorted(ways.items())]
    curves = {start: tuple(zip(*(row[1:] for row in rows if row[0] == start))) for start in ("warm", "scratch")}
    dots = [(w.score, f.score, "s0" if w.kind == "random" else "s1", w.backbone) for w, f in zip(warm, full)]
    return {"sharing.svg": chart("Does sharing pay?", "pre-training steps", "score, quartiles", curves, log=True),
            "fidelity.svg": chart(f"Kendall's tau-b {agreement(warm, full, 'score')}, n = {len(full)}",
                                  f"score after {own} warm steps", f"after {full[0].steps} from scratch",
                                  {"random": ((), ()), "mutant": ((), ())}, dots)}

def sharing(run: str = "runs/search", backbones: int = 12, warm: tuple[float, ...] = (0.5, 1, 2),
            scratch: tuple[float, ...] = (1, 2, 4, 8, 16, 32), workers: int = 2, device: str = "auto"):
    """Does weight sharing pay (Sec. 3.2), and do search scores foretell those of full training (Fig. 8)? Train new
    backbones from a finished search's super-net and from scratch, and compare, in RUN/sharing.

    run: the search's folder
    backbones: half random, half mutants of the best
    warm: steps from the super-net, in multiples of a candidate's; 1 is always among them
    scratch: steps from random weights; the most is the full training"""
    folder, out = Path(run), Path(run) / "sharing"
    opnas.start_worker(folder, device)
    s, log = opnas.PROXY.s, [opnas.Candidate(*c) for c in opnas.load(folder / "state.pt")["log"]]
    log = draw.before_the_last(s, log)
    steps = [("scratch", x) for x in scratch] + [("warm", x) for x in {1, *warm}]
    todo = [(kind, start, str(int(s.steps * x)), backbone) for kind, backbone in newcomers(s, log, backbones)
            for start, x in steps]
    rows, ways = measured(out / "points.tsv", Point._fields, todo, trained, workers, (folder, device)), {}
    for kind, start, steps, backbone, *found in sorted(rows):
        ways.setdefault((start, int(steps)), []).append(Point(kind, start, int(steps), backbone, *map(float, found)))
    full = ways[max(way for way in ways if way[0] == "scratch")]
    text = comparison(ways, full) + savings(ways, s.steps)
    for name, content in {"summary.txt": text, **pictures(ways, s.steps, full)}.items():
        data.write_beside(out / name, content)
    print(text)

if __name__ == "__main__":
    data.run(__doc__, sharing, usual=sharing)
