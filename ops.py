"""The intra-layer search space: attention as a graph of primitive operations (paper Sec. 3.1, Table 1).

An attention head turns four projections of its input, Q, K, V and P, into an output by a directed acyclic
graph (DAG) of ten primitive ops. This file is everything about one such graph: the table of ops, the formula that
writes it down, whether it is legal, what it computes, what it costs, and how to draw one at random.

    dag    the genome: a tuple of nodes (op, in1[, in2]); slots 0..3 are Q K V P, node t fills slot 4 + t and the last
           is the output. BERT: (("transpose", 1), ("matmul", 0, 4), ("scale", 5), ("softmax", 6), ("matmul", 7, 2))
    type   what a value's two axes are, tokens "n" or head channels "d": "nd", "dn", "nn" or "dd"
    n, d   tokens, head size (d_h in the paper); B batch, H heads
    k      path length: the number of nodes; a node's position in the path is its index in the canonical order

    python ops.py                                   # Table 1 and the published attentions
    python ops.py "softmax(scale(Q @ T(K))) @ V"    # what any formula is, step by step

Read this first; then data.py.
"""
import argparse
import ast
import functools
import itertools
import math
import os
import random
import statistics
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F

INPUTS = "QKVP"
MAX_LENGTH = 16  # CHOICE: the paper leaves the path length open; longer graphs are refused
LENGTHS = range(4, 15)  # CHOICE: a random graph's budget of nodes; BERT has 5, the published ones 7 to 10
MAX_TEXT = 200  # ops a formula may hold at all, before any question of legality


# ---- The ten primitives (Table 1) ----


@dataclass(frozen=True)
class Op:
    """One row of Table 1.

    text: how it is written. value(d_h, x[, y]): its tensor function on (..., rows, columns). type(x[, y]): its
    result's type, None where the operands do not fit. flops(a, k, b): operations on x of (a, k) for a result of b
    columns. reduces: per operand the axis it sums or normalises over (None: none), which is where padding must be
    hidden, and where tokens mix if that axis is n. hide: what padding becomes there.
    """
    arity: int
    text: str
    value: Callable
    type: Callable
    flops: Callable
    reduces: tuple = (None, None)
    hide: float = 0.0


def _cosine(d_h, x, y):
    x, y = (v * torch.rsqrt(v.square().sum(-1, keepdim=True) + 1e-6) for v in (x, y))
    return x @ y.mT


def _distance(d_h, x, y):
    # |x - y|² = |x|² + |y|² - 2xy: (rows of x) × (rows of y) numbers, never a third axis for the channels
    square = x.square().sum(-1, keepdim=True) + y.square().sum(-1, keepdim=True).mT - 2 * (x @ y.mT)
    return torch.sqrt(square.clamp(min=0) + 1e-6)  # 1e-6: the root has no gradient at 0


def _same(x, y=None):
    """equal types -> the same"""
    # CHOICE: equal types only, no broadcasting. No op makes a scalar then, so the paper's "neg, add and
    # multiplication" on scalars never occurs.
    return x if y in (None, x) else None


def _swapped(x):
    """(a,k) -> (k,a)"""
    return x[::-1]


def _product(x, y):
    """(a,k), (k,c) -> (a,c)"""
    return x[0] + y[1] if x[1] == y[0] else None


def _pairwise(x, y):
    """(a,k), (b,k) -> (a,b)"""
    return x[0] + y[0] if x[1] == y[1] else None


