"""Operation-Priority NAS (paper Sec. 3.2, Algorithm 1, Eq. 3): the search, from text to a judged backbone.

An evolution over backbones. Random ones are scored first; then, round by round, the best are mutated, the mutants
start from the super-net's weights, pre-train briefly, and their mean score on a few tasks is their fitness. What a
mutation puts in is drawn by upper confidence bounds (UCB): how well each op has done at a position of an attention's
path, and each kernel in a layer.

    M      all candidates ever scored; nothing ages             K    parents of a round
    u_i    UCB score of op or kernel i (Eq. 3)                  p    softmax(u / tau), what is drawn
    mu_i   mean score of the candidates with i at that place    N_i  how often it stood there, N their sum

    python opnas.py    # toy size, made-up language; the same command again goes on

Read last. The method ends where "A run" begins.
"""
import collections
import json
import math
import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import autobert
import data
import glue
import ops
import supernet
from autobert import CONVOLUTIONS, KERNELS, kernel_of
from data import UserError, flag

@dataclass(frozen=True)
class SearchSettings:
    """All that decides a search's outcome, beside its text and tasks."""
    size: str = flag("toy", "model size", choices=tuple(autobert.SIZES))
    tasks: tuple[str, ...] = flag(("CoLA", "RTE", "STS-B"), "their mean is the score", choices=tuple(glue.TASKS))
    strategy: str = flag("op-nas", "of Fig. 6", choices=("op-nas", "ea+ws", "random+ws", "random"))
    warm: int = flag(4, "backbones of a first generation, which warms the super-net")
    cold: int = flag(5, "times as many steps for the first generation")
    population: int = flag(12, "random backbones at the start, |M| (Alg. 1 l.1), with the first generation")
    parents: int = flag(2, "K, the best that are mutated each round (l.4)")
    children: int = flag(2, "mutants of each parent (l.5)")
    rounds: int = flag(4, "rounds of mutation (l.3)")
    again: int = flag(1, "1: parents are judged again in each round, and the last score counts; 0: not")
    finalists: int = flag(3, "the best, judged again at the end; one of them wins")
    alpha: float = flag(None, "weight of the UCB bonus; default: 0.1 sd of the scores")
    tau: float = flag(None, "temperature of p; 1: the literal paper; default: 0.1 sd of the scores")
    collapse: float = flag(0.5, "least share of the hidden states that varies with the token; 0: any")
    rows: int = flag(1000, "most training rows of a task; 0: all")
    steps: int = flag(100, "pre-training steps of a candidate")
    final_steps: int = flag(2000, "pre-training steps of winner, bert and autobert-zero")
    final_seeds: int = flag(1, "final trainings of each")
    seed: int = flag(0, "of everything random")
    pretrain: autobert.PretrainSettings = autobert.PRETRAIN["toy"]
    tune: glue.FinetuneSettings = glue.PRESETS["toy"]

_paper = replace(autobert.PRETRAIN["base"], lr=2e-4, warmup=0.02)
PAPER = SearchSettings(  # App. D.1: 100 + 27 * 25 = 775 candidates, 24,000 hours on V100s
    "base", tuple(glue.TASKS), population=100, parents=5, children=5, rounds=27, alpha=0.01, rows=0, cold=1,
    steps=40_000, final_steps=1_000_000, pretrain=_paper, tune=glue.PRESETS["paper"])
SMALL = replace(PAPER, size="small", tasks=("CoLA", "MRPC", "RTE", "STS-B"), population=50, rounds=4, alpha=None,
                steps=2000, cold=5, final_steps=40_000, pretrain=replace(_paper, batch=64, lr=5e-4))
PRESETS = {"toy": SearchSettings(), "small": SMALL, "paper": PAPER}

