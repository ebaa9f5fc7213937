"""Operation-Priority NAS (paper Sec. 3.2, Algorithm 1, Eq. 3): the search, from text to a judged backbone.

Random backbones are scored, then the best are mutated, round by round. A mutant starts from shared weights and trains
briefly. A mutation draws by confidence bounds (UCB) what has done well: ops at a position of a path, a layer's kernel.

    M      all candidates ever scored              K    parents of a round
    u_i    UCB score of op or kernel i (Eq. 3)     p    softmax(u / tau), what is drawn
    mu_i   mean score of those with i at a place   N_i  how often it stood there, N their sum

    python opnas.py    # toy size, made-up language
Read last. The method ends where "A run" begins.
"""
import json
import math
import multiprocessing as mp
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev

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
    """What decides a search's outcome, beside its data."""
    size: str = flag("toy", "model size", choices=tuple(autobert.SIZES))
    tasks: tuple[str, ...] = flag(("QNLI", "STS-B"), "the score is their mean", choices=tuple(glue.TASKS))
    strategy: str = flag("op-nas", "of Fig. 6", choices=("op-nas", "ea", "random"))
    warm: int = flag(1000, "steps that warm each branch of the super-net; 0: no shared weights")
    population: int = flag(12, "random backbones (l.1)")
    parents: int = flag(2, "K, mutated in each round (l.4)")
    children: int = flag(3, "mutants of each parent (l.5)")
    rounds: int = flag(2, "rounds of mutation (l.3)")  # CHOICE: "until convergence" (l.13) is a number
    again: int = flag(1, "1: judge parents again")
    finalists: int = flag(2, "the best, trained from scratch to pick one")
    alpha: float = flag(None, "weight of the UCB bonus; default: 0.1 sd of the scores")
    tau: float = flag(None, "temperature of p; 1: the paper; default: likewise")
    collapse: float = flag(0.5, "least share of hidden states that varies by token")
    rows: int = flag(1000, "most training rows of a candidate's task; 0: all")
    steps: int = flag(100, "pre-training steps of a candidate")
    final_steps: int = flag(1000, "of finalists and finals")
    final_seeds: int = flag(1, "final trainings of each")
    seed: int = flag(0, "of everything random")
    pretrain: autobert.PretrainSettings = autobert.PRETRAIN["toy"]
    tune: glue.FinetuneSettings = glue.PRESETS["toy"]

PAPER = SearchSettings(
    "base", tuple(glue.TASKS), population=100, parents=5, children=5, rounds=27, alpha=0.01, warm=40_000, steps=40_000,
    rows=0, final_steps=1_000_000, tune=glue.PRESETS["paper"],  # App. D.1: 100 + 27 * 25 candidates
    pretrain=replace(autobert.PRETRAIN["base"], lr=2e-4, warmup=0.02), collapse=0.2)  # CHOICE: all above .2 learnt
SMALL = replace(PAPER, size="small", tasks=("CoLA", "MRPC", "RTE", "STS-B"), population=50, rounds=4, alpha=None,
                warm=10_000, steps=2000, final_steps=40_000, pretrain=replace(PAPER.pretrain, batch=64, lr=5e-4))
EVENING = SearchSettings(warm=0, population=18, parents=3, children=2, rounds=4, finalists=3, steps=1000, rows=0,
                         final_steps=2000, final_seeds=3)  # DEVIATION: no BIWS
PRESETS = {"toy": SearchSettings(), "evening": EVENING, "small": SMALL, "paper": PAPER}