OPS = {
    "neg": Op(1, "-{}", lambda d, x: -x, _same, lambda a, k, b: a * k),
    "transpose": Op(1, "T({})", lambda d, x: x.mT, _swapped, lambda a, k, b: 0),
    # CHOICE: always the head size, whatever x is: Table 1's d_x is √d_h in all the printed formulas
    "scale": Op(1, "scale({})", lambda d, x: x / math.sqrt(d), _same, lambda a, k, b: a * k),
    "softmax": Op(1, "softmax({})", lambda d, x: x.softmax(-1), _same, lambda a, k, b: 5 * a * k, (-1,), -math.inf),
    "logsigmoid": Op(1, "logsigmoid({})", lambda d, x: F.logsigmoid(x), _same, lambda a, k, b: 4 * a * k),
    "softsign": Op(1, "softsign({})", lambda d, x: x / (1 + x.abs()), _same, lambda a, k, b: 3 * a * k),
    "add": Op(2, "{} + {}", lambda d, x, y: x + y, _same, lambda a, k, b: a * k),
    "matmul": Op(2, "{} @ {}", lambda d, x, y: x @ y, _product, lambda a, k, b: 2 * a * k * b, (-1, -2)),
    "cos": Op(2, "cos({}, {})", _cosine, _pairwise, lambda a, k, b: 2 * a * k * b + 3 * (a + b) * k, (-1, -1)),
    "dist": Op(2, "dist({}, {})", _distance, _pairwise,
               lambda a, k, b: 2 * a * k * b + 2 * (a + b) * k + 4 * a * b, (-1, -1)),
}

# Fig. 7 and the printed equations: layers 2, 4, .. 12 of AutoBERT-Zero, and BERT's (Eq. 2). The figure's "sqrt" is
# scale, and log(1 + e^x) = -logsigmoid(-x). CHOICE: its one-input "add" in layer 12 is read as the printed "+ V".
ATTENTIONS = {
    "bert": "softmax(scale(Q @ T(K))) @ V",
    "L2": "softmax(scale(Q @ -T(logsigmoid(-K)))) @ (K + Q)",
    "L4": "softmax(scale(Q @ -T(logsigmoid(logsigmoid(Q) + (K + Q))))) @ Q",
    "L6": "softmax(scale(Q @ -T(logsigmoid(K)))) @ Q",
    "L8": "softmax(scale(Q @ -T(logsigmoid(K)))) @ Q",
    "L10": "softmax(scale(Q @ T(scale(K) + (softsign(scale(softsign(K))) + V)))) @ V",
    "L12": "softmax(scale(Q @ T(scale(K) + V))) @ V",
}


def fold(dag, leaves, step):
    """The one walk over a genome: slots, the four `leaves` first, then step(op, *operands) for every node in order.

    Types, values, formulas and canonical forms are all this walk with another `step`.
    Example: fold((("neg", 1),), [5, 7, 0, 0], lambda op, x: -x) -> [5, 7, 0, 0, -7]
    """
    slots = list(leaves)
    for op, *args in dag:
        slots.append(step(op, *(slots[a] for a in args)))
    return slots


# ---- One graph, one form ----


def canonical(dag):
    """The same function in its one form: dead nodes pruned, equal subexpressions merged, arguments of add sorted (ops
    in Table 1's order, then inputs by letter), nodes in post-order from the output.

    Example: (("neg", 0), ("neg", 0), ("add", 1, 5)) -> (("neg", 0), ("add", 4, 1)), that is -Q + K
    """
    ops, leaves = list(OPS), [(len(OPS), letter) for letter in INPUTS]
    unique = {}  # subtle: keyed by the identity of the operands; a nested key would be hashed again and again
    nodes, slot = [], {id(leaf): i for i, leaf in enumerate(leaves)}

    def merge(op, *args):
        args = sorted(args) if op == "add" else args
        return unique.setdefault((op, *map(id, args)), (ops.index(op), *args))

    def visit(tree):
        if id(tree) not in slot:
            rank, *args = tree
            for arg in args:
                visit(arg)
            nodes.append((ops[rank], *(slot[id(arg)] for arg in args)))
            slot[id(tree)] = 3 + len(nodes)

    visit(fold(dag, leaves, merge)[-1])
    return tuple(nodes)


def used(dag):
    """The letters of the inputs a graph reads, in the order Q K V P. Example: BERT's -> "QKV"."""
    read = {a for _, *args in dag for a in args}
    return "".join(letter for slot, letter in enumerate(INPUTS) if slot in read)


# ---- Formula <-> graph ----


