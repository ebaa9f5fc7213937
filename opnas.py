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

Read last.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

import autobert
import data
import glue
import ops
from autobert import KERNELS, Diverged, kernel_of
from data import UserError
from supernet import SuperNet, write_order

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ---- Settings ----


def option(default, text, least=1, most=math.inf):
    """A field of SearchSettings with the help text of its flag, and the values it takes."""
    return field(default=default, metadata={"help": text, "least": least, "most": most})


@dataclass(frozen=True)
class SearchSettings:
    """All that decides a search's outcome, beside its corpus and task files."""
    size: str = option("toy", "model size: " + ", ".join(autobert.SIZES))
    vocab: int = option(data.TOY_VOCAB, "sentencepiece vocabulary")
    tasks: str = option("", "tasks that make the score, e.g. CoLA,RTE; default: the toy language's three")
    population: int = option(12, "random backbones at the start, |M| (Alg. 1 l.1)")
    parents: int = option(2, "K, the best that are mutated each round (l.4)")
    children: int = option(2, "mutants of each parent (l.5)")
    rounds: int = option(4, "rounds of mutation (l.3)", 0)
    alpha: float | None = option(None, "weight of the UCB bonus; default: 0.1 standard deviations of the scores", 0)
    tau: float | None = option(None, "temperature of p = softmax(u / tau); 1: the literal paper; default: 0.1 sd", 0)
    collapse: float = option(0.5, "least token-varying share of the last hidden states before training; 0: any", 0, 1)
    least_gain: float = option(0.05, "nats below the unigram entropy that a learner's held-out MLM loss must end",
                               -math.inf)
    select: str = option("dev", "score candidates on the tasks' dev rows, or on a tenth of train: dev, train")
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
    "paper": SearchSettings("base", 30_000, ",".join(glue.TASKS), 100, 5, 5, 27, alpha=0.01, rows=0, steps=40_000,
                            cold=1, final_steps=1_000_000, batch=160, n=128, lr=2e-4, warmup=0.02, beta2=0.999,
                            finetune_lr=2e-5, finetune_batch=32, finetune_warmup=0.01),
}


def check_settings(s):
    """The settings, with the toy language's tasks if none are given; UserError with the first one out of range."""
    for f in fields(s):
        value, kind = getattr(s, f.name), f.type if f.type in (int, str) else (int, float)
        least, most = f.metadata["least"], f.metadata["most"]
        if isinstance(value, kind) and (kind is str or least <= value <= most and abs(value) < math.inf) or (
                value is f.default is None):
            continue
        what = {int: "an integer", str: "text"}.get(f.type, "a number")
        limits = "" if kind is str else f" from {least}" + f" to {most}" * (most < math.inf)
        raise UserError(f"--{f.name.replace('_', '-')} {value!r}: expected {what}{limits}")
    s = replace(s, tasks=s.tasks or ",".join(data.TOY_SEARCH_TASKS))
    tasks = [glue.find_task(task).name for task in s.tasks.split(",")]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"--tasks {s.tasks}: a task is named twice")
    if s.size not in autobert.SIZES:
        raise UserError(f"--size {s.size!r}: expected one of {', '.join(autobert.SIZES)}")
    if s.select not in ("dev", "train"):
        raise UserError(f"--select {s.select!r}: expected dev or train")
    if s.n > autobert.SIZES[s.size].positions:
        raise UserError(f"--n {s.n}: size {s.size} has {autobert.SIZES[s.size].positions} positions")
    return s


# ---- UCB (Eq. 3) ----