# ---- UCB (Eq. 3) ----
class OperationPriority:
    """What has done well where. A place is a position of an attention's path, of any layer, or ("layer", i).
    CHOICE: an op is drawn for the position where it is put in, but counted at that in the canonical path."""
    def __init__(self, candidates=(), alpha=None, tau=None):
        scores = [c.score for c in candidates if c.score is not None]
        worst, sd = min(scores, default=0.0), pstdev(scores) if scores else 0.0
        self.alpha, self.tau = (0.1 * sd if x is None else x for x in (alpha, tau))
        self.tables = defaultdict(lambda: defaultdict(list))  # place -> choice -> scores
        for c in candidates:
            score = worst if c.score is None else c.score  # CHOICE: what diverged has the worst score
            for layer, gene in enumerate(c.backbone):
                if kernel_of(gene):
                    self.tables["layer", layer][kernel_of(gene)].append(score)
                else:
                    for position, (op, *_) in enumerate(ops.parse(gene)):
                        self.tables[position][op].append(score)

    def ucb(self, place):
        """{choice: u} at a place: u_i = mu_i + alpha * sqrt(2 ln N / N_i)  (Eq. 3)"""
        table = self.tables.get(place, {})
        mean = fmean([x for scores in table.values() for x in scores] or [0.0])
        if not isinstance(place, int):  # CHOICE: a kernel never sampled counts once, with the mean of its layer
            table = {kernel: table.get(kernel, [mean]) for kernel in KERNELS}
        N = sum(map(len, table.values()))
        u = {i: fmean(x) + self.alpha * math.sqrt(2 * math.log(N) / len(x)) for i, x in table.items()}
        # CHOICE: an op never sampled here has u = the place's mean; infinity would force what is never legal
        return dict.fromkeys(ops.OPS, mean) | u if isinstance(place, int) else u

    def p(self, place):
        """{choice: probability} at a place: softmax(u / tau).
        DEVIATION: the paper has no tau; tau = 1 is nearly uniform on scores in [0, 1]."""
        u = self.ucb(place)
        weight = {i: math.exp((u_i - max(u.values())) / self.tau) if self.tau else 1.0 for i, u_i in u.items()}
        return {i: w / sum(weight.values()) for i, w in weight.items()}

    def draw(self, place, rng):
        """An op or kernel by p."""
        p = self.p(place)
        return rng.choices(list(p), list(p.values()))[0]

    def perplexity(self, kind=int):
        """(mean perplexity of p, sum of N_i) over the places seen: how sharp p is."""
        seen = [place for place in self.tables if isinstance(place, kind)]
        entropies = [-sum(p * math.log(p) for p in self.p(place).values() if p) for place in seen]
        N = sum(len(scores) for place in seen for scores in self.tables[place].values())
        return fmean(map(math.exp, entropies)) if seen else 0.0, N

# ---- Mutation (Alg. 1 l.6 and l.7) ----
def random_backbone(layers, rng):
    """Each layer a convolution or an attention with p = 1/2 (l.1)."""
    convs = [rng.random() < 0.5 for _ in range(layers)]
    return tuple(rng.choice(CONVOLUTIONS) if conv else ops.formula(ops.random_dag(rng)) for conv in convs)

def grow(tables, rng, counts):
    """A new attention, each op drawn from p at its position; after 60 failures a uniform one."""
    for _ in range(60):
        dag = ops.draw(rng, tables.p)
        if ops.why_illegal(dag) is None:
            return ops.formula(dag)
    counts["uniform growth"] += 1
    return ops.formula(ops.random_dag(rng))

def with_gene(backbone, layer, gene):
    """The backbone with another gene in a layer."""
    return (*backbone[:layer], gene, *backbone[layer + 1:])

def mutate_inter(backbone, tables, rng, counts):
    """MutationInterLayer (l.6): with p = 1/2 flip the type of a random layer.
    DEVIATION: in the paper it is random; here the tables draw the new layer, too."""
    if rng.random() < 0.5:
        return backbone
    layer = rng.randrange(len(backbone))
    new = grow(tables, rng, counts) if kernel_of(backbone[layer]) else f"conv {tables.draw(('layer', layer), rng)}"
    return with_gene(backbone, layer, new)

def mutate_dag(dag, tables, rng):
    """One edit of a path, perhaps an illegal one. CHOICE: these odds."""
    edit = rng.choices(("replace", "insert", "delete", "rewire"), (0.5, 0.2, 0.2, 0.1))[0]
    t = rng.randrange(len(dag) + (edit == "insert"))  # an insertion also behind the output
    slot, nodes = 4 + t, [list(node) for node in dag]

    def node(op, *first):  # with these operands, then random ones
        return [op, *first, *(rng.randrange(slot) for _ in range(2))][:1 + ops.OPS[op].text.count("{}")]
    if edit == "replace":
        nodes[t] = node(tables.draw(t, rng), *rng.sample(nodes[t][1:], len(nodes[t]) - 1))
    elif edit == "rewire":
        nodes[t][rng.randrange(1, len(nodes[t]))] = rng.randrange(slot)
    elif edit == "delete":  # its readers get one of its operands
        heir = rng.choice(nodes.pop(t)[1:])
        nodes[t:] = [[op, *(heir if a == slot else a - (a > slot) for a in args)] for op, *args in nodes[t:]]
    else:
        op = tables.draw(min(t, len(dag) - 1), rng)  # a path of length k draws from the first k tables only
        nodes[t:] = [[name, *(a + (a >= slot) for a in args)] for name, *args in nodes[t:]]
        nodes.insert(t, node(op, slot - 1) if t == len(dag) else node(op))
        if t < len(dag):  # the node that stood here reads it
            nodes[t + 1][rng.randrange(1, len(nodes[t + 1]))] = slot
    return ops.canonical(nodes) if nodes else ()