def formula(dag):
    """The graph as a formula that Python's own grammar reads; a node used more than once is named first.

    Example: "a = softsign(K); softmax(Q @ T(a)) @ (V + a)"
    """
    reads = Counter(a for _, *args in dag for a in args)
    names = (letter + str(i or "") for i in itertools.count() for letter in "abcdefghijklmnop")  # .. p, a1, .. p1, .
    statements, slot = [], itertools.count(4)

    def write(op, *args):  # a text and how tightly it binds: 3 a name, call or minus, 2 a product, 1 a sum
        need = {"neg": (3,), "matmul": (2, 3), "add": (1, 2)}.get(op, (0, 0))
        text = OPS[op].text.format(*(t if bind >= least else f"({t})" for (t, bind), least in zip(args, need)))
        bind = {"matmul": 2, "add": 1}.get(op, 3)
        if reads[next(slot)] > 1:
            statements.append(f"{(name := next(names))} = {text}")
            text, bind = name, 3
        return text, bind

    return "; ".join(statements + [fold(dag, [(letter, 3) for letter in INPUTS], write)[-1][0]])


_SYNTAX = {row.text.split("(")[0]: op for op, row in OPS.items() if "(" in row.text}
_WRITTEN = f"ops are {' '.join(_SYNTAX)} - + @"
_SYNTAX |= {ast.USub: "neg", ast.Add: "add", ast.MatMult: "matmul"}


@functools.lru_cache(4096)  # a search meets the same formulas again and again
def parse(text):
    """The canonical graph of a formula; ValueError with the place and what was expected if it is malformed.

    A graph of wrong types parses: it is a value, and why_illegal says what is wrong with it.
    """
    def fail(node, why):
        raise ValueError(f"formula {text[:120]!r}, column {getattr(node, 'col_offset', 0) + 1}: {why}")

    slots, nodes = {letter: i for i, letter in enumerate(INPUTS)}, []

    def read(node):
        match node:
            case ast.Name(name):
                if name not in slots:
                    fail(node, f"unknown name {name!r}; inputs are Q K V P, {_WRITTEN}")
                return slots[name]
            case ast.BinOp(left, sign, right):
                key, args = type(sign), [left, right]
            case ast.UnaryOp(sign, operand):
                key, args = type(sign), [operand]
            case ast.Call(ast.Name(key), args, []):
                pass
            case _:
                fail(node, "expected an input, a name, an op or a sum, product or minus of them")
        if key not in _SYNTAX:
            fail(node, f"unknown op {getattr(key, '__name__', key)!r}; {_WRITTEN}")
        op = _SYNTAX[key]
        if len(args) != OPS[op].arity:
            fail(node, f"{op} takes {OPS[op].arity} operand(s), not {len(args)}")
        nodes.append((op, *map(read, args)))
        if len(nodes) > MAX_TEXT:
            fail(node, f"more than {MAX_TEXT} ops")
        return 3 + len(nodes)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's opinion of 0xdist
            *named, last = ast.parse(text.strip()).body or [None]
        for statement in named:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            if not isinstance(target, ast.Name) or len(statement.targets) > 1:
                fail(statement, "expected `name = ...` before the output")
            if target.id in slots or target.id in _SYNTAX:
                fail(target, f"{target.id!r} has a meaning already")
            slots[target.id] = read(statement.value)
        if not isinstance(last, ast.Expr):
            fail(last, "expected the output, an expression, as the last statement")
        output = read(last.value)
    except (SyntaxError, RecursionError, MemoryError, UnicodeEncodeError) as error:
        why = getattr(error, "reason", None) or (error.args[0] if error.args else "too deep")
        raise ValueError(f"formula {text[:120]!r} does not parse: {why}") from None
    if output < 4:
        fail(last, "the output is a bare input; expected at least one op")
    return canonical(nodes[: output - 3])


# ---- Legality (Sec. 3.1: "we examine whether every operation is legit") ----


def slot_types(dag):
    """The type of every slot, inputs first; None for a node whose operands do not fit, and for all that reads it."""
    return fold(dag, ["nd"] * 4, lambda op, *types: None if None in types else OPS[op].type(*types))


def mixing(dag):
    """Of every node whether it sums or normalises over the tokens: there, and only there, tokens mix."""
    types = slot_types(dag)
    return [any(axis and types[a] and types[a][axis] == "n" for a, axis in zip(args, OPS[op].reduces))
            for op, *args in dag]


