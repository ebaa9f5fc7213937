"""How large is the search space, and how do random draws spread in it?

The paper (Sec. 3.1) says "more than 10^20 possible combinations". Here the legal attention graphs are counted, up to 4
nodes one by one, beyond that by an unbiased estimate. About three minutes:

    python studies/space.py --draws 10000
"""
import functools
import itertools
import math
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import ops  # noqa: E402
from ops import OPS  # noqa: E402

class Expressions:
    """Numbers for all expressions met so far; 0 to 3 are Q, K, V and P. A graph is the set of its nodes' numbers."""

    def __init__(self):
        self.number, self.type, self.args = {}, ["nd"] * 4, [()] * 4
        self.reads, self.mixes = [{i} for i in range(4)], [False] * 4

    def intern(self, op, args):
        """The number of an expression, None if it is ill typed."""
        type_ = OPS[op].type(*(self.type[a] for a in args))
        if type_ and (op, args) not in self.number:
            self.number[op, args] = len(self.type)
            self.mixes.append(any(self.mixes[a] or axis and self.type[a][axis] == "n"
                                  for a, axis in zip(args, OPS[op].reduces)))
            self.type.append(type_)
            self.args.append(args)
            self.reads.append(set().union(*(self.reads[a] for a in args)))
        return self.number.get((op, args))

    def sinks(self, graph):
        """The nodes that no node reads."""
        return graph.difference(*(self.args[x] for x in graph))

    def steps(self, graph, left):
        """What may be added to a graph if `left` more follow and all shall lead to one legal output."""
        sinks = self.sinks(graph)
        for op, row in OPS.items():
            for args in itertools.product([0, 1, 2, 3, *graph], repeat=row.text.count("{}")):
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

    A sample weighs as much as there were choices on its way, divided by the number of ways to the same graph."""
    space, weights = Expressions(), []

    @functools.cache
    def ways(graph):
        fits = len(space.sinks(graph)) <= 1 + length - len(graph)
        return fits and (sum(ways(graph - {x}) for x in space.sinks(graph)) if graph else 1)

    for _ in range(samples):
        graph, weight = frozenset(), 1
        for left in reversed(range(length)):
            choices = list(space.steps(graph, left))
            weight *= len(choices)
            graph |= {rng.choice(choices)} if choices else set()
        weights.append(weight / ways(graph) if weight else 0)
    return statistics.fmean(weights), statistics.stdev(weights) / math.sqrt(samples)

def shares(counts):
    """Counts in per cent of their sum, as text."""
    return " ".join(f"{key}:{100 * count / counts.total():.1f}%" for key, count in sorted(counts.items()))

def space(draws: int = 10_000, seed: int = 0):
    """How large is the search space of attentions, and how do random draws spread in it? About three minutes.

    draws: random graphs
    seed: of all that is random"""
    rng = random.Random(seed)
    legal = [dag for dag in (ops.draw(rng) for _ in range(draws)) if not ops.why_illegal(dag, require_mixing=False)]
    mixing = sum(any(ops.mixing(dag)) for dag in legal)
    print(f"of {draws:,} draws {len(legal) / draws:.1%} are legal, of these {mixing / len(legal):.1%} mix tokens\n"
          f"path length {shares(Counter(map(len, legal)))}\n"
          f"inputs      {shares(Counter(len(ops.used(dag)) for dag in legal))}\n"
          f"ops         {shares(Counter(op for dag in legal for op, *_ in dag))}\n\n"
          "legal graphs that mix tokens, by path length")
    total = 7  # kernels
    for length in range(2, 15):
        mean, error = (count_legal(length), 0) if length < 5 else estimate_legal(length, 2000, rng)
        total += mean
        print(f"  {length:<3}" + (f"about {mean:.2g} +- {error:.1g}" if error else f"{mean:,}"), flush=True)
    print(f"a layer has {total:.1g} choices, 12 layers 10^{12 * math.log10(total):.0f}; the paper: more than 10^20")

if __name__ == "__main__":
    data.run(__doc__, space, usual=space)