def mutate_intra(backbone, tables, rng):
    """MutationIntraLayer (l.7): a random layer's new kernel, or a legal edit of its path."""
    layer = rng.randrange(len(backbone))
    if kernel_of(backbone[layer]):
        return with_gene(backbone, layer, f"conv {tables.draw(('layer', layer), rng)}")
    dag = mutate_dag(ops.parse(backbone[layer]), tables, rng)
    return backbone if ops.why_illegal(dag) else with_gene(backbone, layer, ops.formula(dag))

def mutate(parent, tables, rng, seen, counts):
    """A child of a backbone (l.6, l.7): changed, never seen. After 200 tries a layer grows anew."""
    between = mutate_inter(parent, tables, rng, counts)
    taken = {between, *seen}
    for _ in range(200):
        child = mutate_intra(between, tables, rng)
        if child not in taken:
            return child
    while child in taken:
        counts["fresh layers"] += 1
        child = with_gene(between, rng.randrange(len(between)), grow(tables, rng, counts))
    return child

# ---- The evolution (Algorithm 1) ----
@dataclass(frozen=True)
class Candidate:
    """One judgement of a backbone. number: None if the probe turned it away. score: None if rejected, for this reason;
    from scratch the mean so far. mlm, nsp: held-out losses, nats. tasks: ((task, score), ..)."""
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
    """The last judgement of every candidate."""
    return list({c.number: c for c in log if c.number is not None}.values())

def best_of(candidates, k):
    """The K best Candidates of all that have a score (l.4)."""
    return sorted((c for c in candidates if c.score is not None), key=lambda c: (-c.score, c.number))[:k]

def plan(s):
    """[(kind, new candidates, ones judged again)] of each round. CHOICE: scores are noisy and the super-net matures,
    so parents are judged again. CHOICE: shared weights hide what learns without, so the best end from scratch."""
    size = s.parents * s.children  # CHOICE: M_0 comes a round's size at a time (l.2), to warm the super-net, too
    chunks = [("random", min(size, s.population - i), 0) for i in range(0, s.population, size)]
    rounds = [("random", size, 0) if s.strategy == "random" else ("mutants", size, s.parents * s.again)] * s.rounds
    return chunks + rounds + [("last", 0, s.finalists)] * (s.finalists > 0)

def evolve(s, layers, fitness, probe=lambda backbone: None, log=(), note=lambda *_: None):
    """Algorithm 1 -> a log: every Candidate, those turned away too. fitness(round, batch, log) -> the batch, judged.
    probe(backbone) -> None, or why it is turned away. log: of earlier rounds; it and the seed decide the next one."""
    log = list(log)
    done = len({c.round for c in log})
    for number, (kind, size, repeated) in enumerate(plan(s)[done:], done):  # l.3
        rng, counts, M = random.Random(f"{s.seed} {number}"), Counter(), last_of(log)
        tables = OperationPriority(M, s.alpha, math.inf if s.strategy == "ea" else s.tau)  # l.12
        parents = best_of(M, s.parents) if kind == "mutants" else []  # l.4
        batch = [replace(c, round=number) for c in best_of(M, repeated)]
        seen, tries = {c.backbone for c in log}, 100 * size
        for i in range(size):
            parent, reason = parents[i % len(parents)] if parents else None, "not tried"  # l.5
            while reason:
                backbone = (mutate(parent.backbone, tables, rng, seen, counts) if parent  # l.6, l.7
                            else random_backbone(layers, rng))
                if backbone not in seen:
                    seen.add(backbone)
                    tries -= 1
                    reason = probe(backbone) if tries > 0 else None  # it must not hang the search
                    counts[reason or "proposed"] += 1
                    new = Candidate(len(M) + i, number, parent and parent.number, backbone)
                    (log if reason else batch).append(replace(new, number=None, reason=reason) if reason else new)
        note(number, kind, counts, tables)
        log += fitness(number, batch, log)  # l.8, l.9, l.11
    return log