# ---- UCB (Eq. 3) ----
class OperationPriority:
    """What has done well where: a table of ops per position of an attention's path, a table of kernels per layer.
    All layers share the position tables. A place is a position (an int) or ("layer", i). CHOICE: an op is drawn for the
    position where it is put in, and counted at its position in the canonical path, which may be another."""
    def __init__(self, candidates=(), alpha=None, tau=None):
        scores = [c.score for c in candidates if c.score is not None]
        worst, sd = min(scores, default=0.0), statistics.pstdev(scores) if scores else 0.0
        self.alpha, self.tau = (0.1 * sd if x is None else x for x in (alpha, tau))
        self.tables = collections.defaultdict(lambda: collections.defaultdict(list))  # place -> choice -> scores
        for c in candidates:
            for place, choice in places(c.backbone):
                # CHOICE: what was trained and then rejected counts with the worst score
                self.tables[place][choice].append(worst if c.score is None else c.score)

    def ucb(self, place):
        """{choice: u} at a place: u_i = mu_i + alpha * sqrt(2 ln N / N_i)  (Eq. 3)"""
        table = dict(self.tables.get(place, {}))
        mean = statistics.fmean([x for scores in table.values() for x in scores] or [0.0])
        if not isinstance(place, int):  # CHOICE: a kernel never sampled counts once, with the mean of its layer
            table = {kernel: table.get(kernel, [mean]) for kernel in KERNELS}
        N = sum(map(len, table.values()))
        # CHOICE: an op never sampled here has u = the place's mean; an infinite one would force what is never legal
        return {i: statistics.fmean(table[i]) + self.alpha * math.sqrt(2 * math.log(N) / len(table[i]))
                if i in table else mean for i in (ops.OPS if isinstance(place, int) else KERNELS)}

    def p(self, place):
        """{choice: probability} at a place: softmax(u / tau).
        DEVIATION: the paper has no tau, that is tau = 1; on scores in [0, 1] this is nearly uniform."""
        u = self.ucb(place)
        weight = {i: math.exp((u_i - max(u.values())) / self.tau) if self.tau else 1.0 for i, u_i in u.items()}
        return {i: w / sum(weight.values()) for i, w in weight.items()}

    def draw(self, place, rng):
        """An op or kernel by p."""
        p = self.p(place)
        return rng.choices(list(p), list(p.values()))[0]

    def perplexity(self, kind=int):
        """(mean perplexity of p over the places seen, sum of N_i): how sharp the draws are, on how much they rest."""
        seen = [place for place in self.tables if isinstance(place, kind)]
        entropies = [-sum(p * math.log(p) for p in self.p(place).values() if p) for place in seen]
        counted = sum(len(scores) for place in seen for scores in self.tables[place].values())
        return statistics.fmean(map(math.exp, entropies)) if seen else 0.0, counted

def places(backbone):
    """Yield (place, choice) of a backbone. Example: ("conv 3", "-Q") -> (("layer", 0), 3), (0, "neg")"""
    for layer, gene in enumerate(backbone):
        kernel = kernel_of(gene)
        yield from [(("layer", layer), kernel)] if kernel else enumerate(op for op, *_ in ops.parse(gene))

# ---- Mutation (Alg. 1 l.6 and l.7) ----
def random_gene(rng, convolution):
    """A uniformly drawn kernel, or a random attention."""
    return rng.choice(CONVOLUTIONS) if convolution else ops.formula(ops.random_dag(rng))

def random_backbone(layers, rng, other=None):
    """Each layer a convolution or an attention with p = 1/2 (l.1), or what it is not in the backbone `other`."""
    kinds = [not kernel_of(gene) for gene in other] if other else [rng.random() < 0.5 for _ in range(layers)]
    return tuple(random_gene(rng, convolution) for convolution in kinds)

def grow(tables, rng, counts):
    """A new attention, every op drawn from p at the position where it grows; after 60 failures a uniform one."""
    for _ in range(60):
        dag = ops.draw(rng, tables.p)
        if ops.why_illegal(dag) is None:
            return ops.formula(dag)
    counts["uniform growth"] += 1
    return random_gene(rng, convolution=False)

def with_gene(backbone, layer, gene):
    """Example: with_gene(("conv 3", "conv 5"), 1, "conv 9") -> ("conv 3", "conv 9")"""
    return (*backbone[:layer], gene, *backbone[layer + 1:])

def mutate_inter(backbone, tables, rng, counts):
    """MutationInterLayer (l.6): with p = 1/2 flip the type of a uniformly chosen layer.
    DEVIATION: in the paper it is random; here what the new layer holds is drawn from the tables, too."""
    if rng.random() < 0.5:
        return backbone
    layer = rng.randrange(len(backbone))
    new = grow(tables, rng, counts) if kernel_of(backbone[layer]) else f"conv {tables.draw(('layer', layer), rng)}"
    return with_gene(backbone, layer, new)