class OperationPriority:
    """What has done well where: a table of ops per position of an attention's path, a table of kernels per layer.

    The position tables are shared by all layers; a path of length k uses the first k of them. A place is a position
    (an int) or ("layer", i). Everything is recomputed from all candidates ever scored.
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
            weight = {i: math.exp((u_i - top) / tau) if tau else float(u_i == top) for i, u_i in u.items()}
            self.drawn[place] = {i: w / sum(weight.values()) for i, w in weight.items()}
        return self.drawn[place]

    def spread(self):
        """Standard deviation of the scores in M."""
        return statistics.pstdev(self.scores) if self.scores else 0.0

    def perplexity(self, kind=int):
        """(mean perplexity of p over the places seen, sum of N_i): how sharp the draws are, on how much they rest."""
        places = [place for place in self.tables if isinstance(place, kind)]
        entropies = [-sum(p * math.log(p) for p in self.p(place).values() if p) for place in places]
        counted = sum(len(scores) for place in places for scores in self.tables[place].values())
        return (statistics.fmean(map(math.exp, entropies)) if places else float(len(ops.OPS))), counted


def _draw(rng, p):
    return rng.choices(list(p), list(p.values()))[0]


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


def mutate_inter(backbone, tables, rng, counts):
    """MutationInterLayer (l.6): with p = 1/2 flip the type of a uniformly chosen layer, its content drawn by UCB.

    CHOICE: the paper calls it random; what the new layer holds is drawn from the tables like any other op or kernel.
    """
    if rng.random() < 0.5:
        return backbone
    layer = rng.randrange(len(backbone))
    if kernel_of(backbone[layer]):
        gene = grow(tables, rng, counts)
    else:
        gene = f"conv {_draw(rng, tables.p(('layer', layer)))}"
    return (*backbone[:layer], gene, *backbone[layer + 1:])


def mutate_dag(dag, tables, rng):
    """One edit of a path: replace an op (1/2), insert one (.2), delete one (.2), rewire one (.1). May be illegal.

    CHOICE: these odds; the paper says only that the op at each position is drawn by UCB. On -Q, softsign(.):
    replace at 1: -Q, scale(.); insert at 1: -Q, T(.), softsign(.); delete at 0: softsign(Q); rewire at 1: softsign(K)
    """
    edit = rng.choices(("replace", "insert", "delete", "rewire"), (0.5, 0.2, 0.2, 0.1))[0]
    t = rng.randrange(len(dag) + (edit == "insert"))  # an insertion may also come behind the output
    slot = 4 + t

    def moved(args, by, instead=None):  # operands of the later nodes after an insertion or deletion at t
        return [instead if a == slot and instead is not None else a + by * (a >= slot) for a in args]

    if edit == "insert":
        op = _draw(rng, tables.p(min(t, len(dag) - 1)))  # a path of length k draws from the first k tables only
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
        op = _draw(rng, tables.p(t))
        rng.shuffle(args)
        args = [*args, rng.randrange(slot)][:ops.OPS[op].arity]
    else:
        args[rng.randrange(len(args))] = rng.randrange(slot)
    return (*dag[:t], (op, *args), *dag[t + 1:])


def mutate_intra(backbone, tables, rng, counts):
    """MutationIntraLayer (l.7) of a uniformly chosen layer: a new kernel, or an edit of its path. None if illegal."""
    layer = rng.randrange(len(backbone))
    if kernel_of(backbone[layer]):
        gene = f"conv {_draw(rng, tables.p(('layer', layer)))}"
    else:
        dag = mutate_dag(ops.parse(backbone[layer]), tables, rng)
        dag = ops.canonical(dag) if dag else dag
        if why := ops.why_illegal(dag):
            counts["illegal: " + ("types" if why.startswith("step") else why.split(";")[0])] += 1
            return None
        gene = ops.formula(dag)
    return (*backbone[:layer], gene, *backbone[layer + 1:])


def mutate(parent, tables, rng, seen, counts):
    """A child of a backbone (l.6, l.7): legal, changed, never seen. After 200 tries a layer grows anew, counted."""
    between = mutate_inter(parent, tables, rng, counts)
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
    """One backbone on its way: number None if the probe turned it away; score None until judged, or if rejected."""
    number: int | None
    round: int
    parent: int | None
    backbone: tuple
    score: float | None = None
    reason: str = ""
    mlm: float | None = None
    seconds: float = 0.0
    tasks: tuple = ()


def evolve(settings, layers, fitness, probe=lambda candidate: None, note=lambda *_: None):
    """Algorithm 1. Returns every candidate, rejected ones too, in order.

    fitness(batch) yields the judged Candidates of a batch, which share one snapshot of the super-net (l.8, l.9).
    probe(candidate): None, or why it is turned away before that. note(event, candidate or counts, tables) reports.
    """
    rng, tables = random.Random(settings.seed), OperationPriority(settings.alpha, settings.tau)
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
    counted = 0
    for round_ in range(1, settings.rounds + 1):  # l.3; CHOICE: l.13's "until convergence" is a number of rounds
        # l.12: the tables hold M_0 before the first mutation; the rejected come last, when the worst score is known
        for candidate in sorted(everyone[counted:], key=lambda c: c.score is None):
            tables.observe(candidate.backbone, candidate.score)
        counted = len(everyone)
        note(f"round {round_}", counts, tables)
        scored = sorted((c for c in everyone if c.score is not None), key=lambda c: (-c.score, c.number))
        batch = []
        for parent in scored[:settings.parents]:  # l.4, l.5
            for _ in range(settings.children):
                make = functools.partial(mutate, parent.backbone, tables, rng, seen, counts)  # l.6, l.7
                propose(make, round_, parent.number)
        while len(batch) < size:  # too few have a score to be parents
            propose(fresh, round_)
        judge()  # l.8, l.9, l.11
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
        documents, held_out = data.split_held_out(data.load_corpus(corpus, self.tokenizer))
        self.batches = data.PretrainingData(documents, s.n, s.batch, self.config.vocab, s.seed)
        self.held_out = data.PretrainingData(held_out, s.n, 64, self.config.vocab, s.seed)
        tokens = np.bincount(np.concatenate([sentence for document in documents for sentence in document]))
        share = tokens[tokens > 0] / tokens.sum()
        self.unigram = float(-(share * np.log(share)).sum())  # nats: what knowing only the words' frequencies gives
        self.tuning = glue.FinetuneSettings(s.epochs, s.finetune_lr, batch=s.finetune_batch, warmup=s.finetune_warmup,
                                            n=s.n, small=s.size == "small")
        root = self.folder / saved["glue"] if saved["toy"] else saved["glue"]
        self.tasks = {task: self.cut(*glue.load_task(root, task, self.tokenizer, s.n)) for task in s.tasks.split(",")}

    def cut(self, train, dev):
        """At most `rows` training rows, chosen by the seed; with select = "train" a tenth of them replaces dev."""
        order = np.random.default_rng(self.s.seed).permutation(len(train.rows))[:self.s.rows or None]
        held = max(1, len(order) // 10) if self.s.select == "train" else 0
        if held == len(order):
            raise UserError(f"{len(order)} training row and --select train: expected at least 2 to hold one out")
        pick = lambda chosen: glue.Encoded([train.rows[i] for i in chosen], train.labels[chosen])  # noqa: E731
        return pick(order[held:]), ({"dev": pick(order[:held])} if held else dev)

    def probe(self, backbone):
        """Why a backbone is not worth training, or None: one forward and backward pass from random weights.

        CHOICE: collapsed = the last hidden states are nearly the same at every token of a text. Random graphs, above
        all with dist, often give large and nearly constant outputs, and post-LN then wipes the tokens out: such a
        backbone hardly ever learns from scratch, however well the super-net's warm weights carry it in the search.
        """
        with autobert.seeded(self.s.seed):
            model = autobert.Pretraining(self.config, backbone).to(self.device).eval()
        batch = autobert.to_device(self.held_out.batch(0), self.device)
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

    def train(self, model, steps, offset=0, seed=0):
        """Pre-train; the held-out MLM loss after it."""
        s = self.s
        settings = autobert.PretrainSettings(steps, s.batch, s.n, s.lr, s.warmup, s.beta2, seed=seed)
        autobert.pretrain(model, self.batches, settings, self.device, offset=offset)
        return autobert.held_out_loss(model, self.held_out, 4, self.device)["mlm"]

    def finetune(self, model, seed):
        """((task, score in [0, 1]), ...)"""
        results = {task: glue.finetune(model.encoder, task, train, dev, self.tuning, seed, self.device)
                   for task, (train, dev) in self.tasks.items()}
        return tuple((task, glue.unit_score(result["score"])) for task, result in results.items())

    def judge(self, candidate, steps, offset):
        """Alg. 1 l.8 and l.9: the candidate with score and tasks, or with the reason why it was rejected.

        Its pre-trained weights, never the fine-tuned ones, are left in children/NUMBER.pt for the write-back.
        """
        start = time.time()
        net = SuperNet(self.config, slots=autobert.load_tensors(self.folder / "supernet.pt")["slots"])
        child, mlm, tasks, reason = net.child(candidate.backbone), None, (), ""
        del net
        try:
            mlm = self.train(child, steps, offset, self.s.seed)
            if not mlm < self.unigram - self.s.least_gain:
                reason = "no learning"
            else:
                autobert.save_tensors(self.folder / "children" / f"{candidate.number}.pt", child.state_dict())
                tasks = self.finetune(child, self.s.seed)
        except Diverged:
            reason, tasks = "diverged", ()
        score = statistics.fmean(score for _, score in tasks) if tasks else None
        return replace(candidate, score=score, reason=reason, mlm=mlm, tasks=tasks, seconds=time.time() - start)

    def final(self, name, backbone, seed):
        """Full training from scratch: {"name", "seed", "mlm", "tasks"}; the weights go to NAME-SEED.pt.

        A training that diverges scores 0 and has no mlm.
        """
        with autobert.seeded(seed):
            model = autobert.Pretraining(self.config, backbone)
        mlm, tasks = None, tuple((task, 0.0) for task in self.tasks)
        with contextlib.suppress(Diverged):
            mlm = self.train(model, self.s.final_steps, seed=seed)
            tasks = self.finetune(model, seed)
        autobert.save_checkpoint(self.folder / f"{name}-{seed}.pt", model, self.tokenizer)
        return {"name": name, "seed": seed, "mlm": mlm, "tasks": tasks}


# ---- Many candidates at once ----

_bench = None  # of this process


def _open(folder, device, child=True):
    global _bench
    torch.set_num_threads(1)  # one thread each, so that the result is the same for any number of workers
    if child:
        threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    _bench = Bench(folder, device)


def _do(job):
    method, *arguments = job
    return getattr(_bench, method)(*arguments)


class Pool:
    """map(jobs): the results in order as they come, from `workers` processes, or from this one if that is 1."""

    def __init__(self, folder, device, workers):
        _open(folder, device, child=False)
        self.pool = None
        if workers > 1:
            self.pool = concurrent.futures.ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), _open, (folder, device))

    def map(self, jobs):
        if not self.pool:
            return map(_do, jobs)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for new workers: Ctrl-C is the parent's to handle
        try:
            return self.pool.map(_do, jobs)
        finally:
            signal.signal(signal.SIGINT, heard)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.pool:
            if error[0]:
                for process in multiprocessing.active_children():
                    process.terminate()
            self.pool.shutdown(cancel_futures=True)


# ---- A run and its folder ----

COLUMNS = ("cand", "round", "parent", "score", "reason", "mlm", "seconds", "tasks", "backbone")


def to_row(c):
    """A Candidate as a line of candidates.tsv; from_row reads it back exactly."""
    tasks = " ".join(f"{task}={score!r}" for task, score in c.tasks)
    cells = (c.number, c.round, c.parent, c.score, c.reason, c.mlm, f"{c.seconds:.2f}", tasks, " | ".join(c.backbone))
    return "\t".join("-" if cell in (None, "") else str(cell) for cell in cells)  # str of a float reads back exactly


def from_row(line):
    """The Candidate of a line of candidates.tsv."""
    number, round_, parent, score, reason, mlm, seconds, tasks, backbone = (
        None if cell == "-" else cell for cell in line.split("\t"))
    value = lambda kind, cell: None if cell is None else kind(cell)  # noqa: E731
    pairs = (pair.split("=") for pair in (tasks or "").split())
    if score and not 0 <= float(score) <= 1:
        raise ValueError(f"score {score}")
    return Candidate(value(int, number), int(round_), value(int, parent), tuple(backbone.split(" | ")),
                     value(float, score), reason or "", value(float, mlm), float(seconds),
                     tuple((task, float(x)) for task, x in pairs))


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


def read_log(path):
    """The Candidates in a run's candidates.tsv, by backbone. A last line that a crash cut short is dropped."""
    header, known = "\t".join(COLUMNS) + "\n", {}
    content = path.read_bytes() if path.exists() else header.encode()
    content = content[:content.rfind(b"\n") + 1]
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            if number == 1 and line.decode() + "\n" != header:
                raise ValueError("no header")
            if number > 1:
                candidate = from_row(line.decode())
                known[autobert.check_backbone(candidate.backbone)] = candidate
        except (ValueError, AttributeError, TypeError, UserError) as error:
            raise UserError(f"{path}:{number}: not a candidate ({error}); expected {' '.join(COLUMNS)}") from None
    data.write_beside(path, content.decode() or header)
    return known


