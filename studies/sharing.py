"""Do brief scores from shared weights foretell full training (Fig. 8)?

The paper scores a candidate after 40,000 steps from shared weights (App. D.1) and calls the ranking's correlation high
(Fig. 8). Here every backbone of a finished studies/instrument.py is scored in several brief ways, and Kendall's tau-b
with its full score is set beside the seconds of one candidate, without those of the net. About half an hour on two
cores; the same command again goes on, and writes RUN/proxy.tsv:

    python studies/sharing.py --run runs/instrument

A way is NET:STEPS:ROWS:LR, the pre-training steps, the training rows of a task (0: all) and the peak learning rate. NET
is 0 (random weights) or what warms a super-net, with steps: r500 a random backbone, o500 one with the other branch in
every layer, k1000 conv 65 in every layer, c1000 random convolutions, b1000 bert. r500+o500: one after the other;
r500xo500: both from the same weights; @1 at the end: other random numbers.
"""
import random
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
from autobert import CONVOLUTIONS, PRETRAIN, kernel_of, load_backbone  # noqa: E402
from draw import agreement, measured  # noqa: E402
from glue import kendall_tau  # noqa: E402
from supernet import SuperNet, write_order  # noqa: E402

FOUR = "r500+o500+r500+o500"
WAYS = (f"{FOUR}:50:1000", f"{FOUR}:100:1000", f"{FOUR}:200:1000:1e-3", f"{FOUR}@1:100:1000", "k1000+b1000@13:100:1000",
        f"{FOUR}:100:1000".replace("+", "x"), "0:250:1000", "0:500:1000")

def warming(kind, layers, rng, last):
    """A backbone that is to warm a super-net."""
    if kind in "bk":
        return load_backbone("bert", layers) if kind == "b" else CONVOLUTIONS[-1:] * layers
    if kind == "c":
        return [rng.choice(CONVOLUTIONS) for _ in range(layers)]
    while opnas.PROXY.probe(backbone := opnas.random_backbone(layers, rng)) or kind == "o" and any(
            bool(kernel_of(a)) == bool(kernel_of(b)) for a, b in zip(backbone, last)):
        pass
    return backbone

def warmed(key):
    """Write RUN/net-NET.pt, the slots of a super-net once backbones have warmed it; its seconds."""
    (net,), proxy, begun, backbone = key, opnas.PROXY, time.process_time(), None
    together, offset, seed = "x" in net, 0, int((net.split("@") + ["0"])[1])
    shared, rng, done = SuperNet(proxy.config, seed), random.Random(f"proxy {seed}"), []
    for kind, steps in re.findall(r"([rokcb])(\d+)", net):
        child = shared.child(backbone := warming(kind, proxy.config.layers, rng, backbone))
        losses = proxy.pretrain(child, int(steps), seed, offset)
        if not together:
            shared.absorb(child.state_dict())
            offset += int(steps)
        done.append((-sum(losses), child))
    for i in write_order([score for score, _ in done]) if together else ():
        shared.absorb(done[i][1].state_dict())
    opnas.save(proxy.folder / f"net-{net}.pt", shared.slots)
    return (time.process_time() - begun,)

def scored(key):
    """(seconds, mlm, nsp, score of each task) of a (way, backbone)."""
    (way, backbone), proxy, begun = key, opnas.PROXY, time.process_time()
    net, steps, rows, *lr = way.split(":")
    proxy.s = replace(proxy.s, pretrain=replace(proxy.s.pretrain, lr=float((lr or [PRETRAIN["toy"].lr])[0])))
    genes, slots = tuple(backbone.split(" | ")), opnas.load(proxy.folder / f"net-{net}.pt")
    model = SuperNet(proxy.config, slots=slots).child(genes) if net != "0" else proxy.model(genes, proxy.s.seed)
    losses = proxy.pretrain(model, int(steps), proxy.s.seed, offset=5000)
    tasks = [score for _, score in proxy.scores(model, proxy.s.seed, int(rows))]
    return time.process_time() - begun, *losses, *tasks

def summary(found, full):
    """Lines: for each way tau-b of score, score - NSP loss, NSP and MLM, over all and within the better half.
    found: {way: (backbones, cells)}; full: (backbones,) scores of full training."""
    better, lines = full >= np.median(full), [f"{len(full)} backbones; tau-b [95 %] over all, then in the better half"]
    lines.append(f"{'way':35}seconds" + "".join(f"{x:>28}" for x in ("score", "score - NSP loss", "NSP", "MLM")))
    for way, x in found.items():
        score, mlm, nsp = x[:, 3:].mean(1), x[:, 1], x[:, 2]
        cells = ["{:6.2f} [{:.2f},{:.2f}]".format(*agreement(y, full)) + "{:6.2f}".format(
                 kendall_tau(y[better], full[better])[0]) for y in (score, score - nsp, -nsp, -mlm)]
        lines.append(f"{way:35}{x[:, 0].mean():7.1f}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)

def sharing(run: str = "runs/instrument", ways: tuple[str, ...] = WAYS, workers: int = 2):
    """Do brief scores from shared weights foretell full training (Fig. 8)? Scores the instrument's backbones in several
    ways, and prints their rank correlations with full training.

    run: the folder of studies/instrument.py
    ways: NET:STEPS:ROWS:LR, as the file's first lines say"""
    folder = Path(run)
    rows = [line.split("\t") for line in (folder / "rows.tsv").read_text().splitlines()]
    full, start = {}, (folder, "cpu")
    for _, seed, backbone, _, _, _, *scores in rows[1:]:
        if seed != "0":  # whose random numbers the brief trainings have, too
            full.setdefault(backbone, []).append(np.mean([float(x) for x in scores]))
    opnas.start_worker(*start)
    nets = dict.fromkeys((way.split(":")[0],) for way in ways)
    measured(folder / "nets.tsv", ["net", "seconds"], list(nets), warmed, workers, start)
    head = ["way", "backbone", "seconds", "mlm", "nsp", *opnas.PROXY.s.tasks]
    done = measured(folder / "proxy.tsv", head, [(way, b) for way in ways for b in full], scored, workers, start)
    cells = {(way, b): list(map(float, more)) for way, b, *more in done}
    found = {way: np.array([cells[way, b] for b in full]) for way in ways}
    text = summary(found, np.array([np.mean(x) for x in full.values()]))
    data.write_beside(folder / "proxy.txt", text + "\n")
    print(text)

if __name__ == "__main__":
    data.run(__doc__, usual=sharing)