def mutate_dag(dag, tables, rng):
    """One edit of a path: replace an op, insert one, delete one, rewire one. May be illegal. CHOICE: these odds."""
    edit = rng.choices(("replace", "insert", "delete", "rewire"), (0.5, 0.2, 0.2, 0.1))[0]
    t = rng.randrange(len(dag) + (edit == "insert"))  # an insertion may also come behind the output
    slot, nodes = 4 + t, [list(node) for node in dag]

    def node(op, *first):  # with these operands, as far as it takes them, and others drawn from before
        return [op, *first, *(rng.randrange(slot) for _ in range(2))][:1 + ops.OPS[op].text.count("{}")]

    if edit == "replace":
        nodes[t] = node(tables.draw(t, rng), *rng.sample(nodes[t][1:], len(nodes[t]) - 1))
    elif edit == "rewire":
        nodes[t][rng.randrange(1, len(nodes[t]))] = rng.randrange(slot)
    elif edit == "delete":  # its readers get one of its operands; at the end the node before becomes the output
        heir = rng.choice(nodes.pop(t)[1:])
        nodes[t:] = [[op, *(heir if a == slot else a - (a > slot) for a in args)] for op, *args in nodes[t:]]
    else:
        op = tables.draw(min(t, len(dag) - 1), rng)  # a path of length k draws from the first k tables only
        nodes[t:] = [[name, *(a + (a >= slot) for a in args)] for name, *args in nodes[t:]]
        nodes.insert(t, node(op, slot - 1) if t == len(dag) else node(op))
        if t < len(dag):  # the node that stood here reads the new one in place of an operand
            nodes[t + 1][rng.randrange(1, len(nodes[t + 1]))] = slot
    return ops.canonical(nodes) if nodes else ()

def mutate_intra(backbone, tables, rng, counts):
    """MutationIntraLayer (l.7) of a uniformly chosen layer: a new kernel, or an edit of its path. None if illegal."""
    layer = rng.randrange(len(backbone))
    if kernel_of(backbone[layer]):
        return with_gene(backbone, layer, f"conv {tables.draw(('layer', layer), rng)}")
    dag = mutate_dag(ops.parse(backbone[layer]), tables, rng)
    if ops.why_illegal(dag):
        counts["illegal edits"] += 1
        return None
    return with_gene(backbone, layer, ops.formula(dag))

def mutate(parent, tables, rng, seen, counts):
    """A child of a backbone (l.6, l.7): legal, changed, never seen. After 200 tries a layer grows anew, counted."""
    between = mutate_inter(parent, tables, rng, counts)
    for _ in range(200):
        child = mutate_intra(between, tables, rng, counts)
        if child not in (None, between) and child not in seen:
            return child
    while child in (None, between) or child in seen:
        counts["fresh layers"] += 1
        child = with_gene(between, rng.randrange(len(between)), grow(tables, rng, counts))
    return child

# ---- The evolution (Algorithm 1) ----
@dataclass(frozen=True)
class Candidate:
    """One judgement of a backbone. number: None if the probe turned it away. score: None until judged, or if rejected.
    reason: of a rejection. mlm, nsp: held-out losses, nats. tasks: ((task, score), ..)."""
    number: int | None
    round: int
    parent: int | None
    backbone: tuple
    score: float | None = None
    reason: str = ""
    mlm: float | None = None
    nsp: float | None = None
    tasks: tuple = ()
    seconds: float = 0.0

def last_of(log):
    """The last judgement of every candidate, in order. CHOICE: the super-net matures, so an early score is too low."""
    return list({c.number: c for c in log if c.number is not None}.values())

def best_of(candidates, k):
    """The K best Candidates of all that have a score (l.4)."""
    return sorted((c for c in candidates if c.score is not None), key=lambda c: (-c.score, c.number))[:k]