class Run:
    """The state of a search on disk, which is all the state there is.

    candidates.tsv has a line for every candidate as soon as it is judged; a resumed run evolves again from the seed
    and takes what is written there instead of judging it anew. supernet.pt is the snapshot after the last whole
    generation, that is the last batch of candidates that started from one and the same super-net.
    """

    def __init__(self, folder, pool):
        self.folder, self.pool, self.log = Path(folder), pool, Path(folder) / "candidates.tsv"
        self.known = read_log(self.log)
        if not (self.folder / "supernet.pt").exists():
            self.save(SuperNet(_bench.config, _bench.s.seed), generation=0, offset=0, warm=False)
        self.saved, self.generation = autobert.load_tensors(self.folder / "supernet.pt"), 0
        with torch.device("meta"):
            shapes = {name: slot.shape for name, slot in SuperNet(_bench.config).slots.items()}
        try:
            if {name: slot.shape for name, slot in self.saved["slots"].items()} != shapes:
                raise ValueError("slots of another size")
            self.saved = {key: kind(self.saved[key]) for key, kind in
                          (("slots", dict), ("generation", int), ("offset", int), ("warm", bool))}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{self.folder / 'supernet.pt'}: not this run's super-net ({error})") from None
        self.net = SuperNet(_bench.config, slots=self.saved["slots"])

    def save(self, net, **state):
        """The snapshot with the generations it has absorbed, the text batches they used, and whether anyone wrote."""
        self.saved = {"slots": net.slots, **state}
        autobert.save_tensors(self.folder / "supernet.pt", self.saved)

    def write(self, candidate):
        try:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(to_row(candidate) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.log}: cannot be written ({error.strerror})") from None

    def probe(self, candidate):
        """For evolve: the reason why a proposal is turned away, or None."""
        if candidate.backbone in self.known:
            known = self.known[candidate.backbone]
            return known.reason if known.number is None else None
        reason = _bench.probe(candidate.backbone)
        if reason:
            self.write(replace(candidate, number=None, reason=reason))
        return reason

    def fitness(self, batch):
        """For evolve: judge a batch from one snapshot of the super-net, then write its weights back."""
        todo = [c for c in batch if c.backbone not in self.known]
        if todo and self.generation < self.saved["generation"]:
            raise UserError(f"{self.log}: candidate {todo[0].number} is missing though supernet.pt has its weights; "
                            "expected the log and settings of one and the same run")
        # CHOICE: children of an untrained super-net train longer, or none would be told from one that learns nothing
        steps = _bench.s.steps * (1 if self.saved["warm"] else _bench.s.cold)
        found = iter(self.pool.map([("judge", c, steps, self.saved["offset"]) for c in todo]))
        judged = []
        for candidate in batch:
            if candidate.backbone in self.known:
                judged.append(self.known[candidate.backbone])
            else:
                judged.append(next(found))
                self.write(judged[-1])
            yield judged[-1]
        self.generation += 1
        if self.generation > self.saved["generation"]:
            good = [c for c in judged if c.score is not None]
            for i in write_order([c.score for c in good]):
                self.net.absorb(autobert.load_tensors(self.folder / "children" / f"{good[i].number}.pt"))
            self.save(self.net, generation=self.generation, offset=self.saved["offset"] + steps,
                      warm=self.saved["warm"] or bool(good))
        for c in judged:
            (self.folder / "children" / f"{c.number}.pt").unlink(missing_ok=True)


