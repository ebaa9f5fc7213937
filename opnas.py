"""Operation-Priority NAS (paper Sec. 3.2, Algorithm 1, Eq. 3): the search, from raw text to a judged backbone.

An evolution over backbones. Random ones are scored first; then, round by round, the best are mutated, the mutants
start from the super-net's weights, pre-train for a short while, are fine-tuned on a few tasks, and their mean score is
their fitness. What a mutation puts in is drawn by upper confidence bounds (UCB): per position in an attention's path
how well each op has done there, per layer how well each kernel has.

    M         all candidates ever scored (the population; nothing ages)      K    parents of a round
    u_i       UCB score of op or kernel i (Eq. 3)                           p    softmax(u / tau), what is drawn
    mu_i      mean score of the candidates with i at that place             N_i  how often it stood there, N their sum
    rejected  a candidate turned away early: collapsed, diverged or no learning; it never enters M

    python opnas.py                       # toy size, made-up language: search, then judge the winner beside BERT
    python opnas.py --corpus TEXT ... --glue FOLDER --tasks CoLA,RTE
    python opnas.py resume RUN            # go on with a run that was stopped
    python opnas.py report RUN            # what a run found, so far: as text, and as RUN/report.html
    python opnas.py sharing RUN           # does weight sharing pay? New backbones from its super-net and from scratch
    python opnas.py ablations RUN         # the parts of a backbone: several trained alike, over several seeds (Table 5)
    python opnas.py compare               # strategies with the same seeds (Fig. 6); --landscapes: in two minutes
    torchrun --nproc_per_node 8 opnas.py  # candidates judged by eight processes, also on several machines

Read last. The method itself: Settings to The proxy task. Then what runs it (many candidates at once, a run and its
folder), and four ways to look at it: Report, Does sharing pay, Is UCB worth it, What matters in a backbone.
"""
import argparse
import collections
import contextlib
import functools
import html
import itertools
import json
import math
import os
import platform
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed

import autobert
import data
import glue
import ops
from autobert import KERNELS, Diverged, kernel_of
from data import UserError
from glue import option
from supernet import SuperNet, write_back


# ---- Settings ----

STRATEGIES = ("op-nas", "ea+ws", "ea-copy", "op-nas-copy", "random+ws", "random")


@dataclass(frozen=True)
class SearchSettings:
    """All that decides a search's outcome, beside its corpus and task files."""
    size: str = option("toy", "model size", choices=tuple(autobert.SIZES))
    vocab: int = option(data.TOY_VOCAB, "sentencepiece vocabulary")
    tasks: str = option("", "tasks that make the score, e.g. CoLA,RTE; default: the toy language's three")
    strategy: str = option("op-nas", "how candidates come about (Fig. 6); ea-copy, op-nas-copy: a flip to attention "
                         "copies another layer's", choices=STRATEGIES)
    population: int = option(12, "random backbones at the start, |M| (Alg. 1 l.1)")
    parents: int = option(2, "K, the best that are mutated each round (l.4)")
    children: int = option(2, "mutants of each parent (l.5)")
    rounds: int = option(4, "rounds of mutation (l.3)", 0)
    alpha: float | None = option(None, "weight of the UCB bonus; default: 0.1 standard deviations of the scores",
                                 0, 1e6)
    tau: float | None = option(None, "temperature of p = softmax(u / tau); 1: the literal paper; default: 0.1 sd",
                               0, 1e6)
    write_back: str = option("best", "what a slot gets of a round's children: the best one's weights, or the mean",
                           choices=("best", "mean"))
    transforms: str = option("on", "small kernels are transformed centres of the 65 taps; off: the bare centres",
                           choices=("on", "off"))
    collapse: float = option(0.5, "least token-varying share of the last hidden states before training; 0: any", 0, 1)
    least_gain: float = option(0.05, "nats below the unigram entropy that a learner's held-out MLM loss must end",
                               -math.inf)
    select: str = option("dev", "score candidates on the tasks' dev rows, or on a tenth of train",
                       choices=("dev", "train"))
    rows: int = option(1000, "most training rows of a task, in search and final training; 0: all", 0)
    steps: int = option(100, "pre-training steps of a candidate")
    cold: int = option(5, "times as many steps for candidates of a super-net that nobody has written to yet")
    final_steps: int = option(2000, "pre-training steps of the winner, bert and autobert-zero, each from scratch")
    final_seeds: int = option(1, "seeds of that final training")
    batch: int = option(16, "sequences a pre-training step")
    n: int = option(40, "tokens a sequence", 5)
    lr: float = option(2e-3, "peak learning rate of pre-training", 0)
    warmup: float = option(0.1, "share of the pre-training steps with rising learning rate", 0, 1)
    beta2: float = option(0.98, "Adam's beta_2 in pre-training", 0, 0.999999)
    epochs: int = option(3, "epochs of fine-tuning")
    finetune_lr: float = option(1e-3, "peak learning rate of fine-tuning", 0)
    finetune_batch: int = option(16, "rows a fine-tuning step")
    finetune_warmup: float = option(0.1, "share of the fine-tuning steps with rising learning rate", 0, 1)
    seed: int = option(0, "every random draw of the run comes from it", 0, data.SEEDS - 10**6)


PRESETS = {
    "toy": SearchSettings(),
    # App. D.1: 100 + 27 * 25 = 775 candidates, 24,000 hours on V100s
    "paper": SearchSettings("base", 30_000, ",".join(glue.TASKS), population=100, parents=5, children=5, rounds=27,
                            alpha=0.01, rows=0, steps=40_000, cold=1, final_steps=1_000_000, batch=160, n=128,
                            lr=2e-4, warmup=0.02, beta2=0.999, finetune_lr=2e-5, finetune_batch=32,
                            finetune_warmup=0.01),
}
# for an afternoon on one GPU: 150 candidates, the tasks with few rows
PRESETS["small"] = replace(PRESETS["paper"], size="small", tasks="CoLA,MRPC,RTE,STS-B", population=50, rounds=4,
                           alpha=None, steps=2000, cold=5, final_steps=40_000, batch=64, lr=5e-4)


def check_settings(s):
    """The settings, with the toy language's tasks if none are given; UserError with the first one out of range."""
    for f in fields(s):
        value, least, most, choices = getattr(s, f.name), *(f.metadata[key] for key in ("least", "most", "choices"))
        if f.type is str:
            fits = value in choices if choices else isinstance(value, str)
            wanted = f"one of {', '.join(choices)}" if choices else "text"
        else:
            fits = isinstance(value, int if f.type is int else (int, float)) and least <= value <= most
            wanted = f"{'an integer' if f.type is int else 'a number'} from {least}" + f" to {most}" * (most < math.inf)
        if not (fits and value not in (math.inf, -math.inf) or value is f.default is None):
            raise UserError(f"--{f.name.replace('_', '-')} {value!r}: expected {wanted}")
    s = replace(s, tasks=s.tasks or ",".join(data.TOY_SEARCH_TASKS))
    tasks = [glue.find_task(task).name for task in s.tasks.split(",")]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"--tasks {s.tasks}: a task is named twice")
    if s.rows == 1 and s.select == "train":
        raise UserError("--rows 1 --select train: expected at least 2 rows, to hold one out")
    if s.n > autobert.SIZES[s.size].positions:
        raise UserError(f"--n {s.n}: size {s.size} has {autobert.SIZES[s.size].positions} positions")
    return s


# ---- UCB (Eq. 3) ----


class OperationPriority:
    """What has done well where: a table of ops per position of an attention's path, a table of kernels per layer.

    The position tables are shared by all layers; a path of length k uses the first k of them. A place is a position
    (an int) or ("layer", i). mu and N rest on all candidates ever observed.
    CHOICE: an op is drawn for the position where it grows or is put in, and counted at its position in the canonical
    path, which may be another; the paper does not say how a graph becomes a path.
    """

    def __init__(self, alpha=None, tau=None):
        self.alpha, self.tau = alpha, tau
        self.scores = []  # of M
        self.tables = collections.defaultdict(lambda: collections.defaultdict(list))  # place -> choice -> scores
        self.drawn = {}  # place -> p, until the next observation

    def observe(self, backbone, score):
        """Count a candidate in (l.12). score None: rejected; it counts with the worst score so far."""
        if score is None:
            score = min(self.scores, default=0.0)  # CHOICE: what was turned away is evidence against its ops, too
        else:
            self.scores.append(score)
        for layer, gene in enumerate(backbone):
            if kernel := kernel_of(gene):
                self.tables["layer", layer][kernel].append(score)
            else:
                for position, (op, *_) in enumerate(ops.parse(gene)):
                    self.tables[position][op].append(score)
        self.drawn.clear()

    def ucb(self, place):
        """{choice: u} at a place. u_i = mu_i + alpha * sqrt(2 ln N / N_i)  (Eq. 3)"""
        table = self.tables.get(place, {})
        total = sum(map(len, table.values()))
        alpha = 0.1 * self.spread() if self.alpha is None else self.alpha  # CHOICE: 0.01 (App. D.1) in preset paper
        # CHOICE: what was never sampled here gets the place's mean and no bonus. An infinite one would force ops that
        # can never be legal at a position, again and again.
        unseen = sum(map(sum, table.values())) / total if total else 0.0
        return {i: statistics.fmean(table[i]) + alpha * math.sqrt(2 * math.log(total) / len(table[i]))
                if i in table else unseen for i in (ops.OPS if isinstance(place, int) else KERNELS)}

    def p(self, place):
        """{choice: probability} at a place: softmax(u / tau).

        DEVIATION: the paper has no tau, that is tau = 1; on scores in [0, 1] this is nearly uniform sampling.
        """
        if place not in self.drawn:
            u = self.ucb(place)
            tau, top = 0.1 * self.spread() if self.tau is None else self.tau, max(u.values())
            if not tau:  # greedy if that was asked for; uniform while all scores are the same
                weight = {i: float(u_i == top or self.tau is None) for i, u_i in u.items()}
            else:
                weight = {i: math.exp((u_i - top) / tau) for i, u_i in u.items()}
            self.drawn[place] = {i: w / sum(weight.values()) for i, w in weight.items()}
        return self.drawn[place]

    def draw(self, place, rng):
        """An op or kernel by p."""
        p = self.p(place)
        return rng.choices(list(p), list(p.values()))[0]

    def spread(self):
        """Standard deviation of the scores in M."""
        return statistics.pstdev(self.scores) if self.scores else 0.0

    def perplexity(self, kind=int):
        """(mean perplexity of p over the places seen, sum of N_i): how sharp the draws are, on how much they rest."""
        places = [place for place in self.tables if isinstance(place, kind)]
        entropies = [-sum(p * math.log(p) for p in self.p(place).values() if p) for place in places]
        counted = sum(len(scores) for place in places for scores in self.tables[place].values())
        choices = float(len(ops.OPS if kind is int else KERNELS))
        return (statistics.fmean(map(math.exp, entropies)) if places else choices), counted


def tables_of(settings, candidates=()):
    """A search's tables after these Candidates. ea+ws and ea-copy draw uniformly, that is with tau = infinity."""
    tables = OperationPriority(settings.alpha, math.inf if settings.strategy.startswith("ea") else settings.tau)
    observe(tables, candidates)
    return tables


def observe(tables, candidates):
    """Count Candidates in, round by round; the rejected come last in theirs, when the worst score is known (l.12)."""
    for c in sorted(candidates, key=lambda c: (c.round, c.score is None)):
        tables.observe(c.backbone, c.score)


def best_of(candidates, k):
    """The K best Candidates of all that have a score (l.4)."""
    return sorted((c for c in candidates if c.score is not None), key=lambda c: (-c.score, c.number))[:k]


# ---- Mutation (Alg. 1 l.6 and l.7) ----


def random_backbone(layers, rng):
    """Each layer a convolution or an attention with p = 1/2, kernel uniform (l.1)."""
    return tuple(f"conv {rng.choice(KERNELS)}" if rng.random() < 0.5 else ops.formula(ops.random_dag(rng))
                 for _ in range(layers))


def grow(tables, rng, counts):
    """A new attention, every op drawn from p at the position where it grows; after 60 failures a uniform one."""
    for _ in range(60):
        dag = ops.draw(rng, tables.p)
        if ops.why_illegal(dag) is None:
            return ops.formula(dag)
    counts["uniform growth"] += 1
    return ops.formula(ops.random_dag(rng))


def mutate_inter(backbone, tables, rng, counts, copy=False):
    """MutationInterLayer (l.6): with p = 1/2 flip the type of a uniformly chosen layer, its content drawn by UCB.

    DEVIATION: the paper's is random; here what the new layer holds is drawn from the tables like any op or kernel.
    copy: a new attention is instead the same as another layer's, if there is one (a control, see compare).
    """
    if rng.random() < 0.5:
        return backbone
    layer, others = rng.randrange(len(backbone)), [gene for gene in backbone if not kernel_of(gene)]
    if kernel_of(backbone[layer]):
        gene = rng.choice(others) if copy and others else grow(tables, rng, counts)
    else:
        gene = f"conv {tables.draw(('layer', layer), rng)}"
    return (*backbone[:layer], gene, *backbone[layer + 1:])