def plan(s):
    """[(kind, new candidates, ones judged again)] of each round. CHOICE: scores of different rounds must be comparable,
    though the super-net matures. So a first generation with both branches of every layer warms it before anything
    counts; it is judged again as part of M_0, as the parents are in each round and the best at the end."""
    size, shares, evolves = s.parents * s.children, s.strategy != "random", s.strategy in ("op-nas", "ea+ws")
    first, last = s.warm * shares, s.finalists * shares
    # CHOICE: M_0 comes a round's size at a time (l.1, l.2), or all of it would start from an untrained super-net
    chunks = [("random", min(size, s.population - i), 0) for i in range(first, s.population, size)]
    # CHOICE: "until convergence" (l.13) is a number of rounds
    rounds = [("mutants", size, s.parents * s.again) if evolves else ("random", size, 0)] * s.rounds
    return [("first", first, 0), ("again", 0, first)] * (first > 0) + chunks + rounds + [("last", 0, last)] * (last > 0)

def evolve(s, layers, fitness, probe=lambda backbone: None, log=(), note=lambda *_: None):
    """Algorithm 1, or another strategy of Fig. 6 -> every Candidate, those turned away too.
    fitness(round, batch, log) -> the batch, judged from one snapshot of the super-net (l.8, l.9). probe(backbone) ->
    None, or why it is turned away untrained. log: of rounds that are over; a round depends on it and the seed alone."""
    log = list(log)
    for number, (kind, size, repeated) in list(enumerate(plan(s)))[len({c.round for c in log}):]:  # l.3
        rng, counts, M = random.Random(f"{s.seed} {number}"), collections.Counter(), last_of(log)
        tables = OperationPriority(M, s.alpha, math.inf if s.strategy == "ea+ws" else s.tau)  # l.12
        parents = best_of(M, s.parents)  # l.4
        again = (M if kind == "again" else best_of(M, repeated))[:repeated]
        batch, seen, tries = [replace(c, round=number) for c in again], {c.backbone for c in log}, 100 * size
        for i in range(size):
            parent, reason = parents[i % len(parents)] if kind == "mutants" and parents else None, "not tried"  # l.5
            while reason:
                other = batch[-1].backbone if kind == "first" and i % 2 else None
                backbone = (mutate(parent.backbone, tables, rng, seen, counts) if parent  # l.6, l.7
                            else random_backbone(layers, rng, other))
                if backbone not in seen:
                    seen.add(backbone)
                    tries -= 1
                    reason = probe(backbone) if tries > 0 else None  # it must not hang the search
                    counts[reason or "proposed"] += 1
                    new = Candidate(None if reason else len(M) + i, number, parent and parent.number, backbone)
                    (log if reason else batch).append(replace(new, reason=reason or ""))
        note(number, kind, counts, tables)
        log += fitness(number, batch, log)  # l.8, l.9, l.11
    return log