class Progress:
    """Prints one line a candidate and one a round."""

    def __init__(self):
        self.best, self.rejected, self.backbones = None, 0, {}

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
        if what.score is not None and (self.best is None or what.score > self.best):
            self.best = what.score
        self.backbones[what.number] = what.backbone
        old = self.backbones.get(what.parent, (None,) * len(what.backbone))
        pairs = enumerate(zip(what.backbone, old), 1)
        changed = " ".join(f"L{i} {gene}" for i, (gene, before) in pairs if gene != before)
        score = f"score={what.score:.3f}" if what.score is not None else f"rejected: {what.reason}"
        print(f"cand={what.number} round={what.round} parent={'-' if what.parent is None else what.parent} {score} "
              f"best={self.best or 0:.3f} rejected={self.rejected} ppl={perplexity:.1f} "
              f"{what.seconds:.1f}s | {changed}", flush=True)


def finals(run, winner):
    """Train the winner, bert and autobert-zero from scratch with one budget, and judge them. -> [result, ...]"""
    s, layers = _bench.s, _bench.config.layers
    backbones = {"best": winner.backbone, **{name: autobert.at_depth(autobert.BACKBONES[name], layers)
                                             for name in ("bert", "autobert-zero")}}
    path = run.folder / "finals.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        done = {(r["name"], r["seed"]) for r in results if {"mlm", "tasks"} <= r.keys()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: broken ({error!r}); remove it to repeat the final training") from None
    jobs = [("final", name, backbone, seed) for seed in range(s.seed, s.seed + s.final_seeds)
            for name, backbone in backbones.items()]
    for result in run.pool.map([job for job in jobs if (job[1], job[3]) not in done]):
        tasks = " ".join(f"{task}={score:.3f}" for task, score in result["tasks"])
        mlm = "diverged" if result["mlm"] is None else f"{result['mlm']:.3f}"
        print(f"final={result['name']} seed={result['seed']} mlm={mlm} {tasks}", flush=True)
        results.append(result)
        data.write_beside(path, json.dumps(results, indent=1) + "\n")
    shutil.copyfile(run.folder / f"best-{s.seed}.pt", run.folder / "best.pt")
    return backbones, results


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
        cells += [f"{statistics.fmean(mlm):.3f}" if mlm else "diverged",
                  f"{autobert.count_parameters(config, backbone)['total'] / 1e6:.3g}M",
                  f"{autobert.count_flops(config, backbone, n)['total']:.2e}"]
        lines.append("".join(f"{cell:>9}" for cell in cells) + f"  {name}")
    for name, backbone in backbones.items():
        lines += ["", f"{name}:"] + [f"  L{i:<2} {gene}" for i, gene in enumerate(backbone, 1)]
    return "\n".join(lines)