def mixes(dag):
    """Whether some node of a well-typed graph mixes tokens."""
    return any(mixing(dag))


def why_illegal(dag, require_mixing=True):
    """None for a legal graph, else the reason in words.

    Legal: nodes of known ops on earlier slots, every node well typed by the symbolic types (never by sizes: with
    n == d_h a wrong graph would pass), output (n, d), 2 to 4 inputs, at most MAX_LENGTH nodes. CHOICE: some node
    mixes tokens, unless require_mixing is False; an attention that mixes none is no attention.
    """
    for t, node in enumerate(dag):
        if not node or node[0] not in OPS or len(node) != 1 + OPS[node[0]].arity:
            return f"step {t + 1}: {node!r} is no op of Table 1 with its operands"
        if not all(isinstance(a, int) and 0 <= a < 4 + t for a in node[1:]):
            return f"step {t + 1}: {node!r} reads a slot that is not filled yet"
    if not 1 <= len(dag) <= MAX_LENGTH:
        return f"{len(dag)} ops; expected 1 to {MAX_LENGTH}"
    types = slot_types(dag)
    if None in types:
        step = types.index(None) - 3
        op, *args = dag[step - 1]
        return f"step {step}: {op} does not take {' and '.join(_axes(types[a]) for a in args)}"
    if types[-1] != "nd":
        return f"the output is {_axes(types[-1])}; expected (n,d)"
    dag = canonical(dag)
    if len(used(dag)) < 2:
        return f"reads only {used(dag)}; expected 2 to 4 distinct inputs"
    return "no op mixes tokens" if require_mixing and not mixes(dag) else None


def _axes(type_):
    """Example: "nd" -> "(n,d)" """
    return f"({','.join(type_)})"


# ---- What it computes, what it costs ----


def fuse(dag):
    """A legal graph with each softmax(scale(A @ Y)) @ C, with or without the scale, as one node ("attend", A, Y, C).

    The fast path: the same function by torch's scaled_dot_product_attention with Y's transpose as key. Only where
    nothing else reads the values between; a graph without the pattern comes back as it is.
    """
    types, reads = slot_types(dag), Counter(a for _, *args in dag for a in args)

    def operands(slot, op):  # of the node there, if it is this op and read once
        return dag[slot - 4][1:] if slot >= 4 and dag[slot - 4][0] == op and reads[slot] == 1 else ()

    def attend(op, *args):
        scores = operands(args[0], "softmax") if op == "matmul" and types[args[1]] == "nd" else ()
        scaled = operands(scores[0], "scale") if scores else ()
        product = operands((scaled or scores)[0], "matmul") if scores else ()
        if product and types[product[0]] == "nd":
            return ("attend" if scaled else "attend unscaled", *product, args[1])
        return (op, *args)

    nodes, alive, slot = [attend(*node) for node in dag], [3 + len(dag)], {}
    for at in alive:  # everything the output needs, itself first
        alive += [a for a in nodes[at - 4][1:] if a >= 4 and a not in alive]
    slot = {**dict(zip(range(4), range(4))), **{at: 4 + i for i, at in enumerate(sorted(alive))}}
    return tuple((nodes[at - 4][0], *(slot[a] for a in nodes[at - 4][1:])) for at in sorted(alive))