def mutate_dag(dag, tables, rng):
    """One edit of a path: replace an op (1/2), insert one (.2), delete one (.2), rewire one (.1). May be illegal.

    CHOICE: these odds; the paper says only that the op at each position is drawn by UCB. On -Q, softsign(.):
    replace at 1: -Q, scale(.); insert at 1: -Q, T(.), softsign(.); delete at 0: softsign(Q); rewire at 1: softsign(K)
    What is put in reads anything that stands before it, by chance.
    """
    edit = rng.choices(("replace", "insert", "delete", "rewire"), (0.5, 0.2, 0.2, 0.1))[0]
    t = rng.randrange(len(dag) + (edit == "insert"))  # an insertion may also come behind the output
    slot = 4 + t

    def moved(args, by, instead=None):  # operands of the later nodes after an insertion or deletion at t
        return [instead if a == slot and instead is not None else a + by * (a >= slot) for a in args]

    if edit == "insert":
        op = tables.draw(min(t, len(dag) - 1), rng)  # a path of length k draws from the first k tables only
        args = [rng.randrange(slot), rng.randrange(slot)]
        later = [[name, *moved(old, 1)] for name, *old in dag[t:]]
        if later:  # the node that stood here reads the new one in place of an operand
            later[0][rng.randrange(1, len(later[0]))] = slot
        else:
            args[0] = slot - 1
        return (*dag[:t], (op, *args[:ops.OPS[op].arity]), *map(tuple, later))
    op, *args = dag[t]
    if edit == "delete":  # its readers get one of its operands; at the end the node before becomes the output
        heir = rng.choice(args)
        return (*dag[:t], *((name, *moved(old, -1, heir)) for name, *old in dag[t + 1:]))
    if edit == "replace":
        op = tables.draw(t, rng)
        rng.shuffle(args)
        args = [*args, rng.randrange(slot)][:ops.OPS[op].arity]
    else:
        args[rng.randrange(len(args))] = rng.randrange(slot)
    return (*dag[:t], (op, *args), *dag[t + 1:])


def mutate_intra(backbone, tables, rng, counts):
    """MutationIntraLayer (l.7) of a uniformly chosen layer: a new kernel, or an edit of its path. None if illegal."""
    layer = rng.randrange(len(backbone))
    if kernel_of(backbone[layer]):
        gene = f"conv {tables.draw(('layer', layer), rng)}"
    else:
        dag = mutate_dag(ops.parse(backbone[layer]), tables, rng)
        dag = ops.canonical(dag) if dag else dag
        if why := ops.why_illegal(dag):
            counts["illegal: " + ("types" if why.startswith("step") else why.split(";")[0])] += 1
            return None
        gene = ops.formula(dag)
    return (*backbone[:layer], gene, *backbone[layer + 1:])


def mutate(parent, tables, rng, seen, counts, copy=False):
    """A child of a backbone (l.6, l.7): legal, changed, never seen. After 200 tries a layer grows anew, counted.

    Each try draws layer and edit again, so layers and edits that seldom give a new legal child are rarer than drawn.
    """
    between = mutate_inter(parent, tables, rng, counts, copy)
    for _ in range(200):
        child = mutate_intra(between, tables, rng, counts)
        if child not in (None, between) and child not in seen:
            return child
    while child in (None, between) or child in seen:
        counts["fresh layer"] += 1
        layer = rng.randrange(len(between))
        child = (*between[:layer], grow(tables, rng, counts), *between[layer + 1:])
    return child


# ---- The evolution (Algorithm 1) ----


@dataclass(frozen=True)
class Candidate:
    """One backbone on its way: number None if the probe turned it away; score None until judged, or if rejected.

    seconds: what judging it took; overhead: of these, neither pre-training nor fine-tuning.
    """
    number: int | None
    round: int
    parent: int | None
    backbone: tuple
    score: float | None = None
    reason: str = ""
    mlm: float | None = None
    seconds: float = 0.0
    overhead: float = 0.0
    tasks: tuple = ()

    def __str__(self):
        number = "" if self.number is None else f"cand={self.number} "
        score = f"rejected: {self.reason}" if self.score is None else f"score={self.score:.3f}"
        return f"{number}round={self.round} parent={'-' if self.parent is None else self.parent} {score}"


def evolve(settings, layers, fitness, probe=lambda candidate: None, note=lambda *_: None):
    """Algorithm 1, or another strategy of Fig. 6. Returns every candidate, rejected ones too, in order.

    fitness(batch) yields the judged Candidates of a batch, which share one snapshot of the super-net (l.8, l.9).
    probe(candidate): None, or why it is turned away before that. note(event, candidate or counts, tables) reports.
    """
    rng, tables = random.Random(settings.seed), tables_of(settings)
    everyone, seen, counts, size = [], set(), collections.Counter(), settings.parents * settings.children

    def propose(make, round_, parent=None):
        number = sum(c.number is not None for c in everyone) + len(batch)
        for attempt in range(100):
            candidate = Candidate(number, round_, parent, make())
            seen.add(candidate.backbone)
            reason = probe(candidate) if attempt < 99 else None  # after 99 in a row the next one is judged anyway
            if reason is None:
                break
            counts[reason] += 1
            everyone.append(replace(candidate, number=None, reason=reason))
            note("rejected", everyone[-1], tables)
        batch.append(candidate)

    def judge():
        for candidate in fitness(batch):
            everyone.append(candidate)
            counts[candidate.reason or "scored"] += 1
            note("judged", candidate, tables)

    def fresh():
        return next(b for b in iter(lambda: random_backbone(layers, rng), None) if b not in seen)

    # l.1, l.2. CHOICE: a round's size at a time, or the whole first population would start from an untrained super-net
    for start in range(0, settings.population, size):
        batch = []
        for _ in range(min(size, settings.population - start)):
            propose(fresh, 0)
        judge()
    observe(tables, everyone)
    for round_ in range(1, settings.rounds + 1):  # l.3; CHOICE: l.13's "until convergence" is a number of rounds
        note(f"round {round_}", counts, tables)
        copy, batch = settings.strategy.endswith("-copy"), []
        for parent in best_of(everyone, 0 if settings.strategy.startswith("random") else settings.parents):  # l.4
            for _ in range(settings.children):  # l.5, l.6, l.7
                make = functools.partial(mutate, parent.backbone, tables, rng, seen, counts, copy)
                propose(make, round_, parent.number)
        while len(batch) < size:  # random search, or too few have a score to be parents
            propose(fresh, round_)
        judge()  # l.8, l.9, l.11
        observe(tables, [c for c in everyone if c.round == round_])  # l.12
    note("end", counts, tables)
    return everyone


# ---- The proxy task (App. D.1): what a candidate's score is ----