def search(folder, device, workers):
    """A run from its folder's settings to its table; picks up whatever is there already."""
    start = time.time()
    with Pool(folder, device, workers) as pool:
        s = _bench.s
        (Path(folder) / "children").mkdir(exist_ok=True)
        print(f"unigram-entropy={_bench.unigram:.3f} tasks={s.tasks} workers={workers} device={device}", flush=True)
        run = Run(folder, pool)
        everyone = evolve(s, _bench.config.layers, run.fitness, run.probe, Progress())
        scored = [c for c in everyone if c.score is not None]
        if not scored:
            why = ", ".join(f"{reason} {n}" for reason, n in collections.Counter(c.reason for c in everyone).items())
            raise UserError(f"{folder}: all {len(everyone)} candidates were rejected ({why}); against no learning "
                            "help more --steps, against collapsed --collapse 0, against diverged a smaller --lr")
        winner = max(scored, key=lambda c: (c.score, -c.number))
        autobert.save_backbone(run.folder / "best.json", winner.backbone)
        print(f"-- best: cand={winner.number} score={winner.score:.3f} after {time.time() - start:.0f}s; "
              f"final training of {s.final_steps} steps", flush=True)
        text = table(_bench.config, s.n, *finals(run, winner))
    data.write_beside(run.folder / "table.txt", text + "\n")
    print(f"\n{text}\n\n{folder}: done in {time.time() - start:.0f}s")