# ---- The proxy task (App. D.1) ----
class Proxy:
    """Judges backbones on a run's text and tasks. Each process has one."""
    def __init__(self, folder, device):
        torch.set_num_threads(1)  # or the number of workers would change the result
        about = json.loads((folder / "settings.json").read_text())
        corpus, tables = about.pop("corpus"), about.pop("glue")
        s = SearchSettings(pretrain=autobert.PretrainSettings(**about.pop("pretrain")),
                           tune=glue.FinetuneSettings(**about.pop("tune")), **about)
        self.folder, self.device, self.s, self.corpus = folder, device, s, data.Corpus(corpus)
        self.config = replace(autobert.SIZES[s.size], vocab=self.corpus.tokenizer.vocab_size)
        self.batches, self.held_out = (data.PretrainingData(self.corpus, part, s.pretrain.n, s.pretrain.batch, s.seed)
                                       for part in data.split_held_out(self.corpus))
        self.tasks = {task: [glue.encode(glue.read_task(tables, task, split), self.corpus.tokenizer, s.tune.n)
                             for split in ("train", "dev")] for task in s.tasks}

    def model(self, backbone, seed):
        """A model with random weights."""
        torch.manual_seed(seed)
        return autobert.Pretraining(self.config, backbone)

    def probe(self, backbone):
        """Why a backbone is not worth training, or None. CHOICE: collapsed = nearly the same hidden states everywhere:
        dist often gives large constants, and the LayerNorm behind them wipes the tokens out."""
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

    def scores(self, model, seed, rows=0, final=False):
        """((task, score in [0, 1]), ..), fine-tuned on at most so many rows. DEVIATION: candidates are scored on a
        tenth of the training rows: dev shall be new to the winner; the paper selects on it."""
        found = []
        for task, ((x, y), dev) in self.tasks.items():
            order, tenth = np.random.default_rng(seed).permutation(len(x)), len(x) // 10
            train, rest = (([x[i] for i in part], y[part]) for part in (order[tenth:][:rows or None], order[:tenth]))
            _, score = glue.finetune(model.encoder, task, train, dev if final else rest, self.s.tune, seed, self.device)
            found.append((task, max(0.0, float(score))))
        return tuple(found)

    def warm(self, path):
        """Write a search's first state. DEVIATION: its super-net has learnt with convolutions only, then with BERT's
        attention."""
        s, net = self.s, supernet.SuperNet(self.config, self.s.seed)
        genes = (CONVOLUTIONS[-1], ops.ATTENTIONS["bert"]) if s.warm else ()
        for i, gene in enumerate(genes):
            print(f"-- warming the super-net: {s.warm} steps of {gene} in all layers", flush=True)
            child = net.child([gene] * self.config.layers)
            self.pretrain(child, s.warm, s.seed, i * s.warm)
            net.absorb(child.state_dict())
        save(path, dict(config=asdict(self.config), corpus=str(self.corpus.folder), log=(), offset=len(genes) * s.warm,
                        slots=net.slots))

    def judge(self, path, backbone, number, offset):
        """Write a Candidate's fields, and weights to write back (l.8, l.9). The last round takes all rows."""
        start, s, reason, mlm, nsp, tasks = time.time(), self.s, "", None, None, ()
        last = plan(s)[number][0] == "last"
        fresh, steps, rows = (True, s.final_steps, 0) if last else (not s.warm, s.steps, s.rows)
        seed = 100 * s.seed + (99 if last else 98 - number) if fresh else s.seed  # subtle: the round's, no final's
        child = self.model(backbone, seed) if fresh else supernet.SuperNet(
            self.config, slots=load(self.folder / "state.pt")["slots"]).child(backbone)
        try:
            mlm, nsp = self.pretrain(child, steps, seed, offset)
            tasks = self.scores(child, seed, rows)
        except autobert.Diverged:
            reason = "diverged"
        found = dict(reason=reason, mlm=mlm, nsp=nsp, tasks=tasks, seconds=time.time() - start)
        save(path, (found, child.state_dict() if tasks and not fresh else {}))

    def final(self, path, backbone, seed):
        """Write a checkpoint of a full training, with its losses and scores."""
        model = self.model(backbone, seed)
        mlm, nsp = self.pretrain(model, self.s.final_steps, seed)
        tasks = self.scores(model, seed, final=True)
        autobert.save_checkpoint(path, model, self.corpus.tokenizer, mlm=mlm, nsp=nsp, tasks=tasks)

# ---- A run: its folder and its workers ----
PROXY = None  # a process's own

def start_worker(folder, device):
    """What each process does first. A worker ends with its parent."""
    global PROXY
    if parent := mp.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    rank = int(mp.current_process().name.split("-")[-1]) if parent else 0  # SpawnProcess-1, ..
    PROXY = Proxy(folder, autobert.find_device(device, rank))