class Bench:
    """What a worker needs to judge candidates, loaded once from a run's folder: text, tasks, settings."""

    def __init__(self, folder, device="cpu"):
        self.folder, self.device = Path(folder), torch.device(device)
        saved = read_settings(self.folder)
        self.s = s = saved["settings"]
        self.tokenizer = data.Tokenizer.load(self.folder / "tokenizer.model")
        self.config = replace(autobert.SIZES[s.size], vocab=self.tokenizer.vocab_size)
        corpus = [self.folder / path if saved["toy"] else path for path in saved["corpus"]]
        documents, held_out = data.split_held_out(data.open_corpus(corpus, self.tokenizer))
        self.batches = data.PretrainingData(documents, s.n, s.batch, self.config.vocab, s.seed)
        self.held_out = data.PretrainingData(held_out, s.n, 64, self.config.vocab, s.seed)
        self.probed = data.PretrainingData(held_out, s.n, 16, self.config.vocab, s.seed).batch(0)
        places = documents.sentences[documents.documents]  # (D, 2): from where to where in tokens
        tokens = np.bincount(np.concatenate([documents.tokens[start:end] for start, end in places]))
        share = tokens[tokens > 0] / tokens.sum()
        self.unigram = float(-(share * np.log(share)).sum())  # nats: what knowing only the words' frequencies gives
        self.tuning = glue.FinetuneSettings(s.epochs, s.finetune_lr, batch=s.finetune_batch, warmup=s.finetune_warmup,
                                            n=s.n, small=s.size == "small", bucket=1)
        root = self.folder / saved["glue"] if saved["toy"] else saved["glue"]
        loaded = {task: glue.load_task(root, task, self.tokenizer, s.n) for task in s.tasks.split(",")}
        self.tasks = {task: self.cut(*parts, s.select == "train") for task, parts in loaded.items()}
        self.final_tasks = {task: self.cut(*parts, False) for task, parts in loaded.items()}

    def cut(self, train, dev, hold_out):
        """At most `rows` training rows, chosen by the seed; with hold_out a tenth of them replaces dev."""
        order = np.random.default_rng(self.s.seed).permutation(len(train.rows))[:self.s.rows or None]
        held = max(1, len(order) // 10) if hold_out else 0
        if held == len(order):
            raise UserError(f"{len(order)} training row and --select train: expected at least 2 to hold one out")
        pick = lambda chosen: glue.Encoded([train.rows[i] for i in chosen], train.labels[chosen])  # noqa: E731
        return pick(order[held:]), ({"dev": pick(order[:held])} if held else dev)

    def probe(self, backbone):
        """Why a backbone is not worth training, or None: seen on a few sequences, from random weights.

        CHOICE: collapsed = the last hidden states are nearly the same at every token of a text. Random graphs, above
        all with dist, often give large and nearly constant outputs, and post-LN then wipes the tokens out: such a
        backbone hardly ever learns from scratch, however well the super-net's warm weights carry it in the search.
        """
        model = self.initial(backbone, True, self.s.seed).to(self.device).eval()
        batch = autobert.to_device(self.probed, self.device)
        loss, _ = model(batch)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not all(torch.isfinite(x).all() for x in (loss, *gradients)):
            return "not finite"
        with torch.no_grad():
            x = model.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
        real = batch["mask"][..., None].float()
        mean = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        varying = ((x - mean) * real).square().sum() / (x * real).square().sum()  # |X - mean over tokens|² / |X|²
        return "collapsed" if varying < self.s.collapse else None

    def train(self, model, steps, offset, seed):
        """Pre-train; the held-out MLM loss after it."""
        s = self.s
        settings = autobert.PretrainSettings(steps, s.batch, s.n, s.lr, s.warmup, s.beta2, seed=seed)
        autobert.pretrain(model, self.batches, settings, self.device, offset=offset)
        return autobert.held_out_loss(model, self.held_out, 4, self.device)["mlm"]

    def finetune(self, model, seed, tasks):
        """The scores in [0, 1], in the order of the tasks."""
        return tuple(glue.unit_score(glue.finetune(model.encoder, task, *rows, self.tuning, seed, self.device)["score"])
                     for task, rows in tasks.items())

    def whole(self, model, steps, offset, seed, tasks):
        """(mlm or None, scores) of pre-training and fine-tuning; if one of them diverges all scores are 0."""
        mlm, scores = math.nan, (0.0,) * len(tasks)
        with contextlib.suppress(Diverged):
            mlm = self.train(model, steps, offset, seed)
            scores = self.finetune(model, seed, tasks)
        return mlm if math.isfinite(mlm) else None, scores

    def judge(self, candidate, steps, offset):
        """Alg. 1 l.8 and l.9: the candidate with score and tasks, or with the reason why it was rejected.

        What it found is left in children/NUMBER.tsv, and for the write-back its pre-trained weights, never the
        fine-tuned ones, in children/NUMBER.pt.
        """
        start, s, kept = time.time(), self.s, self.folder / "children" / f"{candidate.number}.pt"
        child, mlm, scores, reason = self.initial(candidate.backbone, s.strategy == "random", s.seed), None, (), ""
        overhead = time.time() - start
        try:
            mlm = self.train(child, steps, offset, s.seed)
            # at random search's budget hardly any backbone learns from scratch: only shared weights make it telling
            if s.strategy != "random" and not mlm < self.unigram - s.least_gain:
                reason = "no learning"
            else:
                before = time.time()
                if s.strategy != "random":
                    autobert.save_tensors(kept, child.state_dict())
                overhead += time.time() - before
                scores = self.finetune(child, s.seed, self.tasks)
        except Diverged:
            reason = "diverged"
        judged = replace(candidate, score=statistics.fmean(scores) if scores else None, reason=reason, mlm=mlm,
                         tasks=tuple(zip(self.tasks, scores)), seconds=time.time() - start, overhead=overhead)
        data.write_beside(kept.with_suffix(".tsv"), "\t".join(COLUMNS) + "\n" + to_row(judged) + "\n")
        return judged

    def point(self, backbone, start, steps, seed):
        """(mlm or None, score, learned, seconds) for a Point: warm as judge would train it, were it the next candidate.

        From scratch: random weights as in `final`, but on the warm ones' batches. The super-net's file is only read.
        """
        begun, offset = time.time(), autobert.load_tensors(self.folder / "supernet.pt", mapped=True)["offset"]
        mlm, scores = self.whole(self.initial(backbone, start == "scratch", seed), steps, offset, seed, self.tasks)
        learned = mlm is not None and mlm < self.unigram - self.s.least_gain
        return mlm, statistics.fmean(scores), learned, time.time() - begun

    def initial(self, backbone, scratch, seed):
        """The model that a candidate's training starts from: with the super-net's weights, or random ones."""
        backbone = tuple(backbone)  # a list, where it came as JSON
        if scratch:
            with autobert.seeded(seed):
                return autobert.Pretraining(self.config, backbone)
        # the file is mapped, not read: no second super-net in memory, only the slots that the child copies
        slots = autobert.load_tensors(self.folder / "supernet.pt", mapped=True)["slots"]
        return SuperNet(self.config, slots=slots, transforms=self.s.transforms == "on").child(backbone)

    def final(self, backbone, steps, seed, kept=None):
        """(mlm or None, scores in the order of the tasks, seconds) of a full training from scratch.

        kept: the file in the run's folder that gets the weights.
        """
        begun, model = time.time(), self.initial(backbone, True, seed)
        mlm, scores = self.whole(model, steps, 0, seed, self.final_tasks)
        if kept:
            autobert.save_checkpoint(self.folder / kept, model, self.tokenizer)
        return mlm, scores, time.time() - begun


# ---- Many candidates at once ----

STARTED_HERE = "AUTOBERT_STARTED_HERE"  # set for followers that --workers started, not torchrun


def launched():
    """Whether torchrun, or a Team, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


class WorkerDied(Exception):
    """A follower ended without having been told to."""


class Team:
    """The processes that judge candidates: this one, rank 0, and followers that --workers or torchrun started.

    They meet in torch.distributed's key-value store and in the run's folder, which every machine must see: rank 0
    puts up a batch of jobs, each process takes the next one that nobody has, until none is left. Which process does a
    job changes nothing, so the results are the same for any number of them.
    """

    def __init__(self, workers, device):
        """Starts workers - 1 followers, or takes the place that torchrun gave."""
        self.bench, self.device, self.batch, self.processes, self.memory = None, device, 0, [], {}
        torch.set_num_threads(1)  # each, so that the result is the same for any number of processes
        self.store, self.size = None, int(os.environ["WORLD_SIZE"]) if launched() else workers
        if not launched() and workers > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
            for rank in map(str, range(1, workers)):
                env = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(workers), STARTED_HERE: "1",
                       "TORCH_CPP_LOG_LEVEL": "ERROR"}
                self.processes.append(subprocess.Popen([sys.executable, os.path.abspath(__file__)], env=env,
                                                       stdin=subprocess.PIPE, start_new_session=True))

    def open(self, folder):
        """All jobs from here on are done with the Bench of this run."""
        self.bench = Bench(folder, _own_device(self.device))
        if self.size > 1 and not self.store:
            self.store = _store(0, self.size)

    def map(self, jobs):
        """Yield the results of jobs (method of Bench, *arguments) in order, as they come."""
        jobs = list(jobs)
        if not self.store or not jobs:
            yield from (_do(self.bench, job) for job in jobs)
            return
        self.batch += 1
        self.store.set(f"jobs {self.batch}", _pack((str(self.bench.folder), self.device, jobs)))
        todo, results = _claims(self.store, self.batch, len(jobs)), {}
        for i in range(len(jobs)):
            while i not in results and not self.store.check([f"{self.batch}.{i}"]):
                if any(process.poll() is not None for process in self.processes):
                    raise WorkerDied
                mine = next(todo, None)
                if mine is None:
                    time.sleep(0.01)
                else:
                    results[mine] = _do(self.bench, jobs[mine])
            if i not in results:
                rank, self.memory[rank], failed, results[i] = _unpack(self.store.get(f"{self.batch}.{i}"))
                if failed:
                    raise UserError(failed)
            yield results[i]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.store and not error[0]:
            self.store.set(f"jobs {self.batch + 1}", _pack(None))
            late = time.time() + 20
            while self.store.add("gone", 0) < self.size - 1 and time.time() < late:
                time.sleep(0.01)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave one behind
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
        signal.signal(signal.SIGINT, heard)


def _store(rank, size):
    """torch.distributed's store, from the environment that torchrun sets."""
    return next(torch.distributed.rendezvous("env://", rank=rank, world_size=size))[0]


def _own_device(kind):
    """This process' device: on a machine with several GPUs each takes its own."""
    if kind == "cuda":
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return kind


def _do(bench, job):
    method, *arguments = job
    try:
        return getattr(bench, method)(*arguments)
    except RuntimeError as error:  # so torch says that there is too little memory
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError from None
        raise


def _pack(content):
    """JSON for the store: no pickle, for whoever reaches its port could make that run anything."""
    return json.dumps(content, default=lambda candidate: {"candidate": to_row(candidate)})


def _unpack(text):
    return json.loads(text, object_hook=lambda found: from_row(found["candidate"]) if "candidate" in found else found)


def _claims(store, batch, count):
    """Numbers of jobs for this process, each handed to one process only."""
    while (i := store.add(f"claimed {batch}", 1) - 1) < count:
        yield i


def memory_peak():
    """Bytes of the largest resident memory this process has had, and of GPU memory if it used any."""
    unit = 1 if sys.platform == "darwin" else 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, gpu


def follow():
    """What a process of rank 1 or more does: jobs of rank 0, until it says that there are no more."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is rank 0's to handle
    if STARTED_HERE in os.environ:  # rank 0 holds the other end of stdin; when it dies, however it dies, that closes
        threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)
    rank, folder = int(os.environ["RANK"]), None
    with contextlib.suppress(torch.distributed.DistError):  # rank 0 is gone; it, or torchrun, has said why
        store = _store(rank, int(os.environ["WORLD_SIZE"]))
        for batch in itertools.count(1):
            while not store.check([f"jobs {batch}"]):
                time.sleep(0.01)
            told = _unpack(store.get(f"jobs {batch}"))
            if told is None:
                store.add("gone", 1)
                os._exit(0)
            for i in _claims(store, batch, len(told[2])):
                failed, result = "", None
                try:
                    if folder != told[0]:
                        folder, bench = told[0], Bench(told[0], _own_device(told[1]))
                    result = _do(bench, told[2][i])
                except (UserError, OSError, MemoryError) as error:  # rank 0 says so, and ends the run
                    failed = str(error) or "out of memory; fewer --workers or a smaller --batch may help"
                store.set(f"{batch}.{i}", _pack((rank, memory_peak(), failed, result)))


# ---- A run and its folder ----

COLUMNS = ("cand", "round", "parent", "score", "reason", "mlm", "seconds", "overhead", "tasks", "backbone")


def to_row(c):
    """A Candidate as a line of candidates.tsv; from_row reads it back exactly."""
    tasks = " ".join(f"{task}={score!r}" for task, score in c.tasks)
    cells = (c.number, c.round, c.parent, c.score, c.reason, c.mlm, f"{c.seconds:.2f}",
             f"{c.overhead:.2f}", tasks, " | ".join(c.backbone))
    return "\t".join("-" if cell in (None, "") else str(cell) for cell in cells)  # str of a float reads back exactly


def from_row(line):
    """The Candidate of a line of candidates.tsv."""
    number, round_, parent, score, reason, mlm, seconds, overhead, tasks, backbone = (
        None if cell == "-" else cell for cell in line.split("\t"))
    value = lambda kind, cell: None if cell is None else kind(cell)  # noqa: E731
    pairs = (pair.split("=") for pair in (tasks or "").split())
    if score and not 0 <= float(score) <= 1:
        raise ValueError(f"score {score}")
    return Candidate(value(int, number), int(round_), value(int, parent),
                     autobert.check_backbone(tuple(backbone.split(" | "))),
                     value(float, score), reason or "", value(float, mlm), float(seconds),
                     float(overhead), tuple((task, float(x)) for task, x in pairs))


def free_folder(out, overwrite):
    """The path of a new run: `out`, or the next free one of runs/001, runs/002, ..; UserError if it is taken."""
    runs = (Path("runs") / f"{i:03}" for i in range(1, 1000))
    path = Path(os.path.realpath(out or next(path for path in runs if not path.exists())))
    if not str(path).isprintable():  # bytes that are no UTF-8, too
        raise UserError(f"--out {str(path)!r}: expected a name of printable characters")
    if path.exists() and not (overwrite and (path / "settings.json").exists()):
        raise UserError(f"--out {out!r} exists; name another, or if it is a run, --overwrite or resume it")
    return path


def prepare(out, settings, corpus, root):
    """Make a run's folder with settings, data and tokenizer; it appears whole or not at all, in place of what is there.

    corpus, root: text files and GLUE folder, or None, None for the toy language.
    """
    source = sources(corpus, root)
    corpus, root, toy = source.values()
    with data.folder_beside(out, (out / "settings.json").exists()) as beside:
        if toy:
            data.write_toy(beside / "toy", settings.seed)
        texts = [beside / path if toy else path for path in corpus]
        if not data.is_cache(texts) and len(list(itertools.islice(data.read_documents(texts), 2))) < 2:
            raise UserError(f"{' '.join(corpus)}: one document; NSP needs at least two documents")
        data.tokenizer_for(texts, settings.vocab, settings.seed).save(beside / "tokenizer.model")
        for task in map(glue.find_task, settings.tasks.split(",")):
            for split in ("train", *task.dev):
                glue.read_task(beside / root if toy else root, task, split)
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        write_settings(beside, {"settings": settings, **source, "versions": versions})


def sources(corpus, root):
    """What settings.json says of text files and GLUE folder; without them those of the toy language, in the run."""
    if not corpus:
        return {"corpus": ["toy/corpus.txt"], "glue": "toy/glue", "toy": True}
    return {"corpus": [os.path.abspath(path) for path in corpus], "glue": os.path.abspath(root), "toy": False}


def write_settings(folder, saved):
    """What read_settings reads."""
    saved = {**saved, "settings": asdict(saved["settings"])}
    data.write_beside(folder / "settings.json", json.dumps(saved, indent=1) + "\n")


def read_settings(folder):
    """What prepare wrote to a run's settings.json; UserError if it is no run, or a broken one."""
    path = Path(folder) / "settings.json"
    if not path.exists():
        raise UserError(f"{str(folder)!r}: no run (it has no settings.json)")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(text, str) for text in (*saved["corpus"], saved["glue"])):
            raise TypeError("corpus and glue are paths")
        return {**saved, "settings": check_settings(SearchSettings(**saved["settings"])), "toy": bool(saved["toy"])}
    except (ValueError, TypeError, KeyError, RecursionError, UserError) as error:
        raise UserError(f"{path}: not a run's settings ({type(error).__name__}: {error})") from None