# ---- Command line ----


def prepare(args, settings):
    """The path of a new run folder with settings, data and tokenizer in place; it appears whole or not at all."""
    runs = (Path("runs") / f"{i:03}" for i in range(1, 1000))
    out = Path(os.path.abspath(args.out) if args.out else next(path for path in runs if not path.exists()))
    replaced = args.overwrite and (out / "settings.json").exists()
    if out.exists() and not replaced:
        raise UserError(f"--out {args.out!r} exists; name another, or if it is a run, --overwrite or resume it")
    if settings.size != "toy" and not args.corpus:
        raise UserError(f"size {settings.size}: the toy language is too small for it; give --corpus and --glue")
    if bool(args.corpus) != bool(args.glue):
        raise UserError("--corpus and --glue go together: give both, or none for the toy language")
    toy, corpus = not args.corpus, [os.path.abspath(path) for path in args.corpus or ()]
    root = args.glue and os.path.abspath(args.glue)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        if toy:
            data.write_toy(beside / "toy", settings.seed)
            corpus, root = ["toy/corpus.txt"], "toy/glue"
        texts = [beside / path if toy else path for path in corpus]
        if len(list(itertools.islice(data.read_documents(texts), 2))) < 2:
            raise UserError(f"{' '.join(corpus)}: one document; NSP needs at least two documents")
        data.Tokenizer.train(texts, settings.vocab, settings.seed).save(beside / "tokenizer.model")
        for task in map(glue.find_task, settings.tasks.split(",")):
            for split in ("train", *task.dev):
                glue.read_task(beside / root if toy else root, task, split)
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        saved = {"settings": asdict(settings), "corpus": corpus, "glue": root, "toy": toy, "versions": versions}
        data.write_beside(beside / "settings.json", json.dumps(saved, indent=1) + "\n")
        if replaced:
            shutil.rmtree(out)
        os.chmod(beside, 0o755)
        with contextlib.suppress(OSError):
            os.replace(beside, out)
        if beside.exists():
            raise UserError(f"--out {str(out)!r} appeared meanwhile, or cannot be written")
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def add_machine_flags(parser):
    """--device and --workers, which change no result."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=data.number(int, 1, 1000),
                        help="processes that judge candidates; default: one a core, 1 on cuda")


def main(argv=None):
    """The command line: python opnas.py [flags], or python opnas.py resume RUN."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["resume"]:
        parser = data.Parser(prog="opnas.py resume", description="Go on with a stopped run, or show its table again.")
        parser.add_argument("run", help="the run's folder")
        add_machine_flags(parser)
        args = parser.parse_args(argv[1:])
        out = Path(args.run)
        read_settings(out)
    else:
        parser = data.Parser(prog="opnas.py", description=__doc__.split("\n")[0],
                             epilog="`opnas.py resume RUN` goes on with a stopped run.")
        parser.add_argument("--preset", choices=PRESETS, default="toy", help="where the settings below come from")
        parser.add_argument("--corpus", nargs="+", help="text, .gz, .xz: a sentence a line, blank between documents")
        parser.add_argument("--glue", help="folder with CoLA/, RTE/ .. as in the GLUE download")
        parser.add_argument("--out", help="the run's folder; default: runs/001 or the next free number")
        parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
        add_machine_flags(parser)
        for f in fields(SearchSettings):
            kind = f.type if f.type is str else data.number(int if f.type is int else float)
            text = f.metadata["help"] + (f" (toy: {f.default})" if f.default not in (None, "") else "")
            parser.add_argument("--" + f.name.replace("_", "-"), type=kind, default=argparse.SUPPRESS, help=text)
        args = parser.parse_args(argv)
        given = {f.name: getattr(args, f.name) for f in fields(SearchSettings) if hasattr(args, f.name)}
        settings = check_settings(replace(PRESETS[args.preset], **given))
    device = autobert.find_device(args.device)
    workers = args.workers or (1 if device.type == "cuda" else CORES)
    if argv[:1] != ["resume"]:
        out = prepare(args, settings)
    print(f"{out}: {json.dumps(json.loads((out / 'settings.json').read_text()))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both stop the run in the same clean way
    try:
        with open(out / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{out}: another process is at work on this run") from None
            search(str(out), str(device), workers)
    except KeyboardInterrupt:
        raise UserError(f"interrupted; go on with: python opnas.py resume {out}") from None
    except BrokenProcessPool:
        raise UserError(f"a worker died (out of memory?); go on with: python opnas.py resume {out}") from None


if __name__ == "__main__":
    sys.exit(data.run_cli(main))