def drop(x, p):
    """Dropout: x with each element 0 with probability p (to 2^-17), else divided by 1 - p.

    On a CPU torch draws one random number after another, one an element: up to a sixth of a training step. Here each
    draw of 64 bits decides for four elements.
    """
    if not 0 < p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p) if p else x
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)
    keep = draws.view(torch.int16)[:x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * keep.to(x.dtype).mul_(1 / (1 - p))


def evaluate(dag, inputs, mask=None, dropout=0.0):
    """The output of a legal graph: (B, H, n, d_h).

    inputs: Q, K, V, P, each (B, H, n, d_h), or None where the graph does not read it. mask: (B, n) bool, True = a
    real token; padding then never reaches a real token, whatever the graph. dropout: the rate at which weights
    of each softmax of type (n, n) are dropped. A graph from fuse gives the same, faster on most devices.
    """
    d_h = next(x for x in inputs if x is not None).shape[-1]
    if mask is not None:
        # a sequence with no real token counts as all real, or its softmax would be 0/0
        hole = ~mask & mask.any(-1, keepdim=True)  # (B, n)
        hole = {-1: hole[:, None, None, :], -2: hole[:, None, :, None]}

    def attend(scale, query, key, value):
        keep = None if mask is None else ~hole[-1]
        value = value if mask is None else value.masked_fill(hole[-2], 0.0)
        return F.scaled_dot_product_attention(query, key.mT, value, attn_mask=keep, dropout_p=dropout, scale=scale)

    def step(op, *args):
        if op.startswith("attend"):
            return attend(1 / math.sqrt(d_h) if op == "attend" else 1.0, *(x for x, _, _ in args)), "nd", False
        row = OPS[op]
        # Hide padding where, and only where, an op reduces over tokens: a mask in the softmax alone leaks in nearly
        # every other graph. Filled, not multiplied: inf * 0 is nan.
        values = [x.masked_fill(hole[axis], row.hide)
                  if mask is not None and axis and type_[axis] == "n" and not (zero and (axis, row.hide) == (-1, 0.0))
                  else x for (x, type_, zero), axis in zip(args, row.reduces)]
        value, type_ = row.value(d_h, *values), row.type(*(t for _, t, _ in args))
        weights = op == "softmax" and type_ == "nn"  # their padding, where their operand was -inf, is exactly 0 already
        return drop(value, dropout) if weights else value, type_, weights

    return fold(dag, [(x, "nd", False) for x in inputs], step)[-1][0]


def flops(dag, n, d_h):
    """Floating-point operations of one head on one sequence of n tokens; a multiply-add counts as two."""
    size, types = {"n": n, "d": d_h}, slot_types(dag)
    return sum(OPS[op].flops(size[types[x][0]], size[types[x][1]], size[out[1]])
               for (op, x, *_), out in zip(dag, types[4:]))


# ---- Random graphs ----


def _operands(rng, op, slots, open_, fresh, least, goal):
    """Operands for `op` among typed slots, at least `least` of them open nodes, result of type `goal` (None: any)."""
    # CHOICE: prefer what nothing has read yet; x + x, cos(x, x), dist(x, x) and a second dist are damped, not
    # forbidden: else they crowd the draws, for they always fit
    weight = {a: 8 if a in open_ else 3 if a in fresh else 1 for a in slots}
    choices = {}
    for args in itertools.product(slots, repeat=OPS[op].arity):
        type_ = OPS[op].type(*(slots[a] for a in args))
        if type_ and goal in (None, type_) and len(open_.intersection(args)) >= least:
            alike = op in ("add", "cos", "dist") and args[0] == args[1]
            choices[args] = math.prod(weight[a] for a in args) * (0.03 if alike else 1)
    return rng.choices(list(choices), list(choices.values()))[0] if choices else None


def draw(rng, weights=None):
    """One raw draw, canonical but perhaps illegal: a graph grown forward, type- and goal-directed.

    rng: random.Random. weights(position) -> {op: weight} for the ops at that position of the path; None: uniform.
    """
    length = rng.choice(LENGTHS)
    inputs = rng.sample(range(4), rng.choice((2, 3, 4)))
    slots, open_, fresh, dag = {a: "nd" for a in inputs}, set(), set(inputs), []
    for left in reversed(range(length)):  # nodes still to come after this one
        ops = dict(weights(len(dag))) if weights else dict.fromkeys(OPS, 1.0)
        ops["dist"] *= 0.3 ** sum(op == "dist" for op, *_ in dag)
        least, goal = len(open_) - left, None if left else "nd"  # every open node must still find a reader
        args = None
        while args is None and any(ops.values()):
            op = rng.choices(list(ops), list(ops.values()))[0]
            args = _operands(rng, op, slots, open_, fresh, least, goal)
            ops[op] = 0.0
        if args is None:
            break
        dag.append((op, *args))
        slots[3 + len(dag)] = OPS[op].type(*(slots[a] for a in args))
        open_ = open_.difference(args) | {3 + len(dag)}
        fresh.difference_update(args)
    return canonical(dag) if dag else ()


def random_dag(rng, weights=None):
    """A legal random graph (see draw), by drawing again until one is."""
    while why_illegal(dag := draw(rng, weights)) is not None:
        pass
    return dag


# ---- How many graphs there are (Sec. 3.1: "more than 10^20 possible combinations") ----


class Expressions:
    """Every expression over the four inputs met so far has a number, inputs 0 to 3; a graph is a set of numbers."""

    def __init__(self):
        self.number, self.type, self.args = {}, ["nd"] * 4, [()] * 4
        self.reads, self.mixes = [{letter} for letter in INPUTS], [False] * 4

    def intern(self, op, args):
        """The number of an expression, None if it is ill typed."""
        if (op, args) not in self.number and (type_ := OPS[op].type(*(self.type[a] for a in args))):
            self.number[op, args] = len(self.type)
            self.mixes.append(any(self.mixes[a] or axis and self.type[a][axis] == "n"
                                  for a, axis in zip(args, OPS[op].reduces)))
            self.type.append(type_)
            self.args.append(args)
            self.reads.append(set().union(*(self.reads[a] for a in args)))
        return self.number.get((op, args))

    def sinks(self, graph):
        """The members that no member reads."""
        return graph.difference(*(self.args[x] for x in graph))

    def steps(self, graph, left):
        """What may be added to a set of expressions if `left` more follow and all shall lead to one legal output."""
        sinks = self.sinks(graph)
        for op, row in OPS.items():
            for args in itertools.product([0, 1, 2, 3, *graph], repeat=row.arity):
                x = self.intern(op, args) if op != "add" or args[0] <= args[1] else None
                if x is None or x in graph or len(sinks.difference(args)) > left:
                    continue
                if left or self.type[x] == "nd" and self.mixes[x] and len(self.reads[x]) > 1:
                    yield x


def count_legal(length):
    """The exact number of legal canonical graphs with `length` nodes. Example: 2 -> 120"""
    space, level = Expressions(), {frozenset()}
    for left in range(length - 1, 0, -1):
        level = {graph | {x} for graph in level for x in space.steps(graph, left)}
    # a legal graph has one last node only, so this counts each graph once
    return sum(1 for graph in level for _ in space.steps(graph, 0))


def estimate_legal(length, samples, rng):
    """(mean, standard error) of an unbiased estimate of count_legal, by random growth (Knuth 1975).

    A sample weighs as much as there were choices on its way, divided by the number of ways to the same graph.
    """
    space, weights = Expressions(), []

    @functools.lru_cache(None)
    def ways(graph):
        fits = len(space.sinks(graph)) <= 1 + length - len(graph)
        return fits and (sum(ways(graph - {x}) for x in space.sinks(graph)) if graph else 1)

    for _ in range(samples):
        graph, weight = frozenset(), 1
        for left in reversed(range(length)):
            choices = list(space.steps(graph, left))
            weight *= len(choices)
            if not choices:
                break
            graph |= {rng.choice(choices)}
        weights.append(weight / ways(graph) if weight else 0)
    return statistics.fmean(weights), statistics.stdev(weights) / math.sqrt(samples)


def count_failures(draws, rng, dtype, n=128, d_h=64):
    """Of `draws` legal graphs on Gaussian inputs, how many have a result or gradient not finite: {reason: count}."""
    found, generator = Counter(), torch.Generator().manual_seed(rng.randrange(2**32))
    for _ in range(draws):
        inputs = [torch.randn(1, 1, n, d_h, generator=generator).to(dtype).requires_grad_() for _ in INPUTS]
        y = evaluate(random_dag(rng), inputs)
        y.sum().backward()
        finite = all(torch.isfinite(x.grad).all() for x in inputs if x.grad is not None)
        found["finite" if torch.isfinite(y).all() and finite else
              "result not finite" if not torch.isfinite(y).all() else "gradient not finite"] += 1
    return dict(found)


# ---- Command line ----


def show_space(draws):
    """Print how random draws spread, how many legal graphs there are, and how many are not finite."""
    torch.set_num_threads(1)  # the tensors are small
    rng = random.Random(0)
    drawn = [draw(rng) for _ in range(draws)]
    legal = [dag for dag in drawn if why_illegal(dag, require_mixing=False) is None]
    print(f"of {draws:,} draws {100 * len(legal) / draws:.1f} % are legal without the switch, of these "
          f"{100 * sum(map(mixes, legal)) / len(legal):.1f} % mix tokens")
    for title, key in (("path length", len), ("inputs", lambda dag: len(used(dag)))):
        counts = sorted(Counter(map(key, legal)).items())
        print(f"{title:<12}" + " ".join(f"{k}:{100 * c / len(legal):.1f}%" for k, c in counts))
    counts = Counter(op for dag in legal for op, *_ in dag)
    print("ops         " + " ".join(f"{op}:{100 * counts[op] / counts.total():.1f}%" for op in OPS))
    print("\nlegal canonical graphs by path length")
    total = 0
    for length in range(2, 15):
        exact = length <= 4
        mean, error = (count_legal(length), 0) if exact else estimate_legal(length, 2000, rng)
        total += mean
        print(f"  {length:<3}" + (f"{mean:,}" if exact else f"about {mean:.2g} +- {error:.1g}"), flush=True)
    layer = total + 7  # kernels
    print(f"a layer has about {layer:.1g} choices, 12 layers 10^{12 * math.log10(layer):.0f}; "
          "the paper: more than 10^20")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"{draws:,} random graphs, n = 128, d_h = 64, {dtype}: {count_failures(draws, rng, dtype)}", flush=True)