def read_rows(path, columns, entry):
    """entry(line) of every line behind the header, as far as the file is there; UserError with the line that is none.

    A last line without a line feed, which a crash cut short, does not count.
    """
    content = path.read_bytes() if path.exists() else b""
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            if number > 1:
                rows.append(entry(line.decode()))
            elif line.decode() != "\t".join(columns):
                raise ValueError("no header")
        except (ValueError, AttributeError, TypeError, UserError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{path}:{number}: not a row ({error}); expected {' '.join(columns)}") from None
    return rows


def append_row(path, columns, row):
    """Add a line to a TSV file, on disk before this returns; in place of a last line that a crash cut short."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            content = file.seek(0) or file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.write(("" if content else "\t".join(columns) + "\n").encode() + row.encode() + b"\n")
        data.sync(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_log(path):
    """The Candidates in a run's candidates.tsv, by backbone."""
    return {c.backbone: c for c in read_rows(path, COLUMNS, from_row)}


class Run:
    """The state of a search on disk, which is all the state there is.

    candidates.tsv has a line for every candidate as soon as it is judged; a resumed run evolves again from the seed
    and takes what is written there instead of judging it anew. supernet.pt is the snapshot after the last whole
    generation, that is the last batch of candidates that started from one and the same super-net.
    """

    def __init__(self, folder, team):
        self.folder, self.team, self.log = Path(folder), team, Path(folder) / "candidates.tsv"
        self.s = team.bench.s
        self.known = read_log(self.log)
        (self.folder / "children").mkdir(exist_ok=True)
        for path in self.folder.glob("**/.*.tmp"):  # a kill in the middle of a write
            if path.is_file():
                path.unlink()
        # judged, but not in the log yet when the run was killed
        self.ready = {c.backbone: c for path in (self.folder / "children").glob("[0-9]*.tsv")
                      for c in read_log(path).values()}
        if not (self.folder / "supernet.pt").exists():
            if self.known:
                raise UserError(f"{self.folder / 'supernet.pt'} is missing, and {self.log} is not empty; expected both")
            self.save(self.new_net(self.s.seed), generation=0, offset=0, warm=False)
        self.saved, self.generation = autobert.load_tensors(self.folder / "supernet.pt"), 0
        with torch.device("meta"):
            shapes = {name: slot.shape for name, slot in self.new_net().slots.items()}
        try:
            if {name: slot.shape for name, slot in self.saved["slots"].items()} != shapes:
                raise ValueError("slots of another size")
            self.saved = {key: kind(self.saved[key]) for key, kind in
                          (("slots", dict), ("generation", int), ("offset", int), ("warm", bool))}
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.folder / 'supernet.pt'}: not this run's super-net ({error})") from None
        self.net = SuperNet(self.team.bench.config, slots=self.saved["slots"])
        self.begun, self.waited = time.time(), 0.0  # and how long of that for candidates

    def new_net(self, seed=0):
        """A super-net of this run's size."""
        return SuperNet(self.team.bench.config, seed, transforms=self.s.transforms == "on")

    def save(self, net, **state):
        """The snapshot with the generations it has absorbed, the text batches they used, and whether anyone wrote."""
        self.saved = {"slots": net.slots, **state}
        autobert.save_tensors(self.folder / "supernet.pt", self.saved)

    def write(self, candidate):
        append_row(self.log, COLUMNS, to_row(candidate))

    def probe(self, candidate):
        """For evolve: the reason why a proposal is turned away, or None."""
        if candidate.backbone in self.known:
            known = self.known[candidate.backbone]
            return known.reason if known.number is None else None
        reason = self.team.bench.probe(candidate.backbone)
        if reason:
            self.write(replace(candidate, number=None, reason=reason))
        return reason

    def fitness(self, batch):
        """For evolve: judge a batch from one snapshot of the super-net, then write its weights back."""
        had = {**self.ready, **self.known}  # candidates whose weights were lost before the write-back are judged again
        todo = [c for c in batch if c.backbone not in had or self.lost(had[c.backbone])]
        if todo and self.generation < self.saved["generation"]:
            raise UserError(f"{self.log}: candidate {todo[0].number} is missing though supernet.pt has its weights; "
                            "expected the log and settings of one and the same run")
        steps = self.steps()
        found = self.team.map([("judge", c, steps, self.saved["offset"]) for c in todo])
        judged = []
        for candidate in batch:
            start = time.time()
            judged.append(next(found) if candidate in todo else had[candidate.backbone])
            self.waited += time.time() - start
            if candidate.backbone not in self.known:
                self.write(judged[-1])
            yield judged[-1]
        self.generation += 1
        if self.generation > self.saved["generation"]:
            good = [c for c in judged if c.score is not None]
            if self.s.strategy != "random":
                load = lambda c: autobert.load_tensors(self.folder / "children" / f"{c.number}.pt")  # noqa: E731
                write_back(self.net, [(c.score, functools.partial(load, c)) for c in good], self.s.write_back)
            self.save(self.net, generation=self.generation, offset=self.saved["offset"] + steps,
                      warm=self.saved["warm"] or bool(good))
            for path in (self.folder / "children").glob("*.*"):
                if path.is_file():
                    path.unlink(missing_ok=True)

    def lost(self, c):
        """Whether a judged candidate's weights are still to be written back, but not there."""
        pending = self.generation >= self.saved["generation"] and c.score is not None and self.s.strategy != "random"
        return pending and not (self.folder / "children" / f"{c.number}.pt").exists()

    def steps(self):
        """Pre-training steps of the next candidates.

        CHOICE: children of an untrained super-net train longer, or none would be told from one that learns nothing.
        CHOICE: random search from scratch takes as many steps in all as the others, the same for every candidate.
        """
        s = self.s
        if s.strategy == "random":
            size = s.parents * s.children
            total = s.population + s.rounds * size
            return round(s.steps * (1 + (s.cold - 1) * min(size, s.population) / total))
        return s.steps * (1 if self.saved["warm"] else s.cold)


def changes(backbone, parent=None):
    """The layers of a backbone that its parent, a Candidate, has not; without one all. Example: L2 conv 3"""
    old = parent.backbone if parent else ()
    pairs = enumerate(itertools.zip_longest(backbone, old[:len(backbone)]), 1)
    return " ".join(f"L{i} {gene}" for i, (gene, before) in pairs if gene != before)


class Progress:
    """Prints one line a candidate and one a round."""

    def __init__(self):
        self.best, self.rejected, self.judged = 0.0, 0, {}

    def __call__(self, event, what, tables):
        perplexity, counted = tables.perplexity()
        if isinstance(what, dict):
            kernels, seen = tables.perplexity(tuple)
            told = " ".join(f"{key.replace(' ', '-')}={count}" for key, count in sorted(what.items()) if count)
            print(f"-- {event}: ops ppl={perplexity:.2f} N={counted} kernels ppl={kernels:.2f} N={seen} {told}",
                  flush=True)
            return
        self.rejected += what.score is None
        if event == "rejected":
            return
        self.best = max(self.best, what.score or 0.0)
        self.judged[what.number] = what
        print(f"{what} best={self.best:.3f} rejected={self.rejected} ppl={perplexity:.1f} {what.seconds:.1f}s | "
              f"{changes(what.backbone, self.judged.get(what.parent))}", flush=True)


def read_finals(path):
    """The results of the final training so far, as finals wrote them; UserError if the file is broken."""
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [{"name": str(r["name"]), "seed": int(r["seed"]), "backbone": list(r["backbone"]),
                 "mlm": None if r["mlm"] is None else float(r["mlm"]),
                 "tasks": [(task, float(score)) for task, score in r["tasks"]]}
                for r in results]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(f"{path}: broken ({type(error).__name__}: {error}); "
                        "remove it to repeat the final training") from None


def final_line(result):
    """One result of the final training as a line."""
    tasks = " ".join(f"{task}={score:.3f}" for task, score in result["tasks"])
    mlm = "diverged" if result["mlm"] is None else f"{result['mlm']:.3f}"
    return f"final={result['name']} seed={result['seed']} mlm={mlm} {tasks}"


def finals(run, backbones):
    """Train the backbones {name: backbone} from scratch with one budget, and judge them. -> [result, ...]"""
    s, tasks, path = run.s, list(run.team.bench.final_tasks), run.folder / "finals.json"
    results = [r for r in read_finals(path) if tuple(r["backbone"]) == backbones.get(r["name"])
               and [task for task, _ in r["tasks"]] == tasks]
    done = {(r["name"], r["seed"]) for r in results}
    todo = [(name, seed) for seed in range(s.seed, s.seed + s.final_seeds) for name in backbones
            if (name, seed) not in done]
    jobs = [("final", backbones[name], s.final_steps, seed, f"{name}-{seed}.pt") for name, seed in todo]
    for (name, seed), (mlm, scores, _) in zip(todo, run.team.map(jobs)):
        results.append({"name": name, "seed": seed, "backbone": list(backbones[name]), "mlm": mlm,
                        "tasks": list(zip(tasks, scores))})
        print(final_line(results[-1]), flush=True)
        data.write_beside(path, json.dumps(results, indent=1) + "\n")
    shutil.copyfile(run.folder / f"best-{s.seed}.pt", run.folder / "best.pt")
    return results


def costs(config, backbone, n):
    """[parameters, FLOPs of one sequence] of a backbone as text."""
    return [f"{autobert.count_parameters(config, backbone)['total'] / 1e6:.3g}M",
            f"{autobert.count_flops(config, backbone, n)['total']:.2e}"]


def table(config, n, backbones, results):
    """The judgement: per backbone its scores x 100 (means over seeds), MLM, parameters, FLOPs; then the formulas."""
    tasks = [task for task, _ in results[0]["tasks"]]
    several = len(results) > len(backbones)  # seeds: only then is there a spread
    lines = ["".join(f"{cell:>9}" for cell in (*tasks, "average", *["sd"] * several, "MLM", "params", "FLOPs"))]
    for name, backbone in backbones.items():
        mine = [r for r in results if r["name"] == name]
        scores = np.array([[100 * score for _, score in r["tasks"]] for r in mine])  # (seeds, tasks)
        cells = [f"{x:.1f}" for x in (*scores.mean(0), scores.mean(), *[scores.mean(1).std()] * several)]
        mlm = [r["mlm"] for r in mine if r["mlm"] is not None]
        cells += [f"{statistics.fmean(mlm):.3f}" if mlm else "diverged", *costs(config, backbone, n)]
        lines.append("".join(f"{cell:>9}" for cell in cells) + f"  {name}")
    for name, backbone in backbones.items():
        lines += ["", f"{name}:"] + [f"  L{i:<2} {gene}" for i, gene in enumerate(backbone, 1)]
    return "\n".join(lines)


def evolved(folder, team, note=lambda *_: None):
    """(the run, all its candidates, the best) on a folder that the team has open; goes on from what is there."""
    run = Run(folder, team)
    everyone = evolve(run.s, team.bench.config.layers, run.fitness, run.probe, note)
    best = best_of(everyone, 1)
    if not best:
        why = ", ".join(f"{reason} {n}" for reason, n in collections.Counter(c.reason for c in everyone).items())
        raise UserError(f"{folder}: all {len(everyone)} proposals were rejected ({why}); against no learning "
                        "help more --steps, against collapsed --collapse 0, against diverged a smaller --lr")
    autobert.save_backbone(run.folder / "best.json", best[0].backbone)
    return run, everyone, best[0]


def search(folder, team):
    """A run from its folder's settings to its table; picks up whatever is there already."""
    start = time.time()
    print(f"{folder}: {json.dumps(json.loads((folder / 'settings.json').read_text()))}")
    team.open(folder)
    bench, s = team.bench, team.bench.s
    print(f"unigram-entropy={bench.unigram:.3f} tasks={s.tasks} workers={team.size} device={team.device}", flush=True)
    run, everyone, winner = evolved(folder, team, Progress())
    busy = time.time() - run.begun - run.waited
    seconds, spent = sum(c.seconds for c in everyone), busy + sum(c.overhead for c in everyone)
    print(f"-- best: cand={winner.number} score={winner.score:.3f} after {time.time() - start:.0f}s; "
          f"{100 * spent / (seconds + busy):.1f} % of the work was neither pre-training nor fine-tuning; "
          f"final training of {s.final_steps} steps", flush=True)
    backbones = {"best": winner.backbone, **{name: autobert.at_depth(autobert.BACKBONES[name], bench.config.layers)
                                             for name in ("bert", "autobert-zero")}}
    text = table(bench.config, s.n, backbones, finals(run, backbones))
    data.write_beside(run.folder / "table.txt", text + "\n")
    peaks = [memory_peak(), *team.memory.values()]
    gpu = f", {sum(gpu for _, gpu in peaks) / 1e9:.2f} GB on GPUs" if team.device == "cuda" else ""
    print(f"\n{text}\n\n{folder}: done in {time.time() - start:.0f}s; "
          f"peak memory {sum(rss for rss, _ in peaks) / 1e9:.2f} GB{gpu} in {len(peaks)} processes")


