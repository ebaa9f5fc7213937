"""The intra-layer search space: attention as a graph of primitive operations (paper Sec. 3.1, Table 1).

An attention head turns four projections of its input, Q, K, V and P, into an output by a graph (DAG) of primitive ops.

    dag    the genome: a tuple of nodes (op, in1[, in2]); slots 0..3 are Q K V P, node t fills slot 4 + t and the last
           is the output. BERT: (("transpose", 1), ("matmul", 0, 4), ("scale", 5), ("softmax", 6), ("matmul", 7, 2))
    type   what a value's two axes are, tokens "n" or head channels "d": "nd", "dn", "nn" or "dd"
    n, d   tokens, head size (d_h in the paper); B batch, H heads
    k      path length: the number of nodes; a node's position is its index in the canonical order

    python ops.py "softmax(scale(Q @ T(K))) @ V"    # step by step; without a formula the published attentions

Read this first; then data.py.
"""
import ast
import functools
import itertools
import math
import sys
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F

INPUTS = "QKVP"
MAX_LENGTH = 16  # CHOICE: the paper leaves the path length open; longer graphs are refused
LENGTHS = range(4, 15)  # CHOICE: a random graph's budget of nodes; BERT has 5, the published ones 7 to 11

# ---- The ten primitives (Table 1) ----
@dataclass(frozen=True)
class Op:
    """One row of Table 1. text: how it is written, with a {} for each operand.

    rule: the types it takes and gives, one letter an axis; equal letters must be equal axes.
    value(d_h, x[, y]): its tensor function on (..., rows, columns). flops(a, k, b): operations on x of (a, k) for a
    result of b columns. reduces: per operand the axis it sums or normalises over (None: none), where padding
    must be hidden, and where tokens mix if that axis is n. hide: what padding becomes there."""
    text: str
    rule: str
    value: callable
    flops: callable
    reduces: tuple = (None, None)
    hide: float = 0.0

    @functools.cache
    def type(self, *types):
        """The type of the result, None where the operands do not fit. Example: matmul of "nd", "dn" -> "nn" """
        # CHOICE: no sizes, no broadcasting. So the paper's "neg, add and multiplication" on scalars never occur
        operands, result = self.rule.replace(", ", "").split(" -> ")
        axes = {}
        fits = all(axes.setdefault(letter, axis) == axis for letter, axis in zip(operands, "".join(types)))
        return "".join(axes[letter] for letter in result) if fits else None

def cosine(d_h, x, y):
    """Cosine similarity of every row of x with every row of y."""
    x, y = (v * torch.rsqrt(v.square().sum(-1, keepdim=True) + 1e-6) for v in (x, y))
    return x @ y.mT

def distance(d_h, x, y):
    """Euclidean distance of every row of x to every row of y."""
    # |x - y|² = |x|² + |y|² - 2xy: no third axis for the channels
    square = x.square().sum(-1, keepdim=True) + y.square().sum(-1, keepdim=True).mT - 2 * (x @ y.mT)
    return torch.sqrt(square.clamp(min=0) + 1e-6)  # the root has no gradient at 0