def describe(text):
    """Everything about one formula as text: its steps with their types and where tokens mix, legality, inputs, cost."""
    dag = parse(text)
    why, types = why_illegal(dag), slot_types(dag)[4:]
    lines = [f"formula  {formula(dag)}", "         n tokens, d channels of a head; Q, K, V and P are (n,d)"]
    for step, ((op, *args), type_, mixed) in enumerate(zip(dag, types, mixing(dag)), 1):
        call = f"{op}({', '.join(INPUTS[a] if a < 4 else f'step {a - 3}' for a in args)})"
        note = "<- over the tokens: they mix, padding is hidden" if mixed and type_ else ""
        lines.append(f"  step {step:<2} {_axes(type_) if type_ else '  ?  '}  {call:<24} {note}".rstrip())
    lines += [f"legal    {'no: ' + why if why else 'yes'}",
              f"inputs   {' '.join(used(dag))}   path length {len(dag)}"]
    if not why:
        lines.append(f"cost     {flops(dag, 128, 64):,} FLOPs a head at n = 128, d_h = 64")
    return "\n".join(lines)


def show_table():
    """Print Table 1, the published attentions, one of them step by step, and a few random ones."""
    print("Table 1: the ten primitives (n tokens, d head channels; x is (a,k))\n")
    for op, row in OPS.items():
        print(f"  {op:<11} {row.text.format('x', 'y'):<14} {row.type.__doc__}")
    print("\nBERT's attention and those of AutoBERT-Zero's even layers\n")
    for name, text in ATTENTIONS.items():
        print(f"  {name:<5} {text}")
    print(f"\nL2 step by step\n\n{describe(ATTENTIONS['L2'])}\n\nRandom legal ones, as a search begins with\n")
    for seed in range(4):
        print(f"  {formula(random_dag(random.Random(seed)))}")


def main(argv=None):
    """The command line: `python ops.py [FORMULA ...]`."""
    parser = argparse.ArgumentParser(description="Table 1's search space; or what a formula is, step by step.")
    parser.add_argument("formula", nargs="*", help='e.g. "softmax(scale(Q @ T(K))) @ V"; none: the table')
    parser.add_argument("--space", type=int, metavar="DRAWS", help="statistics of the space, slow")
    parser.error = lambda message: parser.exit(2, f"error: {message} (see --help)\n")
    args = parser.parse_args(argv)
    if args.space is not None and args.space < 100:
        parser.error(f"--space {args.space}: expected at least 100 draws")
    try:
        if args.space:
            show_space(args.space)
        elif args.formula:
            print("\n\n".join(map(describe, args.formula)))
        else:
            show_table()
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):  # `| head` has seen enough
        os._exit(130)