# ---- The proxy task (App. D.1): what a candidate's score is ----
class Proxy:
    """Judges candidates: the text, tasks and settings of a run's folder, loaded once in every process."""
    def __init__(self, folder, device):
        torch.set_num_threads(1)  # the same result for any number of workers; a small model needs no more
        (corpus, tables, s), self.folder, self.device = settings_in(folder), folder, device
        self.s, self.corpus = s, data.Corpus(corpus)
        self.config = replace(autobert.SIZES[s.size], vocab=self.corpus.tokenizer.vocab_size)
        self.batches, self.held_out = (data.PretrainingData(self.corpus, part, s.pretrain.n, s.pretrain.batch, s.seed)
                                       for part in data.split_held_out(self.corpus))
        share = np.bincount(self.corpus.tokens) / len(self.corpus.tokens)
        self.unigram = -float((share[share > 0] * np.log(share[share > 0])).sum())  # nats
        self.tasks = {task: [glue.encode(glue.read_task(tables, task, split), self.corpus.tokenizer, s.tune.n)
                             for split in ("train", "dev")] for task in s.tasks}

    def model(self, backbone, seed):
        """A model with random weights."""
        torch.manual_seed(seed)
        return autobert.Pretraining(self.config, backbone)

    def probe(self, backbone):
        """Why a backbone is not worth training, or None: seen on one batch, from random weights.
        CHOICE: collapsed = nearly the same hidden states at every token. Random graphs, above all with dist, often give
        large, nearly constant outputs, and the LayerNorm behind them then wipes the tokens out."""
        model = self.model(backbone, self.s.seed).to(self.device).eval()
        batch = autobert.to_device(autobert.piece(self.held_out.batch(0)), self.device)
        loss = model(batch).sum()
        loss.backward()
        if not all(x.isfinite().all() for x in (loss, *(p.grad for p in model.parameters() if p.grad is not None))):
            return "not finite"
        with torch.no_grad():
            x = model.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
        real = (batch["ids"] != data.PAD)[..., None]
        rest = x - (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        varying = (rest * real).square().sum() / (x * real).square().sum()  # |X - mean over tokens|² / |X|²
        return "collapsed" if varying < self.s.collapse else None

    def pretrain(self, model, steps, seed, offset=0):
        """Train in place; (mlm, nsp) on held-out documents, nats."""
        s = replace(self.s.pretrain, steps=steps, seed=seed)
        autobert.pretrain(model, self.batches, s, self.device, offset=offset)
        return autobert.held_out_loss(model, self.held_out, 16, self.device, s.precision)

    def scores(self, model, seed, final=False):
        """((task, score in [0, 1]), ..) after fine-tuning a copy. DEVIATION: candidates are scored on a tenth of the
        training rows, so that dev, on which the final models are, is new to the winner. The paper selects on dev."""
        found = []
        for task, ((rows, labels), dev) in self.tasks.items():
            order = np.random.default_rng(seed).permutation(len(rows))
            parts = order[len(order) // 10:][:self.s.rows or None], order[:len(order) // 10]
            train, unseen = (([rows[i] for i in part], labels[part]) for part in parts)
            judges = dev if final else unseen
            _, score = glue.finetune(model.encoder, task, train, judges, self.s.tune, seed, self.device)
            found.append((task, glue.unit_score(score)))
        return tuple(found)

    def judge(self, path, backbone, steps, offset):
        """Alg. 1 l.8 and l.9: write what a round needs to know of a candidate, and its pre-trained weights."""
        start, seed, tasks, reason, found = time.time(), self.s.seed, (), "", (None, None)
        slots = None if self.s.strategy == "random" else load(self.folder / "state.pt")["slots"]
        child = supernet.SuperNet(self.config, slots=slots).child(backbone) if slots else self.model(backbone, seed)
        try:
            found = self.pretrain(child, steps, seed, offset)
            reason = "" if found[0] < self.unigram - 0.05 or not slots else "no learning"
            tasks = () if reason else self.scores(child, seed)
        except autobert.Diverged:
            reason = "diverged"
        score = statistics.fmean(x for _, x in tasks) if tasks else None
        save(path, {"score": score, "reason": reason, "mlm": found[0], "nsp": found[1], "tasks": tasks,
                    "seconds": time.time() - start, "weights": child.state_dict() if tasks and slots else {}})

    def final(self, path, backbone, seed):
        """Write a checkpoint of a full training from scratch, with its losses and scores."""
        model = self.model(backbone, seed)
        mlm, nsp = self.pretrain(model, self.s.final_steps, seed)
        tasks = self.scores(model, seed, final=True)
        autobert.save_checkpoint(path, model, self.corpus.tokenizer, mlm=mlm, nsp=nsp, tasks=tasks)

# ---- A run: its folder, its workers, going on after a kill ----
PROXY = None  # a process's own

def settings_in(folder):
    """(corpus, glue, SearchSettings) of a run."""
    about = json.loads((folder / "settings.json").read_text())
    about["pretrain"] = autobert.PretrainSettings(**about["pretrain"])
    about["tune"] = glue.FinetuneSettings(**about["tune"])
    return about.pop("corpus"), about.pop("glue"), SearchSettings(**about)

def start_worker(folder, device):
    """What each process does first. A worker ends with its parent, however that ends."""
    global PROXY
    rank = 0
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        rank = int(multiprocessing.current_process().name.split("-")[-1])  # of SpawnProcess-1, -2, ..
    PROXY = Proxy(folder, autobert.find_device(device, rank))

def once(method, path, *arguments):
    """PROXY.method(path, ..) unless the file exists: a kill loses only what is being worked on."""
    if not path.exists():
        getattr(PROXY, method)(path, *arguments)

def save(path, content):
    """torch.save, whole or not at all."""
    data.write_beside(path, lambda file: torch.save(content, file))

def load(path):
    """What `save` wrote; its tensors stay in the file until they are used."""
    return torch.load(path, weights_only=True, mmap=True)

class Run:
    """A search in its folder. state.pt is all its state: the log of whole rounds and the super-net behind them."""
    def __init__(self, folder, pool):
        self.folder, self.map, self.s, self.begun, self.done = folder, pool, PROXY.s, time.time(), 0
        if not (folder / "state.pt").exists():
            slots = supernet.SuperNet(PROXY.config, self.s.seed).slots
            save(folder / "state.pt", {"config": asdict(PROXY.config), "log": (), "offset": 0, "slots": slots})
        self.log = [Candidate(*c) for c in load(folder / "state.pt")["log"]]

    def fitness(self, number, batch, log):
        """For evolve: judge a round from one snapshot of the super-net, then write its weights back, best last."""
        state, judged, shares = load(self.folder / "state.pt"), [], self.s.strategy != "random"
        # CHOICE: an untrained super-net trains longer, or none of its children would have learned anything
        steps = self.s.steps * (self.s.cold if number == 0 and shares else 1)
        paths = [self.folder / f"round-{number}-{c.number}.pt" for c in batch]
        jobs = [("judge", path, c.backbone, steps, state["offset"]) for c, path in zip(batch, paths)]
        for c, path, _ in zip(batch, paths, self.map(once, *zip(*jobs)) if jobs else ()):
            judged.append(replace(c, **{key: x for key, x in load(path).items() if key != "weights"}))
            self.tell(judged[-1], [*log, *judged])
        net = supernet.SuperNet(PROXY.config, slots={name: x.clone() for name, x in state["slots"].items()})
        children = [(c.score, path) for c, path in zip(judged, paths) if c.score is not None and shares]
        for i in supernet.write_order([score for score, _ in children]):
            net.absorb(load(children[i][1])["weights"])
        save(self.folder / "state.pt", {**state, "log": [astuple(c) for c in (*log, *judged)], "slots": net.slots,
                                        "offset": state["offset"] + steps})  # the one moment at which a round is over
        write_table(self.folder / "candidates.tsv", [*log, *judged])
        for path in self.folder.glob("round-*.pt"):
            path.unlink()
        return judged

    def tell(self, c, log):
        """Print a judged Candidate: its score, the best so far, the time left, the layers that its parent has not."""
        M, self.done = last_of(log), self.done + 1
        *_, counts, repeats = zip(*plan(self.s))
        left = (sum(counts + repeats) - sum(c.number is not None for c in log)) * (time.time() - self.begun) / self.done
        best = max((x.score for x in M if x.score is not None), default=0)
        parent = next((x.backbone for x in M if x.number == c.parent), ())
        new = " ".join(f"L{i} {gene}" for i, gene in enumerate(c.backbone, 1) if parent[i - 1:i] != (gene,))
        score = c.reason if c.score is None else f"{c.score:.3f}"
        line = f"cand={c.number}/{sum(counts)} round={c.round} score={score} best={best:.3f} left={autobert.span(left)}"
        print(f"{line} | {new}"[:120], flush=True)

def write_table(path, log):
    """candidates.tsv: a judgement a row, and each backbone that the probe turned away."""
    tasks = next(([task for task, _ in c.tasks] for c in log if c.tasks), [])
    rows = [("number", "round", "parent", "score", "reason", "mlm", "nsp", *tasks, "seconds", "backbone")]
    for c in log:
        scores = [x for _, x in c.tasks] or [None] * len(tasks)
        rows.append((*astuple(c)[:3], c.score, c.reason, c.mlm, c.nsp, *scores, c.seconds, " | ".join(c.backbone)))
    data.write_beside(path, "".join("\t".join("-" if x in (None, "") else str(x) for x in row) + "\n" for row in rows))

def note(number, kind, counts, tables):
    """Print how sharp the tables are, and how many proposals were turned away and why."""
    (sharp, N), (kernels, N_kernels) = tables.perplexity(), tables.perplexity(tuple)
    print(f"-- round {number}, {kind}: perplexity of ops {sharp:.2f} (N {N}), of kernels {kernels:.2f} (N {N_kernels})",
          *(f"{key.replace(' ', '-')}={count}" for key, count in counts.items()), flush=True)

# ---- The final judgement ----
def verdict(gaps):
    """One sentence on the winner's average minus bert's; gaps: (seeds,), in points."""
    n, mean = len(gaps), gaps.mean()
    if n == 1:
        return f"The winner ended {mean:+.1f} from bert. One training of each is no evidence: see --final-seeds."
    t95 = {2: 12.7, 3: 4.3, 4: 3.18, 5: 2.78}.get(n, 2.57)  # Student's t
    error = t95 * gaps.std(ddof=1) / math.sqrt(n)
    where = "above" if mean > error else "below" if mean < -error else "level with"
    return f"The winner is {where} bert: {mean:+.1f} ± {error:.1f} (95 %, {n} trainings of each)."

def judge_winner(run, winner):
    """Train winner, bert and autobert-zero from scratch with one budget; print and keep the table."""
    seeds, published = range(run.s.final_seeds), ("bert", "autobert-zero")
    backbones = {"best": winner} | {name: autobert.load_backbone(name, len(winner)) for name in published}
    jobs = [("final", run.folder / f"{name}-{i}.pt", genes, i) for i in seeds for name, genes in backbones.items()]
    list(run.map(once, *zip(*jobs)))
    lines, averages = ["".join(f"{x:>14}" for x in ("", *run.s.tasks, "average", "MLM", "NSP", "params"))], {}
    for name, genes in backbones.items():
        found = [load(run.folder / f"{name}-{i}.pt") for i in seeds]
        tasks = 100 * np.array([[x for _, x in f["tasks"]] for f in found])  # (seeds, tasks)
        averages[name] = tasks.mean(1)
        columns = [*tasks.T, averages[name], [f["mlm"] for f in found], [f["nsp"] for f in found]]
        cells = "".join(f"{np.mean(x):8.3f} ±{np.std(x):4.1f}" for x in columns)
        lines.append(f"{name:>14}{cells}{autobert.count_parameters(PROXY.config, genes)['total']:>14,}")
    lines += [f"L{i} {gene}" for i, gene in enumerate(winner, 1)] + [verdict(averages["best"] - averages["bert"])]
    data.write_beside(run.folder / "table.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))

def search(s: SearchSettings, preset: tuple(PRESETS) = "toy", corpus: str = "toy/corpus.txt", glue: str = "toy/glue",
           out: str = "runs/search", workers: int = os.cpu_count(), device: str = "auto"):
    """Search a backbone, then train and judge the winner beside bert. The same command again goes on where it stopped.

    preset: settings that other flags may change
    corpus: a folder that `data.py prepare` wrote, or a text file
    glue: the folder that holds CoLA, SST-2, ..
    out: the run's folder
    workers: processes that judge candidates, each on a GPU of its own if there are several
    device: auto, cpu, cuda, cuda:1, .."""
    folder, s = Path(out), replace(PRESETS[preset], **s)
    kept = corpus if os.path.isdir(corpus) else folder / "corpus"
    text = json.dumps({"corpus": os.path.abspath(kept), "glue": os.path.abspath(glue), **asdict(s)}, indent=1)
    path = folder / "settings.json"
    if path.exists():
        data.check_same(json.loads(path.read_text()), json.loads(text), out)
    data.open_corpus(corpus, kept, autobert.SIZES[s.size].vocab, s.seed)
    data.write_beside(path, text)
    print(f"{preset} preset, seed {s.seed}, {workers} workers; all settings in {path}", flush=True)
    start_worker(folder, device)  # this process proposes and writes back
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (folder, device))
    try:
        run = Run(folder, map if workers == 1 else pool.map)
        log = evolve(s, PROXY.config.layers, run.fitness, PROXY.probe, run.log, note)
        finalists = [c for c in last_of(log) if c.round == log[-1].round or not s.finalists]
        winner = best_of(finalists, 1) or best_of(last_of(log), 1)
        if not winner:
            raise UserError(f"all candidates were rejected: {dict(collections.Counter(c.reason for c in log))}")
        autobert.save_backbone(folder / "best.json", winner[0].backbone)
        judge_winner(run, winner[0].backbone)
    except BrokenProcessPool:
        raise UserError("a worker died, out of memory? Take fewer --workers; the same command again goes on") from None
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()

if __name__ == "__main__":
    data.run(__doc__, usual=search)