OPS = {
    "neg": Op("-{}", "ak -> ak", lambda d, x: -x, lambda a, k, b: a * k),
    "transpose": Op("T({})", "ak -> ka", lambda d, x: x.mT, lambda a, k, b: 0),
    # CHOICE: always the head size, whatever x is: Table 1's d_x is √d_h in all the printed formulas
    "scale": Op("scale({})", "ak -> ak", lambda d, x: x / math.sqrt(d), lambda a, k, b: a * k),
    "softmax": Op("softmax({})", "ak -> ak", lambda d, x: x.softmax(-1), lambda a, k, b: 5 * a * k, (-1,), -math.inf),
    "logsigmoid": Op("logsigmoid({})", "ak -> ak", lambda d, x: F.logsigmoid(x), lambda a, k, b: 4 * a * k),
    "softsign": Op("softsign({})", "ak -> ak", lambda d, x: x / (1 + x.abs()), lambda a, k, b: 3 * a * k),
    "add": Op("{} + {}", "ak, ak -> ak", lambda d, x, y: x + y, lambda a, k, b: a * k),
    "matmul": Op("{} @ {}", "ak, kb -> ab", lambda d, x, y: x @ y, lambda a, k, b: 2 * a * k * b, (-1, -2)),
    "cos": Op("cos({}, {})", "ak, bk -> ab", cosine, lambda a, k, b: 2 * a * k * b + 3 * (a + b) * k, (-1, -1)),
    "dist": Op("dist({}, {})", "ak, bk -> ab", distance, lambda a, k, b: 2 * (a + b + a * b) * k + 4 * a * b, (-1, -1)),
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

    Types, formulas and canonical forms are this walk.
    Example: fold((("neg", 1),), [5, 7, 0, 0], lambda op, x: -x) -> [5, 7, 0, 0, -7]"""
    slots = list(leaves)
    for op, *args in dag:
        slots.append(step(op, *(slots[a] for a in args)))
    return slots

# ---- One graph, one form; its formula ----
def canonical(dag):
    """The same function in its one form: dead nodes pruned, equal subexpressions merged, arguments of add sorted (ops
    in Table 1's order, then inputs by letter), nodes in post-order from the output.
    Example: (("neg", 0), ("neg", 0), ("add", 1, 5)) -> (("neg", 0), ("add", 4, 1)), that is -Q + K"""
    ops, leaves = list(OPS), [(len(OPS), letter) for letter in INPUTS]
    unique = {}  # subtle: keyed by the operands' identity; a nested key would be hashed again and again
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
    return "".join(letter for slot, letter in enumerate(INPUTS) if any(slot in args for _, *args in dag))

def formula(dag):
    """The graph as text in Python's grammar; what is used twice has a name: "a = cos(Q, K); softmax(a) @ (a @ V)"."""
    reads = Counter(a for _, *args in dag for a in args)
    statements, slot, names = [], itertools.count(4), iter("abcdefghijklmnop")

    def write(op, *args):  # a text and how tightly it binds: 3 a name, call or minus, 2 a product, 1 a sum
        need = {"neg": (3,), "matmul": (2, 3), "add": (1, 2)}.get(op, (0, 0))
        text = OPS[op].text.format(*(t if bind >= least else f"({t})" for (t, bind), least in zip(args, need)))
        bind = {"matmul": 2, "add": 1}.get(op, 3)
        if reads[next(slot)] > 1:
            statements.append(f"{(name := next(names))} = {text}")
            text, bind = name, 3
        return text, bind

    return "; ".join(statements + [fold(dag, [(letter, 3) for letter in INPUTS], write)[-1][0]])

SYNTAX = {op.text.split("(")[0]: name for name, op in OPS.items() if "(" in op.text}
SYNTAX |= {ast.USub: "neg", ast.Add: "add", ast.MatMult: "matmul"}

@functools.lru_cache(4096)
def parse(text):
    """The canonical graph of a formula; ValueError if it is malformed. Wrong types parse; see why_illegal."""
    slots, nodes = {letter: i for i, letter in enumerate(INPUTS)}, []

    def read(node):
        match node:
            case ast.Name(name) if name in slots:
                return slots[name]
            case ast.BinOp(left, sign, right):
                op, args = SYNTAX.get(type(sign)), [left, right]
            case ast.UnaryOp(sign, operand):
                op, args = SYNTAX.get(type(sign)), [operand]
            case ast.Call(ast.Name(name), args, []):
                op = SYNTAX.get(name)
            case _:
                op = None
        if op is None or len(args) != OPS[op].text.count("{}"):
            raise ValueError(f"at {ast.unparse(node)[:60]!r}")
        nodes.append((op, *map(read, args)))
        return 3 + len(nodes)

    try:
        *named, last = ast.parse(text.strip()).body
        for statement in named:
            (target,) = statement.targets
            if target.id in slots or target.id in SYNTAX:
                raise ValueError(f"{target.id!r} has a meaning already")
            slots[target.id] = read(statement.value)
        if (output := read(last.value)) < 4:
            raise ValueError("a bare input is no formula")
    except (SyntaxError, RecursionError, AttributeError, ValueError) as error:
        forms = ", ".join(op.text.replace("{}", "x") for op in OPS.values())
        raise ValueError(f"formula {text[:120]!r}: {error}; expected {forms}, x being Q K V P or a name") from None
    return canonical(nodes[:output - 3])

# ---- Legality (Sec. 3.1) ----
@functools.cache
def slot_types(dag):
    """The type of every slot, inputs first; None for a node whose operands do not fit, and for all that reads it."""
    return fold(dag, ["nd"] * 4, lambda op, *types: None if None in types else OPS[op].type(*types))

def mixing(dag):
    """Of every node whether it sums or normalises over the tokens: there, and only there, tokens mix."""
    types = slot_types(dag)
    return [any(axis and types[a] and types[a][axis] == "n" for a, axis in zip(args, OPS[op].reduces))
            for op, *args in dag]

def why_illegal(dag, require_mixing=True):
    """None for a legal graph, else the reason in words.

    Legal: every node well typed (by types, never by sizes: with n == d_h a wrong graph would pass), output nd, 2 to 4
    inputs, at most MAX_LENGTH nodes. CHOICE: some node mixes tokens, unless require_mixing is False."""
    if not 1 <= len(dag) <= MAX_LENGTH:
        return f"{len(dag)} ops; expected 1 to {MAX_LENGTH}"
    types = slot_types(dag)
    if None in types:
        step = types.index(None) - 3
        op, *args = dag[step - 1]
        return f"step {step}: {op} does not take {' and '.join(types[a] for a in args)}"
    if types[-1] != "nd":
        return f"the output is {types[-1]}; expected nd"
    if len(used(canonical(dag))) < 2:
        return f"reads only {used(canonical(dag))}; expected 2 to 4 distinct inputs"
    return "no op mixes tokens" if require_mixing and not any(mixing(canonical(dag))) else None

# ---- What it computes, what it costs ----
@functools.cache
def attention_in(dag):
    """(A, Y, C, slots inside) if the output is softmax(scale(A @ Y)) @ C, one call of torch's
    scaled_dot_product_attention. Example: BERT's -> (0, 4, 2, {5, 6, 7, 8})"""
    slot, others, inside = 3 + len(dag), [], []
    for op in ("matmul", "softmax", "scale", "matmul"):  # from the output along the first operands
        if slot < 4 or dag[slot - 4][0] != op or sum(slot in args for _, *args in dag) > 1:
            return None
        inside.append(slot)
        slot, *rest = dag[slot - 4][1:]
        others += rest
    return (slot, *reversed(others), set(inside)) if slot_types(dag)[others[1]] == "dn" else None

def evaluate(dag, inputs, mask=None, dropout=0.0, fused=False):
    """The output of a legal graph: (B, H, n, d_h).
    inputs: Q, K, V, P, each (B, H, n, d_h), or None if not read. mask: (B, n) bool, True = a
    real token; padding then never reaches one, whatever the graph. dropout: of each softmax of type (n, n).
    fused: the same function, by scaled_dot_product_attention where the graph ends in one."""
    d_h, types, values = next(x for x in inputs if x is not None).shape[-1], slot_types(dag), list(inputs)
    padding = {}  # by axis
    if mask is not None:  # a sequence with no real token counts as all real, or its softmax would be 0/0
        hide = ~mask & mask.any(-1, keepdim=True)  # (B, n)
        padding = {-1: hide[:, None, None, :], -2: hide[:, None, :, None]}

    def hidden(slot, axis, fill):  # an operand without padding where its op reduces over tokens, and only there
        # a mask in the softmax alone leaks in nearly every other graph; filled, not multiplied: inf * 0 is nan
        if axis in padding and types[slot][axis] == "n":
            return values[slot].masked_fill(padding[axis], fill)
        return values[slot]

    a, y, c, inside = fused and attention_in(dag) or (0, 0, 0, ())
    for slot, (op, *args) in enumerate(dag, 4):
        x = None
        if slot not in inside:
            x = OPS[op].value(d_h, *(hidden(a, axis, OPS[op].hide) for a, axis in zip(args, OPS[op].reduces)))
            x = F.dropout(x, dropout) if op == "softmax" and types[slot] == "nn" else x
        values.append(x)
    if inside:
        keep = ~padding[-1] if padding else None
        return F.scaled_dot_product_attention(values[a], values[y].mT, hidden(c, -2, 0.0), keep, dropout)
    return values[-1]

def flops(dag, n, d_h):
    """Floating-point operations of one head on one sequence of n tokens; a multiply-add counts as two."""
    size, types = {"n": n, "d": d_h}, slot_types(dag)
    return sum(OPS[op].flops(size[types[x][0]], size[types[x][1]], size[out[1]])
               for (op, x, *_), out in zip(dag, types[4:]))

# ---- Random graphs ----
def operands(rng, op, slots, open_, fresh, least, goal):
    """Operands for `op` among typed slots, at least `least` of them open nodes, result of type `goal` (None: any)."""
    # CHOICE: prefer what nothing has read yet; damp x + x, cos(x, x), dist(x, x) and a second dist: they always fit
    weight = {a: 8 if a in open_ else 3 if a in fresh else 1 for a in slots}
    choices = {}
    for args in itertools.product(slots, repeat=OPS[op].text.count("{}")):
        type_ = OPS[op].type(*(slots[a] for a in args))
        if type_ and goal in (None, type_) and len(open_.intersection(args)) >= least:
            alike = op in ("add", "cos", "dist") and args[0] == args[1]
            choices[args] = math.prod(weight[a] for a in args) * (0.03 if alike else 1)
    return rng.choices(list(choices), list(choices.values()))[0] if choices else None

def draw(rng, weights=None):
    """One raw draw, canonical but perhaps illegal: a graph grown forward, type- and goal-directed.
    rng: random.Random. weights(position) -> {op: weight} at that position of the path; None: uniform."""
    length, inputs = rng.choice(LENGTHS), rng.sample(range(4), rng.choice((2, 3, 4)))
    slots, open_, fresh, dag = {a: "nd" for a in inputs}, set(), set(inputs), []
    for left in reversed(range(length)):  # nodes still to come after this one
        least, goal = len(open_) - left, None if left else "nd"  # every open node must still find a reader
        weight = dict(weights(len(dag))) if weights else dict.fromkeys(OPS, 1.0)
        weight["dist"] *= 0.3 ** sum(op == "dist" for op, *_ in dag)
        for op in sorted(OPS, key=lambda op: rng.expovariate(weight[op] or 1e-300)):  # drawn by weight
            if args := operands(rng, op, slots, open_, fresh, least, goal):
                break
        else:
            break
        dag.append((op, *args))
        slots[3 + len(dag)] = OPS[op].type(*(slots[a] for a in args))
        open_ = open_.difference(args) | {3 + len(dag)}
        fresh.difference_update(args)
    return canonical(dag)

def random_dag(rng):
    """A legal random graph, by drawing again until one is."""
    while why_illegal(dag := draw(rng)):
        pass
    return dag

# ---- To look at ----
def describe(text):
    """A formula's steps with their types and where tokens mix, legality, inputs, cost, as text."""
    dag = parse(text)
    why, types = why_illegal(dag), slot_types(dag)[4:]
    lines = [f"formula  {formula(dag)}", "types    n tokens, d channels of a head; Q, K, V and P are nd"]
    for step, ((op, *args), type_, mixed) in enumerate(zip(dag, types, mixing(dag)), 1):
        call = f"{op}({', '.join(INPUTS[a] if a < 4 else f'step {a - 3}' for a in args)})"
        note = "<- over the tokens: they mix, padding is hidden" if mixed and type_ else ""
        lines.append(f"  step {step:<2} {type_ or '??'}  {call:<24} {note}".rstrip())
    lines += [f"legal    {'no: ' + why if why else 'yes'}", f"inputs   {' '.join(used(dag))}   path length {len(dag)}"]
    if not why:
        lines.append(f"cost     {flops(dag, 128, 64):,} FLOPs a head at n = 128, d_h = 64")
    return "\n".join(lines)

def main(*formulas):
    """Describe formulas; without one the published attentions."""
    if "--help" in formulas:
        return print(__doc__)
    try:
        print("\n\n".join(map(describe, formulas or ATTENTIONS.values())))
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)

if __name__ == "__main__":
    main(*sys.argv[1:])