def once(job):
    """Do a job (method of PROXY, path, ..) unless its file exists."""
    method, path, *arguments = job
    if not path.exists():
        getattr(PROXY, method)(path, *arguments)

def save(path, content):
    """torch.save, whole or not at all."""
    data.write_beside(path, lambda file: torch.save(content, file))

def load(path):
    """What `save` wrote."""
    return torch.load(path, weights_only=True, mmap=True)

class Run:
    """A search. All its state is state.pt: the log of whole rounds and their super-net."""
    def __init__(self, folder, map):
        next(map(once, [("warm", folder / "state.pt"), *finals(folder, "autobert-zero")]))  # finals beside it
        self.folder, self.map, self.s, self.begun, self.done = folder, map, PROXY.s, time.time(), 0
        self.log = [Candidate(*c) for c in load(folder / "state.pt")["log"]]

    def fitness(self, number, batch, log):
        """Judge a round from one snapshot of the super-net, then write back, best last."""
        state, judged = load(self.folder / "state.pt"), []
        mean = not self.s.warm and plan(self.s)[number][0] != "last"  # CHOICE: from scratch all judgements count alike
        paths = [self.folder / f"round-{number}-{c.number}.pt" for c in batch]
        jobs = [("judge", path, c.backbone, number, state["offset"]) for c, path in zip(batch, paths)]
        for c, path, _ in zip(batch, paths, self.map(once, jobs)):
            found, earlier = load(path)[0], [x.tasks for x in log if mean and x.number == c.number]
            scores = [x for tasks in (*earlier, found["tasks"]) for _, x in tasks]
            judged.append(replace(c, score=fmean(scores) if found["tasks"] else None, **found))
            self.tell(judged[-1], [*log, *judged])
        net = supernet.SuperNet(PROXY.config, slots=state["slots"])
        for i in supernet.write_order([c.score or 0 for c in judged]):
            net.absorb(load(paths[i])[1])
        log = [*log, *judged]
        state |= dict(log=[astuple(c) for c in log], offset=state["offset"] + self.s.steps)
        save(self.folder / "state.pt", state)  # the one moment at which a round is over
        write_table(self.folder / "candidates.tsv", log)
        tell_useless(judged)
        for path in self.folder.glob("round-*.pt"):
            path.unlink()
        return judged

    def tell(self, c, log):
        """Print score, best, time left, and what the parent has not."""
        M, (_, new, again) = last_of(log), zip(*plan(self.s))
        self.done += 1
        rest = max(0, sum(new + again) - self.s.finalists - sum(x.number is not None for x in log))
        left = data.span(rest * (time.time() - self.begun) / self.done)
        parent = next((x.backbone for x in M if x.number == c.parent), [""] * len(c.backbone))
        changed = " ".join(f"L{i} {gene}" for i, gene in enumerate(c.backbone, 1) if gene != parent[i - 1])
        score, best = c.reason if c.score is None else f"{c.score:.3f}", max(x.score or 0 for x in M)
        line = f"cand={c.number}/{sum(new)} round={c.round} score={score} best={best:.3f} left={left} | {changed}"
        print(line[:120], flush=True)

def tell_useless(judged):
    """Print the tasks at which all of a round are at chance, or at the ceiling."""
    for task, ((_, y), _) in PROXY.tasks.items():
        scores = [dict(c.tasks)[task] for c in judged if c.tasks]
        chance = max(glue.score(task, y, np.full_like(y, x)) for x in np.unique(y)[:3])  # the best constant
        if len(scores) > 1 and (max(scores) < chance + 0.05 or min(scores) > 0.95):
            print(f"-- {task} told nothing: {min(scores):.2f} to {max(scores):.2f}, chance {chance:.2f}")

def write_table(path, log):
    """A judgement a row, and each backbone that the probe turned away."""
    rows = [[*"number round parent score reason mlm nsp".split(), *PROXY.s.tasks, "seconds", "backbone"]]
    for number, round, parent, backbone, *about, tasks, seconds in map(astuple, log):
        cells = [number, round, parent, *about, *map(dict(tasks).get, PROXY.s.tasks), seconds, " | ".join(backbone)]
        rows.append("-" if x in (None, "") else str(x) for x in cells)
    data.write_beside(path, "".join("\t".join(row) + "\n" for row in rows))

