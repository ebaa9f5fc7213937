"""How many random backbones give every token nearly the same hidden state, and do these ever learn?

With post-LN a layer whose output is large and alike for all tokens erases what sets them apart.
The paper says nothing of it (Algorithm 1 draws at random); opnas.Proxy.probe turns such backbones away before training.
Random backbones of a preset's depth are probed, and some over the whole range are trained at the toy's width. About
25 minutes on two cores; the same command again goes on, and writes OUT/collapse.txt:

    python studies/collapse.py --layers 12 --draws 200 --train 20
"""
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
from draw import begin, measured  # noqa: E402
from glue import kendall_tau  # noqa: E402

def at_depth(layers):
    """The process's Proxy, with so many layers."""
    opnas.PROXY.config = replace(opnas.PROXY.config, layers=layers)
    return opnas.PROXY

@torch.no_grad()
def varying(backbone):
    """The share of the hidden states, as squares, that varies by token, at initialisation; 0 if not finite."""
    proxy = at_depth(len(backbone))
    batch = autobert.to_device(autobert.piece(proxy.held_out.batch(0)), torch.device("cpu"))
    hidden = proxy.model(backbone, proxy.s.seed).eval().encoder(batch["ids"], batch["segments"], batch["mask"])
    texts = [x[ids != data.PAD] for x, ids in zip(hidden, batch["ids"])]  # (real tokens, d) each
    rest = sum((x - x.mean(0)).square().sum() for x in texts)
    return float((rest / sum(x.square().sum() for x in texts)).nan_to_num(0.0))

def trained(key):
    """(share of varying, held-out MLM and NSP losses) of a (number, backbone), trained from scratch."""
    genes = tuple(key[1].split(" | "))
    proxy = at_depth(len(genes))
    try:
        losses = proxy.pretrain(proxy.model(genes, proxy.s.seed), proxy.s.steps, proxy.s.seed)
    except autobert.Diverged:
        losses = 99.0, 99.0
    return varying(genes), *losses

def sharpness(layers, draws, seed=0):
    """Lines: how sharp p is once so many backbones have passed the probe, if those turned away count and if not."""
    rng, log = random.Random(f"sharpness {seed}"), []
    while sum(c.number is not None for c in log) < draws:
        backbone = opnas.random_backbone(layers, rng)
        away = opnas.PROXY.probe(backbone)
        number, score = (None, None) if away else (len(log), rng.gauss(0.5, 0.1))
        log.append(opnas.Candidate(number, 0, None, backbone, score))
    passed = opnas.last_of(log)
    return [f"{len(passed)} of {len(log)} random backbones pass the probe"] + [
        f"what was turned away {how}: perplexity of ops %.2f (N %d)" % opnas.OperationPriority(found).perplexity()
        for how, found in (("counts", log), ("does not count", passed))]

def summary(shares, rows, unigram):
    """Lines: random backbones below thresholds; of the trained ones below and above, how many learn."""
    lines = ["share of varying below  random backbones  of these learn  of the others learn"]
    share, mlm, nsp = np.array([[float(x) for x in row[2:]] for row in rows]).T
    learnt = mlm < unigram - 0.05
    for t in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7):
        cells = f"{np.mean(np.array(shares) < t):17.0%}"
        for part in (learnt[share < t], learnt[share >= t]):
            cells += f"{part.sum():9} of {len(part):<6}"
        lines.append(f"{t:22.2f}{cells}")
    return [*lines, "Kendall's tau-b of the share with -MLM %.2f, with -NSP %.2f, n = %d" % (
        kendall_tau(share, -mlm)[0], kendall_tau(share, -nsp)[0], len(rows))]

def collapse(layers: int = 12, draws: int = 200, train: int = 20, steps: int = 1000, out: str = "runs/collapse",
             corpus: str = "toy/corpus.txt", workers: int = 2):
    """How many random backbones give every token nearly the same hidden state, and do these ever learn? Probes random
    ones, and trains some.

    layers: of a backbone; 12 in the presets small and paper
    draws: random backbones to probe
    train: how many of them to train, evenly over the range
    steps: of these trainings"""
    toy, folder = opnas.PRESETS["toy"], Path(out)
    s = replace(toy, steps=steps, tasks=(), collapse=opnas.PAPER.collapse, pretrain=replace(toy.pretrain, lr=1e-3))
    begin(folder, s, corpus, "")
    rng = random.Random(f"collapse {layers}")
    found = sorted((varying(backbone), backbone) for backbone in (
        opnas.random_backbone(layers, rng) for _ in range(draws)))
    rest, todo = list(found), []
    for i in range(train):  # evenly by share, for most have next to none
        nearest = min(rest, key=lambda x: abs(x[0] - found[-1][0] * i / (train - 1)))
        rest.remove(nearest)
        todo.append((str(i), " | ".join(nearest[1])))
    head = ("number", "backbone", "varying", "mlm", "nsp")
    rows = measured(folder / "rows.tsv", head, todo, trained, workers, (folder, "cpu"))
    words = np.bincount(opnas.PROXY.corpus.tokens) / len(opnas.PROXY.corpus.tokens)
    unigram = -(words[words > 0] * np.log(words[words > 0])).sum()
    lines = summary([x for x, _ in found], rows, unigram) + sharpness(layers, max(4, draws // 10))
    data.write_beside(folder / "collapse.txt", "\n".join(lines) + "\n")
    print(*lines, sep="\n")

if __name__ == "__main__":
    data.run(__doc__, usual=collapse)