# ---- Report ----

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width"/><title>{title}</title>
<style>:root{{color-scheme:light dark;--ink:#1c2128;--dim:#59636e;--line:#d5dbe1;--card:#f5f7f9;--hot:0,114,178}}
@media(prefers-color-scheme:dark){{:root{{--ink:#e3e7ec;--dim:#9aa4af;--line:#363c44;--card:#1e2329;--hot:30,135,205}}
body{{background:#14171c}}}}
body{{color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:1040px;margin:2rem auto;padding:0 1rem}}
h1{{font-size:1.6rem}}h2{{font-size:1.2rem;margin:2.5rem 0 .3rem}}
b code{{font-weight:400}}p{{color:var(--dim);max-width:75ch;margin:.3rem 0 1rem}}
.wide{{overflow-x:auto}}.wide svg.chart{{width:100%;max-width:900px;height:auto}}small{{display:block;color:var(--dim)}}
table{{border-collapse:collapse;font-size:.85rem}}
th{{text-align:left;font-weight:600;vertical-align:top;padding:.2rem .7rem .2rem 0}}
td{{padding:.2rem .7rem .2rem 0;vertical-align:top;overflow-wrap:anywhere}}
.rows tr{{border-bottom:1px solid var(--line)}}
.heat th{{text-align:center;vertical-align:middle}}
.heat td{{text-align:center;padding:.15rem .2rem .3rem;border:2px solid transparent;
background:rgba(var(--hot),var(--a,0));background-clip:padding-box;min-width:2.8rem;font-variant-numeric:tabular-nums}}
.heat small{{font-size:.68rem;line-height:1.25;color:inherit;white-space:nowrap}}.heat .never{{color:var(--dim)}}
code,pre{{font:.85rem/1.5 ui-monospace,monospace}}code{{overflow-wrap:anywhere}}
pre{{background:var(--card);padding:1rem;overflow-x:auto}}
.tree{{list-style:none;padding:0}}.tree>li{{border-left:3px solid #0072b2;padding:.2rem 0 .6rem 1rem}}
.tree ul{{color:var(--dim);font-size:.85rem;margin:.3rem 0 0;padding-left:1.2rem}}</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


class Findings:
    """What the folder of a run tells, finished or not: its files are read, and never written."""

    def __init__(self, folder):
        self.folder, self.saved = Path(folder), read_settings(folder)
        self.s = self.saved["settings"]
        self.everyone = list(read_log(self.folder / "candidates.tsv").values())
        self.results = read_finals(self.folder / "finals.json")
        self.judged = {c.number: c for c in self.everyone if c.number is not None}
        self.scored = [c for c in self.judged.values() if c.score is not None]
        self.reasons = collections.Counter(c.reason for c in self.everyone if c.score is None)
        self.tables, self.improved, self.family = tables_of(self.s, self.everyone), [], []
        for c in self.scored:
            if not self.improved or c.score > self.improved[-1].score:
                self.improved.append(c)
        ancestor = best = self.improved[-1] if self.improved else None
        while ancestor:  # from the winner back to M_0
            self.family.insert(0, ancestor)
            known = ancestor.parent is not None and ancestor.parent < ancestor.number
            ancestor = self.judged.get(ancestor.parent) if known else None
        self.table = self.folder / "table.txt"
        self.table = self.table.read_text(encoding="utf-8", errors="replace") if self.table.exists() else ""
        self.judgement = self.table or "\n".join(map(final_line, self.results))
        path = self.folder / "best.json"
        self.chosen = autobert.load_backbone(str(path)) if path.exists() else None
        self.winner = self.chosen or (best and best.backbone)

    def facts(self):
        """[(what, text), ...]: the headlines."""
        s, done = self.s, len(self.judged)
        expected = s.population + s.rounds * s.parents * s.children
        state = "finished" if self.table else (
            f"search over; {len(self.results)} final trainings done" if self.chosen else
            "not finished: the search is running, or was stopped")
        rows = [("state", state), ("candidates", f"{done} of {expected} judged, {len(self.scored)} with a score; "
                                                 f"{sum(self.reasons.values())} rejected in all")]
        if self.improved:
            best, first = self.improved[-1], [c.score for c in self.scored if c.round == 0]
            rows.append(("best", f"candidate {best.number} of round {best.round}: score {best.score:.3f}"
                         + (f"; the best random one had {max(first):.3f}" if first else "")))
            if self.winner != best.backbone:
                rows.append(("winner", "best.json holds another backbone than the best of candidates.tsv"))
        else:
            rows.append(("best", "no candidate has a score yet"))
        seconds = [c.seconds for c in self.judged.values()] or [0.0]
        return rows + [("tasks", f"{s.tasks}; a score is their mean, from 0 to 1"),
                       ("cost", f"{sum(seconds):.0f} s of judging in all, median {statistics.median(seconds):.1f} s "
                                f"a candidate, at most {max(seconds):.1f} s")]

    def settings(self):
        """[(name, value, meaning), ...] of all that the run was started with."""
        rows = [(f.name, getattr(self.s, f.name), f.metadata["help"]) for f in fields(self.s)]
        rows += [(name, self.saved[name], "") for name in ("corpus", "glue", "toy")]
        return rows + [("versions", self.saved.get("versions", ""), "of what the run began with")]

    def about(self, c):
        """A candidate in one line, with the layers that its parent has not, or all."""
        return f"{c} | {changes(c.backbone, self.judged.get(c.parent))}"

    def others(self, c):
        """The children of a member of the winner's family that are not in it themselves."""
        return [child for child in self.everyone if child.parent == c.number and child not in self.family]

    def places(self, kind):
        """[(place, its name), ...] that the tables know: positions (int), or layers (tuple), in their order."""
        seen = sorted(place for place in self.tables.tables if isinstance(place, kind))
        return [(place, f"L{place[1] + 1}" if kind is tuple else f"{place + 1}") for place in seen]

    def favourites(self, kind):
        """One line a place: the three choices drawn most there."""
        for place, name in self.places(kind):
            p, scores = self.tables.p(place), self.tables.tables[place]
            told = [f"{choice} p={p[choice]:.2f}" + (f" mu={statistics.fmean(scores[choice]):.3f}"
                    if choice in scores else "") + f" N={len(scores.get(choice, ()))}"
                    for choice in sorted(p, key=p.get, reverse=True)[:3]]
            yield f"{name}: " + ", ".join(told)


def tell(f):
    """A run's findings as text."""
    tree = [line for c in f.family for line in (f.about(c), *(f"    beside it: {f.about(o)}" for o in f.others(c)))]
    parts = {
        "facts": [f"{what}: {text}" for what, text in f.facts()],
        "search curve, every candidate that was the best so far": map(f.about, f.improved),
        "winner": [f"L{i} {gene}" for i, gene in enumerate(f.winner or (), 1)],
        "ops drawn most, by their position in an attention": f.favourites(int),
        "kernels drawn most, by layer": f.favourites(tuple),
        "rejected": [f"{reason}: {count}" for reason, count in f.reasons.most_common()],
        "family of the best candidate": tree,
        "final training": f.judgement.splitlines(),
        "settings": [f"{name}={value}" for name, value, _ in f.settings()]}
    return "\n\n".join("\n".join([f"-- {head}", *(f"  {line}" for line in lines or ["none"])])
                       for head, lines in ((head, list(lines)) for head, lines in parts.items()))


def curve(f):
    """The search curve: the best score so far as a line, each candidate a dot."""
    ys = [c.score for c in f.improved for _ in range(2)]  # each from its candidate to the next
    xs = [*[c.number for c in f.improved for _ in range(2)][1:], *[max(f.judged, default=0)] * bool(ys)]
    dots, waiting = [], []
    for c in (*f.everyone, None):  # None: the end
        if c and c.number is None:
            waiting.append(c)  # it was proposed as the next number, and shares the gap before it with others
            continue
        gap = (c.number if c else len(f.judged)) - 1
        dots += [(gap + i / (len(waiting) + 1), None, "off", f.about(w)) for i, w in enumerate(waiting, 1)]
        if c:
            kind = "off" if c.score is None else "s2" if c.parent is None else "s1"
            dots.append((c.number, c.score, kind, f.about(c)))
        waiting = []
    return autobert.chart("The search", "candidate", "score", {"best so far": (xs, ys)}, dots)


def heat(f, kind, choices, corner):
    """A table of the UCB tables as HTML: a row a choice, a column a place, coloured by mean score."""
    places, tables = f.places(kind), f.tables.tables
    means = [statistics.fmean(scores) for place, _ in places for scores in tables[place].values()]
    low, high = min(means, default=0), max(means, default=0)
    rows = [f"<tr><th>{corner}</th>" + "".join(f"<th>{name}</th>" for _, name in places) + "</tr>"]
    for choice in choices:
        cells = [f"<th>{choice}</th>"]
        for place, name in places:
            p, scores = f.tables.p(place)[choice], tables[place].get(choice)
            if not scores:
                cells.append(f'<td class="never" title="{choice} at {name}: never yet, p = {p:.4f}">·'
                             f'<small>N 0<br/>p {p:.2f}</small></td>')
                continue
            mu, n = statistics.fmean(scores), len(scores)
            shade = 0.04 + 0.5 * (mu - low) / (high - low) if high > low else 0.2
            cells.append(f'<td style="--a:{shade:.2f}" title="{choice} at {name}: mu = {mu:.4f}, N = {n}, p = {p:.4f}">'
                         f"{mu:.3f}<small>N {n}<br/>p {p:.2f}</small></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="heat">{"".join(rows)}</table></div>' if places else "<p>None yet.</p>"


def page(f):
    """A run's findings as one HTML page that needs nothing beside it."""
    e = lambda text: html.escape(str(text))  # noqa: E731
    grid = lambda rows: '<table class="rows">' + "".join(  # noqa: E731
        f"<tr><th>{e(head)}</th>" + "".join(f"<td>{e(cell)}</td>" for cell in cells) + "</tr>"
        for head, *cells in rows) + "</table>"
    item = lambda c: "{} <code>{}</code>".format(*e(f.about(c)).split(" | ", 1))  # noqa: E731
    winner, tree, none = f.winner or (), [], "<p>None yet.</p>"
    for c in f.family:
        others = "".join(f"<li>{item(other)}</li>" for other in f.others(c))
        tree.append(f"<li><b>{item(c)}</b>{f'<ul>{others}</ul>' if others else ''}</li>")
    sections = [
        ("In short", "", grid(f.facts())),
        ("Search curve", "Every dot is one backbone, pre-trained for a short while, from shared weights if the "
         "strategy has them, then fine-tuned on the tasks. Green: random; orange: a mutant of one of the best "
         "before it; rings at the bottom: rejected before they got a score. Point at a dot to read it.",
         f'<div class="wide">{curve(f)}</div>'),
        ("Winner", "Each layer is a convolution (orange) or an attention. An attention is a graph of ops (blue) that "
         "takes the place of BERT's softmax(scale(Q @ T(K))) @ V: on the left are Q, K, V and P, four projections of "
         "the hidden states; the last op is the output.",
         f'<div class="wide">{autobert.picture(winner)}</div>' + grid(
             (f"L{i}", gene) for i, gene in enumerate(winner, 1)) if winner else none),
        ("Which op does well where", "Columns are the positions of an attention's formula, counted in the order of "
         "computation. The large number, and the colour, is the mean score of the candidates with that op there (a "
         "rejected one counts as the worst), N how often it stood there, p the chance that a mutation draws it next "
         "(random search draws none).",
         heat(f, int, ops.OPS, "op")),
        ("Which kernel does well where", "The same for the convolutions' kernels, layer by layer.",
         heat(f, tuple, KERNELS, "kernel")),
        ("Rejected", "Candidates that got no score: collapsed ones give nearly the same output at every token, those "
         "with no learning stayed near the loss of mere word frequencies, diverged ones left the finite numbers.",
         grid(f.reasons.most_common()) if f.reasons else none),
        ("Family of the best", "From a random backbone down to the best one: each is a mutant of the one above, with "
         "the layers that the mutation changed. Indented: its other children.",
         f'<ol class="tree">{"".join(tree)}</ol>' if tree else none),
        ("Final training", "The winner, BERT and AutoBERT-Zero, each trained from scratch with one budget; task scores "
         "x 100, held-out MLM loss in nats.",
         f"<pre>{e(f.judgement)}</pre>" if f.judgement else none),
        ("Settings", "", grid(f.settings()))]
    body = "\n".join(f"<h2>{head}</h2>\n" + (f"<p>{e(how)}</p>\n" if how else "") + what
                     for head, how, what in sections)
    return PAGE.format(title=e(f"Run {f.folder.resolve().name}"), body=body)


def report(folder):
    """Print what a run found, and write it to report.html in its folder, the only file of the run that this writes."""
    findings = Findings(folder)
    data.write_beside(findings.folder / "report.html", page(findings))
    print(f"{tell(findings)}\n\nwrote {findings.folder / 'report.html'}")


# ---- Does sharing pay? (Fig. 8) ----


class Point(NamedTuple):
    """One training run of one architecture, a row of points.tsv. mlm None: it diverged."""
    kind: str  # random and mutant: the probe lets it pass; collapsed: it does not
    number: int  # among its kind
    start: str  # warm: with the super-net's weights; scratch: with random ones
    steps: int  # of pre-training
    mlm: float | None = None
    score: float = 0.0
    learned: bool = False
    seconds: float = 0.0
    backbone: tuple = ()


CELLS = {  # columns of points.tsv that are not plain text: (what a cell says, the cell that says it)
    "number": (data.number(int, 0), str), "seed": (data.number(int, 0), str), "steps": (data.number(int, 1), str),
    "mlm": (lambda cell: None if cell == "-" else data.number(float)(cell),
            lambda mlm: "-" if mlm is None else repr(mlm)),
    "score": (data.number(float, 0, 1), repr),
    "scores": (lambda cell: tuple(map(data.number(float, 0, 1), cell.split())),
               lambda scores: " ".join(map(repr, scores))),
    "learned": ("yes".__eq__, lambda learned: "yes" if learned else "no"),
    "seconds": (data.number(float, 0), "{:.2f}".format),
    "backbone": (lambda cell: autobert.check_backbone(tuple(cell.split(" | "))), " | ".join),
}


def row_of(kind, line):
    """The row, a NamedTuple of this kind, of a line of points.tsv."""
    cells = zip(kind._fields, line.split("\t"), strict=True)
    return kind(*(CELLS.get(column, (str,))[0](cell) for column, cell in cells))


def newcomers(bench, known, counts, seed):
    """[(kind, number, backbone), ...], none of them in the run's log: as many of each kind as `counts` says.

    random and mutant pass the probe, the mutants' parents and UCB tables are those of the search's next round, had it
    one; collapsed are random ones that the probe turns away, fewer if it hardly ever does.
    """
    s, seen, made = bench.s, set(known), []
    tables, parents = tables_of(s, known.values()), best_of(known.values(), s.parents)
    for kind, count in counts.items():
        rng, found, wanted = random.Random(f"{kind} {seed}"), [], "collapsed" if kind == "collapsed" else None
        for _ in range(100 * count):
            if kind == "mutant":
                parent = parents[len(found) % len(parents)].backbone
                backbone = mutate(parent, tables, rng, seen, collections.Counter(), s.strategy.endswith("-copy"))
            else:
                backbone = random_backbone(bench.config.layers, rng)
            if backbone not in seen and bench.probe(backbone) == wanted:
                found.append(backbone)
            seen.add(backbone)
            if len(found) == count:
                break
        if len(found) < count and not wanted:
            raise UserError(f"the probe let {len(found)} of {100 * count} new architectures ({kind}) pass; expected "
                            f"{count}: fewer --architectures, or a run with a smaller --collapse")
        made += [(kind, number, backbone) for number, backbone in enumerate(found)]
    return made


def measure(path, todo, team, job, found):
    """The rows todo with their results: from points.tsv, where it has them, else trained and written there.

    job(row): for the team; found: the columns that its result fills. In the others a row of the file must be wanted.
    """
    kind = type(todo[0])
    asked = lambda row: tuple(x for column, x in zip(kind._fields, row) if column not in found)  # noqa: E731
    wanted = set(map(asked, todo))

    def entry(line):
        row = row_of(kind, line)
        if asked(row) not in wanted:
            raise ValueError("not a point of this run and these flags; call again as before, or with another --out")
        return row

    known = {asked(row): row for row in read_rows(path, kind._fields, entry)}
    missing = [row for row in todo if asked(row) not in known]
    print(f"-- {len(todo)} points, {len(todo) - len(missing)} of them in {path}", flush=True)
    for row, result in zip(missing, team.map(map(job, missing))):
        row = row._replace(**dict(zip(found, result)))
        cells = [CELLS.get(column, (str, str))[1](x) for column, x in zip(kind._fields, row)]
        append_row(path, kind._fields, "\t".join(cells))
        print(re.sub(r"(\.\d{3})\d+", r"\1", " ".join(map("=".join, zip(kind._fields[:-1], cells)))), flush=True)
        known[asked(row)] = row
    return [known[asked(row)] for row in todo]


def steps_to_reach(curve, score):
    """Steps at which the running maximum of [(steps, score), ...] first reaches a score; None if it never does.

    Between two points the maximum is a line over log steps. Example: [(100, 0.2), (400, 0.4)], 0.3 -> 200.0
    """
    best, before = -math.inf, None
    for steps, value in sorted(curve):
        if value >= score:
            return before * (steps / before) ** ((score - best) / (value - best)) if before else float(steps)
        best, before = max(best, value), steps
    return None


def told_apart(points):
    """What an architecture needs to learn, from all its Points."""
    learned = {p.start for p in points if p.learned}
    return "learn from scratch" if "scratch" in learned else "learn warm only" if learned else "never learn"


def quartiles(factors):
    """[(factor, "", "<=" or ">=" if it is a bound), ...] -> ["median", "lower", "upper"], bounds marked.

    Example: [(2, ""), (4, ""), (8, ">=")] -> ["4.0", "3.0", ">=6.0"]
    """
    factors, marked = sorted(factors), []
    for q in (0.5, 0.25, 0.75):
        near = {factors[f(q * (len(factors) - 1))][1] for f in (math.floor, math.ceil)}
        bound = ">=" if ">=" in near else "<=" if "<=" in near else ""
        marked.append(f"{bound}{np.quantile([f for f, _ in factors], q):.1f}")
    return marked


def means(points):
    """Table lines: per start and steps mean score, MLM and seconds, and how many learned; and the chart's curves."""
    lines, curves = [f"{'start':>8}{'steps':>8}{'score':>8}{'MLM':>8}{'learned':>9}{'seconds':>9}"], {}
    for start in ("warm", "scratch"):
        rows = []
        for steps in sorted({p.steps for p in points if p.start == start}):
            mine = [p for p in points if (p.start, p.steps) == (start, steps)]
            scores, mlm = [p.score for p in mine], [p.mlm for p in mine if p.mlm is not None]
            rows.append((steps, statistics.fmean(scores), *map(float, np.quantile(scores, (0.25, 0.75)))))
            lines.append(f"{start:>8}{steps:>8}{rows[-1][1]:>8.3f}{statistics.fmean(mlm) if mlm else math.nan:>8.3f}"
                         f"{sum(p.learned for p in mine):>5}/{len(mine):<3}"
                         f"{statistics.fmean(p.seconds for p in mine):>9.1f}")
        curves[start] = tuple(zip(*rows))
    return lines, curves


def savings(architectures, own):
    """Lines on how many times the steps training from scratch takes to the score that `own` warm steps give."""
    groups = collections.defaultdict(list)  # group -> (factor, bound)
    for (kind, _), points in architectures.items():
        curve = [(p.steps, p.score) for p in points if p.start == "scratch"]
        score = next(p.score for p in points if (p.start, p.steps) == ("warm", own))
        steps = steps_to_reach(curve, score)
        bound = ">=" if steps is None else "<=" if steps == min(curve)[0] else ""
        factor = (steps or max(curve)[0]) / own, bound
        learner = told_apart(points)
        for group in (learner, *(("all that learn", f"of them {kind}") if learner != "never learn" else ())):
            groups[group].append(factor)
    lines = [f"{'':18}{'n':>4}{'median':>9}{'lower':>9}{'upper':>9}{'not reached':>13}{'at once':>9}"]
    for group in ("all that learn", "of them random", "of them mutant", "learn from scratch", "learn warm only"):
        if mine := groups[group]:
            cells = "".join(f"{cell:>9}" for cell in quartiles(mine))
            bounds = [bound for _, bound in mine]
            lines.append(f"{group:18}{len(mine):>4}{cells}{bounds.count('>='):>13}{bounds.count('<='):>9}")
    return [*lines, f"{'never learn':18}{len(groups['never learn']):>4}"]


def rankings(points, own):
    """Lines with Kendall's tau-b between each start and steps and the longest training from scratch.

    Shorter trainings from scratch share its random weights and its first batches, which warm ones do not.
    """
    ways = collections.defaultdict(list)  # each has the architectures in the same order
    for p in points:
        ways[p.start, p.steps].append((p.score, -99.0 if p.mlm is None else -p.mlm))
    full = ways.pop(max(way for way in ways if way[0] == "scratch"))
    lines, of_score = [f"{'start':>8}{'steps':>8}{'score tau':>11}{'p':>7}{'MLM tau':>11}{'p':>7}"], {}
    for way in sorted(ways, key=lambda way: (way[0] == "scratch", way[1])):
        both = [glue.kendall_tau(x, y) for x, y in zip(zip(*ways[way]), zip(*full))]
        of_score[way] = both[0][0]
        lines.append(f"{way[0]:>8}{way[1]:>8}" + "".join(f"{tau:>11.2f}{p:>7.3f}" for tau, p in both))
    if len({score for score, _ in full}) == 1:
        return [*lines, "All scores of the longest training are equal: there is nothing to rank."]
    like = [steps for (start, steps), tau in of_score.items() if start == "scratch" and tau >= of_score["warm", own]]
    said = f"{min(like)} steps from scratch rank" if like else "no shorter training from scratch ranks"
    return [*lines, f"By score, {said} the architectures at least as well as {own} warm steps do."]


def summary(points, own):
    """What the Points say, in words and tables; own: the warm steps that stand for the search's evaluation."""
    passed, architectures = [p for p in points if p.kind != "collapsed"], collections.defaultdict(list)
    for p in passed:
        architectures[p.kind, p.number].append(p)
    n, full = len(architectures), max(p.steps for p in passed if p.start == "scratch")
    fails = sum(not p.learned for p in passed if (p.start, p.steps) == ("scratch", full))
    cold, warm = ([p.learned for p in points if (p.kind, p.start) == ("collapsed", start)]
                  for start in ("scratch", "warm"))
    return "\n".join([
        f"{n} architectures that the super-net has never seen, from its weights (warm) and from scratch", "",
        *means(passed)[0], "",
        f"Cost: pre-training steps from scratch to the score after {own} warm steps, divided by {own}.",
        f"Median and quartiles; not reached: nor after {full} steps, a lower bound (>=); at once: by the first count,",
        "an upper bound (<=). The best of several scores from scratch against one warm one: that favours scratch.",
        *savings(architectures, own),
        "The paper saves 80 to 87 % of the GPU hours of a whole evaluation, fine-tuning included: a factor of 5 to 8.",
        "",
        f"Fidelity (Fig. 8): Kendall's tau-b with the ranking after {full} steps from scratch, n = {n}",
        *rankings(passed, own), "",
        f"Probe: it let {n} pass, of which {fails} did not learn in {full} steps from scratch; it turned {len(cold)} "
        f"away as collapsed, of which {sum(cold)} did learn, and {sum(warm)} from the super-net."])


def fidelity(points, own):
    """Fig. 8 as SVG: a dot an architecture, its score after `own` warm steps and after the most from scratch."""
    full = max(p.steps for p in points if p.start == "scratch")
    pairs = [[p for p in points if (p.start, p.steps) == way] for way in (("warm", own), ("scratch", full))]
    tau, chance = glue.kendall_tau(*([p.score for p in side] for side in pairs))
    kinds, ends = list(dict.fromkeys(p.kind for p in points)), [side(p.score for p in pairs[0]) for side in (min, max)]
    dots = [(w.score, s.score, f"s{kinds.index(w.kind)}", f"{w.kind} {w.number}: {w.score:.3f}, {s.score:.3f}")
            for w, s in zip(*pairs)]
    return autobert.chart(f"Fidelity: Kendall's tau-b {tau:.2f}, p = {chance:.3f}, n = {len(dots)}",
                          f"search score: after {own} steps from the super-net",
                          f"full score: after {full} steps from scratch",
                          {**dict.fromkeys(kinds, ((), ())), "both the same": (ends, ends)}, dots)


def conclude(points, steps, out):
    """The summary of the Points; written to `out`, with both pictures. steps: of a candidate in the search."""
    points = sorted(points, key=lambda p: p[:2])  # a file to which architectures were added has another order
    passed = [p for p in points if p.kind != "collapsed"]
    own = min(sorted({p.steps for p in passed if p.start == "warm"}), key=lambda warm: abs(warm - steps))
    text = summary(points, own)
    data.write_beside(out / "summary.txt", text + "\n")
    data.write_beside(out / "sharing.svg", autobert.chart(
        "Does weight sharing pay?", "pre-training steps", "mean score with quartiles", means(passed)[1], log=True))
    data.write_beside(out / "fidelity.svg", fidelity(passed, own))
    return text


def recorded(path):
    """(the Points of a whole points.tsv, the steps that a candidate of their search had)."""
    points = read_rows(path, Point._fields, functools.partial(row_of, Point))
    ways = collections.defaultdict(list)  # of each architecture that the probe let pass
    for p in points:
        if p.kind != "collapsed":
            ways[p.kind, p.number].append((p.start, p.steps))
    first = sorted(next(iter(ways.values()), []))
    if {start for start, _ in first} != {"warm", "scratch"} or any(sorted(found) != first for found in ways.values()):
        raise UserError(f"{path}: expected each architecture's points, warm and from scratch, after the same steps; "
                        "where some are missing, finish with: python opnas.py sharing RUN")
    warm = [p.steps for p in points if (p.kind, p.start) == ("collapsed", "warm")]  # these take the search's steps
    return points, statistics.median_low(warm or [steps for start, steps in first if start == "warm"])


def sharing(folder, out, team, flags):
    """Train new architectures from a finished run's super-net and from scratch: points, summary and chart."""
    start = time.time()
    if not (folder / "best.json").exists() or not (folder / "supernet.pt").exists():
        raise UserError(f"{folder}: not a finished search; finish it with: python opnas.py resume {folder}")
    team.open(folder)
    run, s = Run(folder, team), team.bench.s
    if not any(c.score is not None for c in run.known.values()):
        raise UserError(f"{run.log}: no candidate with a score; expected the log of a finished search")
    if s.strategy == "random":
        raise UserError(f"{folder}: a search from scratch, its super-net is untrained; expected another strategy")
    warm = flags.warm or sorted({math.ceil(s.steps * share) for share in (0.5, 1, 2)})
    scratch = flags.scratch or sorted({math.ceil(s.steps * times) for times in (0.5, 1, 2, 4, 8, 16)})
    counts = {"random": flags.architectures - flags.architectures // 2, "mutant": flags.architectures // 2,
              "collapsed": flags.collapsed}
    ways = [(start, steps) for start, list_ in (("scratch", scratch), ("warm", warm)) for steps in list_[::-1]]
    least = [("scratch", scratch[-1]), ("warm", s.steps)]  # what is of interest of a collapsed one
    todo = [Point(kind, number, *way, backbone=backbone)
            for kind, number, backbone in newcomers(team.bench, run.known, counts, flags.seed)
            for way in (least if kind == "collapsed" else ways)]
    points = measure(out / "points.tsv", todo, team, lambda p: ("point", p.backbone, p.start, p.steps, flags.seed),
                     ("mlm", "score", "learned", "seconds"))
    print(f"\n{conclude(points, s.steps, out)}\n\n{out}: done in {time.time() - start:.0f}s")


# ---- Is UCB worth it? (Fig. 6) ----

ARMS = {  # what compare can compare: the strategies, and a search with one part of the method taken out
    **{name: {"strategy": name} for name in STRATEGIES}, "literal": {"tau": 1.0, "alpha": 0.01},
    "mean-write-back": {"write_back": "mean"}, "bare-kernels": {"transforms": "off"}, "no-probe": {"collapse": 0.0},
}
FAMILIES = {  # what a node adds to a synthetic landscape; w(...) is a fixed Gaussian number, reads its operands' ops
    "by position": lambda w, layer, t, op, reads: w(t, op),
    "by op": lambda w, layer, t, op, reads: w(op),
    "by motif": lambda w, layer, t, op, reads: 3 * sum(w(op, r) for r in reads if abs(w(op, r, "is one")) > 1.6),
    "op in context": lambda w, layer, t, op, reads: w(op, reads[0]),
    "misleading": lambda w, layer, t, op, reads: (-1) ** layer * w(t, op),  # good in one layer, bad in the next
    "none": None,  # a number of its own for every backbone
}


def landscape(family, seed):
    """A made-up true fitness of backbones, (0, 1), in microseconds: logistic(z / 3), z about N(mean, 1) at random.

    z is the sum over layers / sqrt(layers); a layer is worth w(layer, kernel), or the sum over its graph's nodes /
    sqrt(nodes) of what FAMILIES says.
    """
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


def on_landscape(settings, family, layers, noise):
    """[true fitness of the candidate with the best score so far, for every candidate]; score = true + noise."""
    true = landscape(family, settings.seed)

    def fitness(batch):  # the noise is the backbone's, so that it is the same for every arm
        for c in batch:
            score = true(c.backbone) + noise * random.Random(f"{settings.seed} {c.backbone}").gauss(0, 1)
            yield replace(c, score=min(1.0, max(0.0, score)))
    best = itertools.accumulate(evolve(settings, layers, fitness), lambda a, b: b if b.score > a.score else a)
    return [true(c.backbone) for c in best]


def interval(differences):
    """(mean, half width of its 95 % interval) by Student's t; half width inf for a single one."""
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return mean, math.inf
    z, v = 1.959964, count - 1  # the t quantile from the normal one (Cornish-Fisher), good to .3 % from v = 4 on
    t = {1: 12.706, 2: 4.303, 3: 3.182}.get(v) or (
        z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3))
    return mean, t * statistics.stdev(differences) / math.sqrt(count)


def against(arm, base, scale=100):
    """Two arms' paired numbers as text: difference with its 95 % interval, share of pairs in which the
    arm is above the base (a tie is half), and the pairs it takes to see such a difference with a power of 80 %."""
    differences = [scale * (a - b) for a, b in zip(arm, base)]
    mean, half = interval(differences)
    sd = statistics.stdev(differences) if len(differences) > 1 else math.inf
    needed = 2 + ((1.96 + 0.84) * sd / mean) ** 2 if mean else math.inf  # for a power of 80 %
    above = sum(d > 0 for d in differences) + sum(d == 0 for d in differences) / 2
    told = f"{needed:.0f}" if needed < 9999.5 else "over 9999"
    return f"{mean:+6.2f} +- {half:5.2f} {100 * above / len(differences):3.0f} % {told:>10}"


def paired(measures, base):
    """Lines of a table of {measure: {arm: {pair: number}}}: mean and sd, and the differences to the base, if finite.

    All but the MLM losses are shown x 100.
    """
    lines = []
    for name, arms in measures.items():
        scale, unit = (1, "nats") if "MLM" in name else (100, "x 100")
        head = f"{name} ({unit})"
        lines += ["", f"{head:35}{'mean':>7}{'sd':>7}   minus {base}: 95 %, pairs above, pairs for 80 % power"]
        for arm, values in arms.items():
            numbers = [scale * x for x in values.values() if math.isfinite(x)] or [math.nan]
            both = [(x, arms[base][k]) for k, x in values.items() if math.isfinite(x) and math.isfinite(arms[base][k])]
            lines.append(f"  {arm:33}{statistics.fmean(numbers):7.2f}{np.std(numbers):7.2f}"
                         + ("   " + against(*zip(*both), scale) if both and arm != base else ""))
    return lines[1:]


def compare(curves, population, base, out, titles, extra):
    """Write curves.tsv, pairs.tsv and curves.svg, and return the table.

    curves: {arm: {pair: [best so far after each candidate]}}; the first population, which the arms share, does not
    count in the mean over time. titles: of the picture and its y axis. extra: {measure: {arm: {pair: number}}},
    compared too where two pairs have it.
    """
    measures = {"final": {arm: {k: c[-1] for k, c in runs.items()} for arm, runs in curves.items()},
                "mean over time": {arm: {k: statistics.fmean(c[population:] or c) for k, c in runs.items()}
                                   for arm, runs in curves.items()}, **extra}
    whole = [name for name, arms in measures.items() if all(arms[arm].keys() == curves[arm].keys() for arm in arms)]
    rows = [(arm, k, *(f"{measures[name][arm][k]:.6f}" for name in whole)) for arm in curves for k in curves[arm]]
    data.write_beside(out / "pairs.tsv", autobert.tsv(("arm", "pair", *whole), *rows))
    series, rows = {}, [("arm", "candidates", "mean", "sd")]
    for arm, runs in curves.items():
        columns = list(zip(*runs.values()))
        mean, sd = list(map(statistics.fmean, columns)), list(map(statistics.pstdev, columns))
        rows += [(arm, i, f"{m:.6f}", f"{d:.6f}") for i, (m, d) in enumerate(zip(mean, sd), 1)]
        error = [d / math.sqrt(len(runs)) for d in sd]  # of the mean: bands of sd would hide each other
        series[arm] = (range(1, len(mean) + 1), mean, [m - e for m, e in zip(mean, error)],
                       [m + e for m, e in zip(mean, error)])
    data.write_beside(out / "curves.tsv", autobert.tsv(*rows))
    chart = autobert.chart(titles[0], "candidates", f"{titles[1]}, mean and standard error", series)
    data.write_beside(out / "curves.svg", chart)
    return "\n".join(paired(measures, base))


def on_landscapes(arms, settings, pairs, layers, noise):
    """({arm: {pair: curve}}, {measure: {arm: {pair: number}}}) on synthetic landscapes.

    Pair i has the i-th landscape, first population and noise. The measures are of the families with two pairs or more.
    """
    families, curves = itertools.cycle(FAMILIES), {arm: {} for arm in arms}
    for seed, family in zip(range(settings.seed, settings.seed + pairs), families):
        for arm in arms:
            curves[arm][f"{seed} {family}"] = on_landscape(replace(settings, seed=seed, **ARMS[arm]), family, layers,
                                                           noise)
        print(f"pair={seed} family={family} " + " ".join(
            f"{arm}={list(runs.values())[-1][-1]:.3f}" for arm, runs in curves.items()), flush=True)
    return curves, {f"final, {family}": {arm: {k: c[-1] for k, c in runs.items() if k.endswith(f" {family}")}
                                         for arm, runs in curves.items()}
                    for i, family in enumerate(FAMILIES) if pairs > i + len(FAMILIES)}


def on_the_task(arms, settings, pairs, out, team, args):
    """({arm: {seed: curve}}, {column: {arm: {seed: number}}}): a search per arm and seed, its winner fully trained.

    All that begin alike share their first population: it is judged once, in OUT/first-SEED.
    """
    curves, full, mean, least = ({arm: {} for arm in arms} for _ in range(4))
    for seed in range(settings.seed, settings.seed + pairs):
        bare, first = out / f"bare-{seed}", out / f"first-{seed}"
        wanted = {"settings": replace(settings, seed=seed, rounds=0), **sources(args.corpus, args.glue)}
        if not bare.exists():
            prepare(bare, wanted["settings"], args.corpus, args.glue)
        elif any(read_settings(bare)[key] != value for key, value in wanted.items()):
            raise UserError(f"{bare}: a run with other settings or texts; give another --out")
        alike = {arm: not {"write_back", "transforms", "collapse"} & ARMS[arm].keys() and arm != "random"
                 for arm in arms}
        if any(alike.values()):
            with locked(branch(bare, first, rounds=0)):
                team.open(first)
                evolved(first, team)
        for arm in arms:
            folder = branch(first if alike[arm] else bare, out / f"{arm}-{seed}", rounds=settings.rounds, **ARMS[arm])
            with locked(folder):
                team.open(folder)
                run, everyone, winner = evolved(folder, team)
                result, = finals(run, {"best": winner.backbone})
            scores = (c.score or 0.0 for c in everyone if c.number is not None)
            curves[arm][seed] = list(itertools.accumulate(scores, max))
            full[arm][seed] = statistics.fmean(score for _, score in result["tasks"])
            last = [c.mlm for c in everyone if c.round == settings.rounds and c.mlm is not None] or [math.nan]
            mean[arm][seed], least[arm][seed] = statistics.fmean(last), min(last)
            print(f"arm={arm} seed={seed} full={full[arm][seed]:.3f} best={curves[arm][seed][-1]:.3f} "
                  f"candidates={len(curves[arm][seed])} rejected={sum(c.score is None for c in everyone)} "
                  f"last-round-mlm={mean[arm][seed]:.3f}/{least[arm][seed]:.3f}", flush=True)
    return curves, {"winner, fully trained": full, "last round's MLM, mean": mean, "last round's MLM, best": least}


def branch(source, folder, **changes):
    """A copy of a run's folder with other settings, unless it is there already: a search that goes on differently."""
    saved = read_settings(source)
    saved["settings"] = replace(saved["settings"], **changes)
    if folder.exists():
        if read_settings(folder)["settings"] != saved["settings"]:
            raise UserError(f"{folder}: a run with other settings; give another --out")
        return folder
    with data.folder_beside(folder) as beside:
        left = shutil.ignore_patterns("best.*", "lock", ".*", "report.html")  # what a search adds at its end
        shutil.copytree(source, beside, dirs_exist_ok=True, ignore=left)
        write_settings(beside, saved)
    return folder


# ---- What matters in a backbone? (Table 5) ----


class Training(NamedTuple):
    """One full training of one backbone from random weights, a row of ablations/points.tsv. mlm None: it diverged."""
    name: str
    seed: int
    steps: int  # of pre-training
    tasks: str  # CoLA,RTE ..
    mlm: float | None = None
    scores: tuple = ()  # of the tasks
    seconds: float = 0.0
    backbone: tuple = ()


def contenders(folder, asked, base, layers):
    """{name: backbone} of --backbones, by default the published ones and, if the search is over, its best."""
    best = folder / "best.json"
    names = asked.split(",") if asked else [*autobert.BACKBONES, *["best"] * best.exists()]
    for name in names:
        if names.count(name) > 1 or not name.isprintable():
            raise UserError(f"--backbones {name!r}: expected each once, and names of printable characters")
    if base not in names:
        raise UserError(f"--base {base!r}: expected one of the backbones, {', '.join(names)}")
    if "best" in names and not best.exists():
        raise UserError(f"{best}: not there yet; leave out 'best', or finish the search: opnas.py resume {folder}")
    return {name: autobert.load_backbone(str(best) if name == "best" else name, layers) for name in names}


def evidence(config, n, backbones, rows, base):
    """What the Trainings say: per measure means and differences to the base, what the backbones cost, a verdict."""
    of = lambda value: {name: {r.seed: value(r) for r in rows if r.name == name} for name in backbones}  # noqa: E731
    measures = {"average": of(lambda r: statistics.fmean(r.scores))}
    measures |= {task: of(lambda r, i=i: r.scores[i]) for i, task in enumerate(rows[0].tasks.split(","))}
    measures["held-out MLM loss"] = of(lambda r: math.nan if r.mlm is None else r.mlm)
    lines = [*paired(measures, base), "", f"{'cost':35}{'params':>7}{'FLOPs':>10}"]
    for name, backbone in backbones.items():
        lines.append("  {:33}{:>7}{:>10}".format(name, *costs(config, backbone, n)))
    found, averages = collections.defaultdict(list), measures["average"]
    for name in (name for name in backbones if name != base):
        mean, half = interval([averages[name][seed] - averages[base][seed] for seed in averages[name]])
        found["above" if mean > half else "below" if mean < -half else "open"].append(name)
    above, below, left = (", ".join(found[way]) or "none" for way in ("above", "below", "open"))
    return "\n".join([*lines, "", f"By the average score, each 95 % interval taken for itself: better than {base}: "
                      f"{above}; worse: {below}; cannot be told from {base} (seeds: {len(averages[base])}): {left}."])


def spread(backbones, rows):
    """The Trainings as SVG: each one's average a dot, the mean over seeds a ring on its 95 % interval."""
    series, dots = {}, []
    for i, name in enumerate(backbones):
        scores = {r.seed: statistics.fmean(r.scores) for r in rows if r.name == name}
        mean, half = interval(list(scores.values()))
        series[name] = (i + 1, i + 1), (mean - half, mean + half)
        dots += [(i + 1.1, score, f"s{i % 6}", f"{name}, seed {seed}: {score:.3f}") for seed, score in scores.items()]
        dots.append((i + 1, mean, "off", f"{name}: mean {mean:.3f} +- {half:.3f}"))
    return autobert.chart("What matters in a backbone?", "backbones in the order of the legend",
                          "average score, mean with 95 % interval", series, dots)


def ablations(backbones, out, team, flags):
    """Train {name: backbone} from scratch with one budget and the same seeds: points, summary and picture."""
    start, s = time.time(), team.bench.s
    todo = [Training(name, seed, flags.steps or s.final_steps, s.tasks, backbone=backbone)
            for seed in flags.seeds for name, backbone in backbones.items()]  # so that a stopped one has whole pairs
    rows = measure(out / "points.tsv", todo, team, lambda r: ("final", r.backbone, r.steps, r.seed),
                   ("mlm", "scores", "seconds"))
    text = evidence(team.bench.config, s.n, backbones, rows, flags.base)
    data.write_beside(out / "summary.txt", text + "\n")
    data.write_beside(out / "ablations.svg", spread(backbones, rows))
    print(f"\n{text}\n\n{out}: done in {time.time() - start:.0f}s")


# ---- Command line ----


def out_folder(out):
    """The path of --out, a folder that is there or can be made; UserError if not."""
    out = Path(os.path.abspath(out))
    data.check_out(out, folder=True)
    return out


def add_machine_flags(parser):
    """--device and --workers, which change no result."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=data.number(int, 1, 1000),
                        help="processes that judge candidates; default: one a core, on cuda one a GPU; "
                             "under torchrun its processes")


def add_settings(parser):
    """--preset, --corpus, --glue, and a flag for every search setting."""
    parser.add_argument("--preset", choices=PRESETS, default="toy", help="where the settings below come from")
    parser.add_argument("--corpus", nargs="+", help="text, .gz, .xz: a sentence a line, blank between; or a cache")
    parser.add_argument("--glue", help="folder with CoLA/, RTE/ .. as in the GLUE download")
    for f in fields(SearchSettings):
        kind = f.type if f.type is str else data.number(int if f.type is int else float)
        text = f.metadata["help"] + (f" (toy: {f.default})" if f.default not in (None, "") else "")
        text += ": " * bool(f.metadata["choices"]) + ", ".join(f.metadata["choices"])
        parser.add_argument("--" + f.name.replace("_", "-"), type=kind, default=argparse.SUPPRESS, help=text)


def given_settings(args, **defaults):
    """The SearchSettings of the command line: preset, then defaults, then flags. UserError if they do not fit."""
    given = {f.name: getattr(args, f.name) for f in fields(SearchSettings) if hasattr(args, f.name)}
    settings = check_settings(replace(PRESETS[args.preset], **{**defaults, **given}))
    if settings.size != "toy" and not args.corpus:
        raise UserError(f"size {settings.size}: the toy language is too small for it; give --corpus and --glue")
    if bool(args.corpus) != bool(args.glue):
        raise UserError("--corpus and --glue go together: give both, or none for the toy language")
    return settings


@contextlib.contextmanager
def at_work(args, run=None):
    """The Team of a command; ends whatever stops it in one line that says how to go on: with run, or as it began."""
    again = f"{'torchrun ..' if launched() else 'python'} opnas.py resume {shlex.quote(str(run))}" if run else \
        "the same command"
    device = autobert.find_device(args.device).type
    if args.workers and launched():
        raise UserError(f"--workers {args.workers}: torchrun has already started its processes; leave it out")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = args.workers or (torch.cuda.device_count() if device == "cuda" else cores)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both stop the run in the same clean way
    try:
        with Team(workers, device) as team:
            yield team
    except KeyboardInterrupt:
        begun = not run or run.exists()
        raise UserError(f"interrupted; go on with: {again}" if begun else "interrupted before it began") from None
    except (WorkerDied, torch.distributed.DistError) as error:
        why = f" ({' '.join(str(error).split())[:100]})" if str(error) else ""
        raise UserError(f"a worker died, out of memory?{why}; go on with: {again}") from None


def locked(folder):
    """No second process works on a folder, made if it is not there, while this context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").touch()
    return data.lock(folder / "lock")


def main_search(argv):
    """python opnas.py [flags]: a new run."""
    parser = data.Parser(prog="opnas.py", description=__doc__.split("\n")[0],
                         epilog="Other commands: " + ", ".join(f"opnas.py {name}" for name in COMMANDS))
    add_settings(parser)
    parser.add_argument("--out", help="the run's folder; default: runs/001 or the next free number")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    settings, out = given_settings(args), free_folder(args.out, args.overwrite)
    with at_work(args, out) as team:
        with locked(out) if out.exists() else contextlib.nullcontext():  # --overwrite
            prepare(out, settings, args.corpus, args.glue)
        with locked(out):
            search(out, team)


def main_resume(argv):
    """python opnas.py resume RUN."""
    parser = data.Parser(prog="opnas.py resume", description="Go on with a stopped run, or show its table again.")
    parser.add_argument("run", help="the run's folder")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    folder = Path(os.path.abspath(args.run))
    read_settings(folder)
    with at_work(args, folder) as team, locked(folder):
        search(folder, team)


def check_comparison(args, arms, base, out):
    """UserError if compare cannot run with these flags."""
    for arm in arms:
        if arm not in ARMS or arms.count(arm) > 1:
            raise UserError(f"--arms {arm!r}: expected each once, of {', '.join(ARMS)}")
    if base not in arms:
        raise UserError(f"--base {base!r}: expected one of the arms, {', '.join(arms)}")
    for name in ("strategy", "final_seeds"):
        if hasattr(args, name):
            raise UserError(f"--{name.replace('_', '-')}: compare sets it itself; leave it out (see --arms)")
    if (out / "settings.json").exists() or args.landscapes and list(out.glob("bare-*")):
        raise UserError(f"--out {str(out)!r} holds other results; give another")


def main_compare(argv):
    """python opnas.py compare: the same seeds for every strategy."""
    parser = data.Parser(
        prog="opnas.py compare", description="Strategies under one budget and with the same seeds (Fig. 6): best so "
        "far against candidates, and paired differences. Writes table.txt, pairs.tsv, curves.tsv and curves.svg.",
        epilog="Arms: the strategies; literal: op-nas with tau = 1 and alpha = 0.01, as printed; op-nas with one part "
        "changed: mean-write-back, bare-kernels (no transforms), no-probe (collapsed candidates are trained). "
        "On landscapes the defaults are --population 50 --parents 5 --children 5 --rounds 4.")
    parser.add_argument("--landscapes", action="store_true",
                        help="made-up fitness functions (two minutes) in place of trained candidates")
    parser.add_argument("--seeds", type=data.number(int, 1, 10**5), help="default: 5; landscapes: 60")
    parser.add_argument("--arms", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--base", help="the arm that the others are paired with; default: ea+ws")
    parser.add_argument("--out", help="folder; a stopped comparison goes on from what is there; "
                        "default: runs/compare, runs/landscapes")
    parser.add_argument("--layers", type=data.number(int, 1, 99), default=12, help="of backbones on landscapes")
    parser.add_argument("--noise", type=data.number(float, 0), default=0.04,
                        help="standard deviation of a score on landscapes; that of true fitness at random is 0.08")
    add_settings(parser)
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    arms = (args.arms or ("op-nas,literal,ea+ws,ea-copy,op-nas-copy,random" if args.landscapes else
                          "op-nas,ea+ws,random+ws,random")).split(",")
    base = args.base or ("ea+ws" if "ea+ws" in arms else arms[0])
    out = out_folder(args.out or ("runs/landscapes" if args.landscapes else "runs/compare"))
    check_comparison(args, arms, base, out)
    settings = given_settings(args, **dict(population=50, parents=5, children=5, rounds=4) if args.landscapes else {})
    fresh = not out.exists()
    if args.landscapes:
        curves, extra = on_landscapes(arms, settings, args.seeds or 60, args.layers, args.noise)
    else:
        try:
            with at_work(args) as team, locked(out):
                curves, extra = on_the_task(arms, settings, args.seeds or 5, out, team, args)
        finally:
            if fresh and list(out.glob("*")) == [out / "lock"]:  # nothing was begun
                shutil.rmtree(out)
    titles = (("Search strategies on synthetic landscapes", "true fitness of the best") if args.landscapes else
              ("Search strategies", "best score"))
    text = compare(curves, settings.population, base, out, titles, extra)
    data.write_beside(out / "table.txt", text + "\n")
    print(f"\n{text}\n\nwrote {out}/table.txt, pairs.tsv, curves.tsv, curves.svg")


def main_sharing(argv):
    """python opnas.py sharing RUN."""
    def counts(text):
        return sorted({data.number(int, 1)(part) for part in text.split(",")})

    parser = data.Parser(prog="opnas.py sharing", description="Does weight sharing pay? Train new architectures from a "
                         "finished run's super-net and from scratch. Stopped, it goes on when called again.")
    parser.add_argument("run", nargs="?", help="the run's folder")
    parser.add_argument("--points", metavar="FILE", help="in place of RUN: train nothing, and write summary.txt and "
                        "the pictures of a recorded points.tsv to --out")
    parser.add_argument("--architectures", type=data.number(int, 2), default=12,
                        help="new ones that the probe lets pass: half random, half mutants of the best")
    parser.add_argument("--collapsed", type=data.number(int, 0), default=6, help="new ones that it turns away")
    parser.add_argument("--warm", type=counts, metavar="STEPS,..", help="pre-training steps from the super-net; "
                        "default: 1/2, 1 and 2 times the run's --steps")
    parser.add_argument("--scratch", type=counts, metavar="STEPS,..", help="steps from random weights, the largest is "
                        "the full training; default: 1/2, 1, 2, 4, 8 and 16 times the run's --steps")
    parser.add_argument("--seed", type=data.number(int, 0, data.SEEDS), default=0, help="of architectures, training")
    parser.add_argument("--out", help="folder of points.tsv, summary.txt, sharing.svg, fidelity.svg; default: "
                        "RUN/sharing, or where FILE is")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.points):
        raise UserError("expected either RUN, the folder of a finished search, or --points FILE")
    if args.points:
        print(conclude(*recorded(Path(args.points)), out_folder(args.out or Path(args.points).parent)))
        return
    folder = Path(os.path.abspath(args.run))
    read_settings(folder)
    out = out_folder(args.out or folder / "sharing")
    with at_work(args) as team, locked(folder):
        sharing(folder, out, team, args)


def main_ablations(argv):
    """python opnas.py ablations RUN."""
    parser = data.Parser(prog="opnas.py ablations", description="What matters in a backbone (Table 5)? Train several "
                         "from scratch with one budget, over several seeds. Stopped, it goes on when called again.")
    parser.add_argument("run", help="the run whose text, tokenizer, tasks and settings are taken")
    parser.add_argument("--backbones", metavar="NAME,..", help=f"of {', '.join(autobert.BACKBONES)}, best (the "
                        "search's), and files; default: all of these that are there")
    parser.add_argument("--base", default="bert", help="what the others are compared with")
    parser.add_argument("--seeds", type=data.number(int, 1, 10**5), default=5, help="how many, from --seed on")
    parser.add_argument("--seed", type=data.number(int, 0, data.SEEDS - 10**5), help="the first; default: the run's")
    parser.add_argument("--steps", type=data.number(int, 1), help="of pre-training; default: the run's --final-steps")
    parser.add_argument("--out", help="folder of points.tsv, summary.txt, ablations.svg; default: RUN/ablations")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    folder = Path(os.path.abspath(args.run))
    s = read_settings(folder)["settings"]
    backbones = contenders(folder, args.backbones, args.base, autobert.SIZES[s.size].layers)
    first = s.seed if args.seed is None else args.seed
    args.seeds = range(first, first + args.seeds)
    out = out_folder(args.out or folder / "ablations")
    with at_work(args) as team, locked(out):
        team.open(folder)
        ablations(backbones, out, team, args)


def main_report(argv):
    """python opnas.py report RUN."""
    parser = data.Parser(prog="opnas.py report", description="What a run found: as text, and as RUN/report.html.")
    parser.add_argument("run", help="the run's folder; the search may still be going on")
    report(parser.parse_args(argv).run)


COMMANDS = {"resume": main_resume, "report": main_report, "compare": main_compare, "sharing": main_sharing,
            "ablations": main_ablations}


def main(argv=None):
    """The command line: python opnas.py [flags], or python opnas.py COMMAND ..."""
    argv = sys.argv[1:] if argv is None else list(argv)
    leads = argv[:1] == ["report"] or {"-h", "--help", "--landscapes", "--points"} & set(argv)  # for one process alone
    if launched() and int(os.environ["RANK"]):
        return None if leads else follow()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(f"{argv[0]!r}: no such command; expected one of {', '.join(COMMANDS)}, or only flags")
    return COMMANDS[argv[0]](argv[1:]) if argv and argv[0] in COMMANDS else main_search(argv)


if __name__ == "__main__":
    sys.exit(data.run_cli(main))