def note(number, kind, counts, tables):
    """Print how sharp the tables are, and what was proposed."""
    sharp = "perplexity of ops %.2f (N %d), of kernels %.2f (N %d)" % (*tables.perplexity(), *tables.perplexity(tuple))
    print(f"-- round {number}, {kind}: {sharp}; {dict(counts)}", flush=True)

# ---- The final judgement ----
def finals(folder, name):
    """Jobs: final trainings of a published backbone or the "best"."""
    backbone = autobert.load_backbone(folder / "best.json" if name == "best" else name, PROXY.config.layers)
    return [("final", folder / f"{name}-{i}.pt", backbone, 100 * PROXY.s.seed + i) for i in range(PROXY.s.final_seeds)]

def judge_winner(run):
    """Train winner, bert and autobert-zero alike; print the table."""
    jobs = {name: finals(run.folder, name) for name in ("best", "bert", "autobert-zero")}
    print(f"-- final training of {', '.join(jobs)}, {run.s.final_steps} steps each", flush=True)
    list(run.map(once, sum(jobs.values(), [])))
    rows, averages = [("", *run.s.tasks, "average", "MLM", "NSP", "params")], {}
    for name, mine in jobs.items():
        found, genes = [load(path) for _, path, *_ in mine], mine[0][2]
        found = np.array([[*(100 * x for _, x in f["tasks"]), f["mlm"], f["nsp"]] for f in found])
        averages[name] = found[:, :-2].mean(1)  # (seeds,)
        columns = np.insert(found, -2, averages[name], 1).T
        cells = ["%.4g ± %.2g" % glue.interval(x) if len(x) > 1 else f"{x[0]:.4g}" for x in columns]
        rows.append((name, *cells, f"{autobert.count_parameters(PROXY.config, genes)['total']:,}"))
    lines = ["".join(f" {cell:>14}" for cell in row) for row in rows]
    lines += [f"L{i} {gene}" for i, gene in enumerate(jobs["best"][0][2], 1)]
    lines.append(glue.verdict(averages["best"] - averages["bert"]))
    data.write_beside(run.folder / "table.txt", "\n".join(lines) + "\n")
    print(*lines, sep="\n")

def search(s: SearchSettings, preset: tuple(PRESETS) = "toy", corpus: str = "toy/corpus.txt", glue: str = "toy/glue",
           out: str = "runs/search", workers: int = torch.cuda.device_count() or os.cpu_count(), device: str = "auto"):
    """Search a backbone, then judge the winner beside bert. The same command again goes on.

    preset: settings that other flags may change; toy: 5 minutes; evening: 35, no shared weights; small, paper: for GPUs
    corpus: a text file, or a folder that `data.py prepare` wrote
    glue: the folder that holds CoLA, SST-2, ..
    out: the run's folder
    workers: processes; several GPUs are taken by turns
    device: auto, cpu, cuda, cuda:1, .."""
    folder, s = Path(out), replace(PRESETS[preset], **s)
    path, kept = folder / "settings.json", corpus if os.path.isdir(corpus) else folder / "corpus"
    text = json.dumps({"corpus": os.path.abspath(kept), "glue": os.path.abspath(glue), **asdict(s)}, indent=1)
    if (folder / "state.pt").exists():
        given = {key: x for key, x in json.loads(text).items() if key != "final_seeds"}  # more may follow
        data.check_same(json.loads(path.read_text()), given, out)
    data.open_corpus(corpus, kept, autobert.SIZES[s.size].vocab, s.seed)
    data.write_beside(path, text)
    print(f"{preset} preset, seed {s.seed}, {workers} workers; all settings in {path}", flush=True)
    start_worker(folder, device)  # proposes, writes back
    pool = ProcessPoolExecutor(workers, mp.get_context("spawn"), start_worker, (folder, device))
    try:
        run = Run(folder, map if workers == 1 else pool.map)
        log = evolve(s, PROXY.config.layers, run.fitness, PROXY.probe, run.log, note)
        M = last_of(log)
        winner = best_of([c for c in M if plan(s)[c.round][0] == "last"], 1) or best_of(M, 1)
        if not winner:
            raise UserError(f"all candidates were rejected: {dict(Counter(c.reason for c in log))}")
        autobert.save_backbone(folder / "best.json", winner[0].backbone)
        judge_winner(run)
        pool.shutdown()
    except BrokenExecutor:
        raise UserError("a worker has died, out of memory? Take fewer; the same command again goes on") from None
    finally:
        for worker in mp.active_children():
            worker.kill()

if __name__ == "__main__":
    data.run(__doc__, usual=search)
