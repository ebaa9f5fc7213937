"""The specification as tests, in the order of the files, then whole runs, command lines and README.

Every hand-written part has an oracle that shares no code with it: torch's own modules, a naive loop, numbers worked
by hand, Python's own grammar, and `numpy_model`, the whole model in NumPy alone. Run: python -m pytest -q test_all.py
"""
import ast
import gc
import gzip
import itertools
import lzma
import math
import random
import re
import sys
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import autobert
import data
import glue
import opnas
import ops
import supernet

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
TINY = autobert.ModelConfig(2, 16, 2, 16, vocab=50, positions=40, dropout=0.0, init_std=0.2)
BERT = ops.ATTENTIONS["bert"]
CPU = torch.device("cpu")

def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """The first 60 documents of the toy text, as a file."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join((HERE / "toy/corpus.txt").read_text().split("\n\n")[:60]) + "\n")
    return path

@pytest.fixture(scope="session")
def corpus(text):
    """The same, prepared for training."""
    data.prepare((str(text),), str(text.with_name("corpus")), 300)
    return data.Corpus(text.with_name("corpus"))

@pytest.fixture(scope="session")
def tokenizer(corpus):
    return corpus.tokenizer

# ---- ops.py: the ten primitives (Table 1) ----
def test_every_op_computes_its_definition():
    x, y = gaussian(2, 3, 5, 4).double(), gaussian(2, 3, 5, 4, seed=1).double()
    a, b = x.numpy(), y.numpy()
    rows_a, rows_b, norm = a[..., :, None, :], b[..., None, :, :], lambda v: np.sqrt((v * v).sum(-1) + 1e-6)
    one = {"neg": -a, "transpose": np.swapaxes(a, -1, -2), "scale": a / math.sqrt(7), "softsign": a / (1 + np.abs(a)),
           "softmax": np.exp(a) / np.exp(a).sum(-1, keepdims=True), "logsigmoid": np.log(1 / (1 + np.exp(-a)))}
    two = {"add": a + b, "matmul": np.einsum("...ik,...kj->...ij", a, np.swapaxes(b, -1, -2)),
           "cos": (rows_a * rows_b).sum(-1) / (norm(rows_a) * norm(rows_b)),
           "dist": np.sqrt(((rows_a - rows_b) ** 2).sum(-1) + 1e-6)}
    assert set(ops.OPS) == {*one, *two}
    for op, expected in {**one, **two}.items():
        ours = ops.OPS[op].value(7, *([x] if op in one else [x, y.mT] if op == "matmul" else [x, y]))  # d_h = 7
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-7, atol=1e-7, err_msg=op)

def test_type_rules():
    for op, rules in {"neg": "dn=dn", "transpose": "nd=dn nn=nn", "softmax": "dd=dd", "add": "nd,nd=nd nd,dn= nn,dd=",
                      "matmul": "nd,dn=nn dn,nd=dd nd,nd= nn,nd=nd", "cos": "nd,nd=nn nd,dd=nd nd,dn=",
                      "dist": "dn,nn=dn nn,dn=nd"}.items():
        for operands, result in (rule.split("=") for rule in rules.split()):
            assert ops.OPS[op].type(*operands.split(",")) == (result or None), (op, operands)

@pytest.mark.parametrize("graph, reason", [
    ("Q @ K", "step 1: matmul"), ("T(K) + Q", "step 2: add"), ("Q @ T(K)", "output"), ("cos(Q, Q) @ Q", "only Q"),
    ("cos(Q, T(T(V) @ Q)) @ Q", "matmul does not take"), ("Q + softsign(K)", "no op mixes tokens"),
    ("softmax(Q) + K", "no op mixes tokens"), ("Q + " * 17 + "K @ (T(K) @ K)", "ops; expected 1 to 16")])
def test_every_illegal_graph_has_its_reason(graph, reason):
    dag = ops.parse(graph)
    assert reason in ops.why_illegal(dag)
    assert (ops.why_illegal(dag, require_mixing=False) is None) == ("mixes" in reason)

def test_published_attentions_are_their_equations_with_and_without_padding():
    """Written out by hand; L2 and L12 as the paper prints them, log(1 + e^x) and all."""
    (q, k, v, _), mask = gaussian(4, 4, 2, 7, 4), torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    half, sign, log1pexp = k / 2, lambda x: x / (1 + x.abs()), lambda x: torch.log(1 + torch.exp(x))  # √d_h = 2
    key_and_value = {  # in the place of BERT's K and V
        "bert": (k, v), "L2": (log1pexp(k), k + q), "L6": (log1pexp(-k), q), "L8": (log1pexp(-k), q),
        "L4": (log1pexp(-(torch.log(1 / (1 + torch.exp(-q))) + (k + q))), q),
        "L10": (half + (sign(sign(k) / 2) + v), v), "L12": (half + v, v)}
    for name, formula in ops.ATTENTIONS.items():
        dag = ops.parse(formula)
        assert ops.why_illegal(dag) is None and ops.formula(dag) == formula
        for real, keep in ((None, None), (mask, mask[:, None, None])):
            theirs = F.scaled_dot_product_attention(q, *key_and_value[name], attn_mask=keep)
            torch.testing.assert_close(ops.evaluate(dag, (q, k, v, None), real), theirs)

# ---- ops.py: one graph, one form, one notation ----
def test_canonical_form_prunes_merges_and_sorts_and_a_shared_node_is_named_once():
    assert ops.canonical((("neg", 0), ("softmax", 3), ("neg", 0), ("add", 1, 6))) == (("neg", 0), ("add", 4, 1))
    assert ops.parse("Q + K") == ops.parse("K + Q") == (("add", 1, 0),)
    assert ops.parse("(-Q) @ (T(-Q) @ K)") == ops.parse("a = -Q; a @ (T(a) @ K)")
    assert ops.parse("Q @ (T(K) @ V)") != ops.parse("(Q @ T(K)) @ V")
    assert ops.parse(BERT) == (("transpose", 1), ("matmul", 0, 4), ("scale", 5), ("softmax", 6), ("matmul", 7, 2))
    shared = "a = softsign(K); softmax(Q @ T(a)) @ (a + V)"
    assert ops.formula(ops.parse(shared)) == shared
    doubled = "".join(f"{y} = {x} + {x}; " for x, y in itertools.pairwise("abcdefghijklmnop"))  # 2^15 ops written out
    assert len(dag := ops.parse(f"a = Q + K; {doubled}p")) == 16 and ops.parse(ops.formula(dag)) == dag

def row_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

def python_formula(text, inputs, d_h):
    """A formula's value by Python's own grammar and NumPy; inputs: letter -> (n, d_h) array."""
    unit = lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    space = {"T": lambda x: x.T, "scale": lambda x: x / math.sqrt(d_h), "softsign": lambda x: x / (1 + np.abs(x)),
             "logsigmoid": lambda x: -np.logaddexp(0, -x), "softmax": row_softmax,
             "cos": lambda x, y: unit(x) @ unit(y).T,
             "dist": lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1) + 1e-6), **inputs}
    *statements, output = text.split("; ")
    for statement in statements:
        exec(statement, space)
    return eval(output, space)

def test_a_formula_means_what_python_computes_and_reads_back():
    """Python's own eval of the text, on matrices, is the oracle of parser and printer."""
    rng, inputs = random.Random(2), gaussian(4, 1, 1, 6, 4).double()
    for _ in range(300):
        dag = ops.random_dag(rng)
        assert ops.why_illegal(dag) is None and ops.parse(ops.formula(dag)) == ops.canonical(dag) == dag
        theirs = python_formula(ops.formula(dag), {x: v[0, 0].numpy() for x, v in zip("QKVP", inputs)}, 4)
        np.testing.assert_allclose(ops.evaluate(dag, list(inputs))[0, 0].numpy(), theirs, rtol=1e-6, atol=1e-6,
                                   err_msg=ops.formula(dag))

@pytest.mark.parametrize("formula", ["", "Q", "foo(Q) @ K", "Q * K", "T(Q, K)", "a = -Q; a = -K; a", "Q = K; Q @ T(K)",
                                     "(" * 300 + "Q" + ")" * 300])
def test_malformed_text_raises_one_clear_error(formula):
    with pytest.raises(ValueError, match="formula"):
        ops.parse(formula)

# ---- ops.py: what a graph computes ----
def test_dropout_falls_on_softmaxes_of_type_nn_only():
    x, one = gaussian(1, 1, 60, 60), torch.eye(60)[None, None]  # V = 1: the output are the weights, Q = 0: all alike
    weights = ops.evaluate(ops.parse("softmax(Q @ T(K)) @ V"), (0 * x, x, one, None), dropout=0.3)
    assert set(weights.mul(60 * 0.7).round(decimals=4).unique().tolist()) == {0.0, 1.0}
    assert (weights == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)  # five standard errors
    dag = ops.parse("Q @ (T(K) @ softmax(V)) @ softmax(T(K) @ Q)")  # of types (n,d) and (d,d)
    assert torch.equal(ops.evaluate(dag, (x, x, x, None), dropout=0.9), ops.evaluate(dag, (x, x, x, None)))

@pytest.mark.parametrize("n, d_h", [(6, 4), (4, 4)])  # n == d_h: types must be symbolic
def test_padding_never_changes_real_tokens(n, d_h):
    """Three real tokens alone, and before n - 3 padded positions of any content, for random legal graphs."""
    rng, leaks, mask = random.Random(n), 0, torch.arange(n).expand(2, n) < 3
    for trial in range(300):
        dag, alone = ops.random_dag(rng), gaussian(4, 2, 2, 3, d_h, seed=trial).double()
        content = 9 * gaussian(4, 2, 2, n - 3, d_h, seed=trial + 1).double() / min(1, trial % 3)  # a third is infinite
        padded = torch.cat([alone, content], -2)
        expected, ours = ops.evaluate(dag, list(alone)), ops.evaluate(dag, list(padded), mask)[..., :3, :]
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, msg=ops.formula(dag))
        if not any(op == "softmax" for op, *_ in dag):  # there a mask in the softmax alone would do nothing
            leaks += not torch.allclose(ops.evaluate(dag, list(padded))[..., :3, :], expected)
    assert leaks > 50

def test_a_row_without_a_real_token_stays_finite_gradients_too():  # it counts as all real
    rng = random.Random(5)
    for dag in [ops.parse("dist(Q, Q) @ K"), *(ops.random_dag(rng) for _ in range(60))]:  # dist: a root at 0
        x = gaussian(4, 2, 1, 5, 3).requires_grad_()
        y = ops.evaluate(dag, list(x), torch.tensor([[True] * 5, [False] * 5]))
        y.sum().backward()
        assert torch.isfinite(x.grad).all() and torch.allclose(y[1], ops.evaluate(dag, list(x))[1], 1e-4)

def test_fused_attention_is_the_plain_one_gradients_too(monkeypatch):
    calls, real, rng = [], F.scaled_dot_product_attention, random.Random(11)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    dags = [*ops.ATTENTIONS.values(), "a = softmax(scale(Q @ T(K))); a @ (a @ V)",  # the last is not over tokens
            "a = T(K) @ V; softmax(scale(Q @ a)) @ a", *(ops.formula(ops.random_dag(rng)) for _ in range(20))]
    for dag, mask in itertools.product(map(ops.parse, dags), (None, torch.arange(6) < torch.tensor([[6], [2], [0]]))):
        results = []
        for fused in (False, True):
            x = [v.requires_grad_() for v in gaussian(4, 3, 2, 6, 4)]
            y = ops.evaluate(dag, x, mask, fused=fused)
            y.sum().backward()
            results.append([y, *(v.grad for v in x if v.grad is not None)])
        for plain, fused in zip(*results):
            torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5 * max(1, plain.abs().max().item()))
    assert len(calls) >= 2 * len(ops.ATTENTIONS)  # the published ones at least take it

def test_a_graph_leaves_no_tensor_behind():
    """Neither inputs nor values wait for the garbage collector: they would fill a GPU."""
    x = list(gaussian(4, 1, 1, 5, 3))
    held = [weakref.ref(v) for v in x]
    gc.disable()
    ops.evaluate(ops.parse(BERT), x, torch.ones(1, 5, dtype=torch.bool))
    del x
    left = [ref() for ref in held]
    gc.enable()
    assert left == [None] * 4

# ---- ops.py: random graphs ----
def test_random_draws_reach_the_whole_space_are_mostly_legal_and_follow_weights():
    draws = [ops.draw(random.Random(i)) for i in range(600)]
    legal = [dag for dag in draws if ops.why_illegal(dag, require_mixing=False) is None]
    mixing = sum(ops.why_illegal(dag) is None for dag in legal)
    assert len(legal) >= 0.4 * len(draws) and mixing >= 0.8 * len(legal)
    assert {len(dag) for dag in legal} >= set(range(4, 15)) and max(map(len, legal)) <= 14
    assert {len({a for _, *args in dag for a in args if a < 4}) for dag in legal} == {2, 3, 4}
    repeated = sum(any(op in ("add", "cos", "dist") and a[0] == a[1] for op, *a in dag) for dag in legal)
    counts = Counter(op for dag in draws for op, *_ in dag)
    assert repeated < 0.15 * len(legal) and set(counts) == set(ops.OPS)
    weights = {op: 50.0 if op == "softsign" else 1.0 for op in ops.OPS}
    heavy = [ops.draw(random.Random(i), lambda position: weights) for i in range(100)]
    assert sum(op == "softsign" for dag in heavy for op, *_ in dag) > 2 * counts["softsign"] / 6

# ---- data.py: files, documents, tokenizer ----
def test_documents_are_read_plain_or_packed_with_any_blank_lines(tmp_path):
    content = "\ufeff\n\nOne two.\r\nThree\u2028four.\n\n\n  \nFive.\n".encode()
    for name, packed in (("a", content), ("a.gz", gzip.compress(content)), ("a.xz", lzma.compress(content))):
        (tmp_path / name).write_bytes(packed)
        assert list(data.read_documents([tmp_path / name])) == [["One two.", "Three\u2028four."], ["Five."]]

def test_the_tokenizer_is_the_same_every_time_and_text_never_becomes_a_special_piece(text, tokenizer):
    assert data.Tokenizer.train([text], 300).proto == tokenizer.proto and tokenizer.vocab_size == 300
    assert tokenizer.pieces(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert not {data.PAD, data.CLS, data.SEP, data.MASK} & set(tokenizer.encode("A [MASK] <pad> [SEP] [CLS]"))
    assert tokenizer.encode("THE HENS") == tokenizer.encode("the hens")  # case-folded

PARTS = [*"éＡ１猫ßİŉẞ½㎏Ⅷﷺ한…™ﬁﬄﾞ▁$.a\u0301\t\u00a0\u200b\u3000\u2028\ufeff\u200d\x01    ", "e\u0301", "o\u0323\u0302",
         "カ゛", "ｶﾞ", "日本", "\u1112\u1161\u11ab", "👩\u200d🚀", "👍🏽", "❤\ufe0f", "🇩🇪", "10", "the", "The", "hens"]

def test_offsets_never_shift_a_character(tokenizer):
    """Any mixture of scripts, marks, blanks and emoji: spans in order, over all that is visible, and nothing else."""
    rng, normal = random.Random(0), sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto).normalize
    for _ in range(1500):
        words = "".join(rng.choices(PARTS, k=rng.randint(1, 12)))
        ids, spans = tokenizer.encode_with_offsets(words)
        assert ids == tokenizer.encode(words) and spans == sorted(spans, key=lambda span: span[1]) == sorted(spans)
        hidden = set(range(len(words))).difference(*(range(a, b) for a, b in spans))
        assert all(words[i].isspace() or not normal(words[i]) for i in hidden), ascii(words)
        for (a, b), piece in zip(spans, tokenizer.pieces(ids)):
            assert a < b <= len(words) or piece == "▁", ascii(words)
            shown = normal(words[a:b]).strip("▁ ")  # subtle: one character may become several pieces
            assert piece in ("<unk>", "▁" + shown, shown) or any(len(normal(x)) > 2 for x in words[a:b + 2])

def test_a_prepared_corpus_reads_back(tmp_path):
    texts = [["The hens feed.", "A goat."], ["The boats."], ["The cook bakes a pie."], ["A song."]]
    (tmp_path / "a.txt").write_text("The hens feed.\n\u200b\nA goat.\n\n\n\u200b\n\nThe boats.\n")  # \u200b: no token
    (tmp_path / "b.txt").write_text("The cook bakes a pie.\n\nA song.\n\n")
    data.prepare([str(tmp_path / f"{x}.txt") for x in "ab"], str(tmp_path / "c"), 40)
    found = data.Corpus(tmp_path / "c")
    documents = [[found.tokens[found.sentences[s]:found.sentences[s + 1]].tolist() for s in range(first, last)]
                 for first, last in itertools.pairwise(found.documents)]
    assert documents == [[found.tokenizer.encode(line) for line in lines] for lines in texts] and len(found) == 4

# ---- data.py: pairs, masks, batches ----
def corpus_of(documents):
    """The Corpus of lists of lists of ids."""
    corpus, sentences = data.Corpus.__new__(data.Corpus), [ids for document in documents for ids in document]
    corpus.tokens = np.array([x for ids in sentences for x in ids], np.int32)
    corpus.sentences = np.cumsum([0] + [len(ids) for ids in sentences])
    corpus.documents = np.cumsum([0] + [len(document) for document in documents])
    corpus.tokenizer = SimpleNamespace(vocab_size=90_000)
    return corpus

def test_held_out_documents_are_no_training_documents():
    for count in (4, 5, 40, 100):
        train, held = (part.tolist() for part in data.split_held_out(corpus_of([[[5]]] * count)))
        assert sorted(train + held) == list(range(count)) and min(len(train), len(held)) >= 2
        assert count < 100 or held == [10, 30, 50, 70, 90]

def test_packing_cuts_the_longer_side_at_its_end_or_front_and_back_by_a_coin():
    assert data.pack([10, 11, 12], None, 4)[0].tolist() == [data.CLS, 10, 11, data.SEP]
    fronts = []
    for size_a, size_b, seed in itertools.product((3, 9, 30), (1, 8, 29), range(40)):
        a, b = [*range(100, 100 + size_a)], [*range(200, 200 + size_b)]
        ids, segments = data.pack(a, b, 16, np.random.default_rng(seed) if seed else None)
        while len(a) + len(b) > 13:
            (a if len(a) > len(b) else b).pop()
        front, back = ids[1] - 100, ids[len(a) + 2] - 200
        assert ids.tolist() == [data.CLS, *(x + front for x in a), data.SEP, *(x + back for x in b), data.SEP]
        assert segments.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert seed or front == back == 0
        fronts += [front] * (size_a == 30 and size_b == 29 and seed > 0)
    assert abs(np.mean(fronts) - 12) < 2 and 2 < np.var(fronts) < 14  # a binomial number: 24 tokens were cut

def test_pairs_are_cut_from_documents_as_berts():
    """The rules of BERT's own script, checked pair by pair, for sentences and documents of any length."""
    rng = random.Random(0)
    corpus = corpus_of([[[5] * rng.choice((1, 2, 7, 12, 40)) for _ in range(rng.randint(1, 12))] for _ in range(30)])
    tokens = lambda first, last: corpus.sentences[last] - corpus.sentences[first]  # noqa: E731
    documents, full, labels = list(range(0, 30, 2)), [], []
    for n, seed in itertools.product((8, 24, 64), range(20)):
        place = {i: corpus.documents[i] for i in documents}
        for a, a_end, b, b_end, label in data.make_pairs(corpus, np.array(documents), n, random.Random(seed)):
            own, other = np.searchsorted(corpus.documents, (a, b), side="right") - 1
            assert a == place[own] < a_end <= corpus.documents[own + 1] and b < b_end <= corpus.documents[other + 1]
            assert label == 0 and own == other and b == a_end or label == 1 and own != other and other in place
            place[own] = a_end if label else b_end  # sentences that b replaced are put back
            room = n - 3 - tokens(a, a_end)
            assert tokens(a, a_end - 1) < n - 3 and tokens(b, b_end - 1) < max(1, room)  # no sentence more than needed
            if n == 64:
                full.append(b_end == corpus.documents[other + 1] or tokens(b, b_end) >= room)
                labels += [label] if a_end < corpus.documents[own + 1] else []  # the last sentence has no choice
        assert all(place[i] == corpus.documents[i + 1] for i in documents)  # every document to its end
    assert 0.93 < np.mean(full) < 0.99 and abs(np.mean(labels) - 0.5) < 0.06  # CHOICE: one in ten is cut short

def test_masking_is_80_10_10_of_15_percent_and_never_special():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, (4000, 40))
    ids[:, [0, 21, 38, 39]] = data.CLS, data.SEP, data.SEP, data.PAD
    masked, positions, targets = data.mask_tokens(ids, 1000, rng, 20)
    rows, columns = np.nonzero(targets != data.IGNORED)[0], positions[targets != data.IGNORED]
    old, now = ids[rows, columns], masked[rows, columns]
    assert np.array_equal(np.bincount(rows), np.full(4000, 6)) and len({*zip(rows, columns)}) == 24_000  # 6 = .15 * 39
    assert np.array_equal(old, targets[targets != data.IGNORED]) and old.min() >= 5 and now.min() >= data.MASK
    masked[rows, columns] = old
    assert np.array_equal(masked, ids)  # nothing else was touched
    swapped = now[(now != data.MASK) & (now != old)]
    shares = [np.mean(now == data.MASK), len(swapped) / len(now), np.mean(now == old)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.008)
    assert swapped.min() < 20 and swapped.max() > 985 and abs(np.mean(swapped) - 502) < 25  # 995 ordinary tokens
    assert sum((np.bincount(columns)[ids[0, :38] >= 5] - 24_000 / 36) ** 2) * 36 / 24_000 < 75  # chi-square, 35 degrees
    for length, count in ((3, 0), (4, 1), (10, 2), (30, 4), (50, 8), (512, 20)):  # round(.15 * length), 4.5 is 4; <= 20
        ids = np.array([[data.CLS, data.SEP, *range(5, 2 + length), data.SEP] + [data.PAD] * (600 - length)])
        assert (data.mask_tokens(ids, 600, rng, 20)[2] != data.IGNORED).sum() == count

def test_a_batch_is_a_function_of_seed_and_step_and_its_rows_are_packed_pairs():
    corpus = corpus_of([[[1000 * (i + 1) + 5 * s + t for t in range(5)] for s in range(6)] for i in range(40)])
    one, two, other = (data.PretrainingData(corpus, np.arange(40), 32, 4, seed) for seed in (3, 3, 4))
    steps, starts = [2 * one.steps_per_epoch + 1, *range(one.steps_per_epoch)], set()  # another epoch comes first
    for batch, again in zip([one.batch(step) for step in steps], [two.batch(step) for step in reversed(steps)][::-1]):
        assert all(np.array_equal(batch[key], again[key]) and len(batch[key]) == 4 for key in batch)
        used = batch["targets"] != data.IGNORED
        batch["ids"][np.nonzero(used)[0], batch["positions"][used]] = batch["targets"][used]  # as before masking
        for row in range(4):
            ids, real = batch["ids"][row], batch["mask"][row].sum()
            middle = ids.tolist().index(data.SEP)
            a, b = ids[1:middle], ids[middle + 1:real - 1]
            packed = data.collate([data.pack(a, b, 32)], 32)
            assert all(np.array_equal(packed[key][0], batch[key][row]) for key in packed)
            assert {*np.diff(a), *np.diff(b)} <= {1} and batch["next"][row] == (a[0] // 1000 != b[0] // 1000)
            starts.add(a[0] // 1000)
    assert starts == {*range(1, 41)} and not np.array_equal(one.batch(0)["ids"], other.batch(0)["ids"])
    assert one.batch(0)["positions"].shape == (4, 6) and one.batch(0)["mask"].dtype == bool  # round(0.15 * 32) + 1

# ---- autobert.py: backbones and layers ----
def new_model(config, genes, noise=0.0, chained=False):
    """A model from seed 0; noise on all its weights: then no bias is 0 and no gain 1. chained: one of a super-net."""
    torch.manual_seed(0)
    model = supernet.SuperNet(config).child(genes) if chained else autobert.Pretraining(config, genes)
    for name, p in model.named_parameters():
        p.data += noise * gaussian(*p.shape, seed=len(name) + p.numel())
    return model

def test_published_backbones_are_fig_7_and_table_5_and_large_repeats_pairs(tmp_path):
    zero, attentions = autobert.BACKBONES["autobert-zero"], [ops.ATTENTIONS[f"L{i}"] for i in (2, 4, 6, 8, 10, 12)]
    convolutions = [f"conv {kernel}" for kernel in (65, 9, 3, 7, 7, 3)]
    assert zero == tuple(gene for pair in zip(convolutions, attentions) for gene in pair)
    assert autobert.BACKBONES["att-only"] == tuple(gene for gene in attentions for _ in "12")
    assert autobert.BACKBONES["conv-only"] == tuple(gene for gene in convolutions for _ in "12")
    assert autobert.BACKBONES["bert"] == (BERT,) * 12 and autobert.to_large((1, 2, 3, 4)) == (1, 2, 1, 2, 3, 4, 3, 4)
    assert autobert.load_backbone("autobert-zero", 4) == zero[:2] + zero[10:]  # CHOICE: pairs taken evenly
    autobert.save_backbone(tmp_path / "b.json", zero)
    assert autobert.load_backbone(str(tmp_path / "b.json")) == zero

def test_a_bert_layer_is_torchs_transformer_encoder_layer():
    layer = new_model(TINY, (BERT,) * 2, noise=0.1).eval().encoder.layers[0]
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True).eval()
    ours, other = layer.attention, theirs.self_attn
    other.in_proj_weight.data = torch.cat([ours.inputs[x].weight for x in "QKV"])
    other.in_proj_bias.data = torch.cat([ours.inputs[x].bias for x in "QKV"])
    for a, b in ((ours.out, other.out_proj), (ours.norm, theirs.norm1), (layer.feedforward.up, theirs.linear1),
                 (layer.feedforward.down, theirs.linear2), (layer.feedforward.norm, theirs.norm2)):
        b.load_state_dict(a.state_dict())
    x, mask = gaussian(3, 9, 16), torch.arange(9) < torch.tensor([[9], [5], [1]])
    torch.testing.assert_close(layer(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask], rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize("kernel", [3, 9, 65])  # 65: wider than the text on both sides
def test_the_convolution_is_a_naive_loop(kernel):  # head h has the channels [3 h, 3 h + 3)
    conv = new_model(replace(TINY, hidden=6), (f"conv {kernel}",) * 2, noise=0.3).eval().encoder.layers[0].convolution
    x, mask, y = gaussian(2, 7, 6), torch.arange(7) < torch.tensor([[7], [4]]), torch.zeros(2, 7, 6)
    u = conv.glu(x)
    u = (u[..., :6] * torch.sigmoid(u[..., 6:]) * mask[..., None]).tolist()
    weights = [[math.exp(v) for v in row] for row in conv.kernel.tolist()]
    for b, i, c, j in itertools.product(range(2), range(7), range(6), range(kernel)):
        if 0 <= (at := i + j - kernel // 2) < 7:
            y[b, i, c] += weights[c // 3][j] / sum(weights[c // 3]) * u[b][at][c]
    torch.testing.assert_close(conv(x, mask), conv.out(y), rtol=1e-5, atol=1e-5)

def test_the_band_matrix_is_conv1d():
    for kernel, n in ((3, 8), (9, 3), (65, 40), (31, 31)):
        taps, x = gaussian(2, kernel).double(), gaussian(3, 2, n, 5).double()  # (H, k), (B, H, n, d_h)
        theirs = F.conv1d(x.mT.reshape(3, 10, n), taps.repeat_interleave(5, 0)[:, None], padding=kernel // 2, groups=10)
        torch.testing.assert_close(autobert.band(taps, n) @ x, theirs.view(3, 2, 5, n).mT)

# ---- autobert.py: the whole model ----
def test_padding_never_changes_real_tokens_of_a_whole_model():
    rng, ids, mask = random.Random(3), torch.arange(5, 23).view(2, 9), torch.arange(9).expand(2, 9) < 5
    for _ in range(30):
        backbone = opnas.random_backbone(2, rng)
        encoder = new_model(TINY, backbone, noise=0.1).double().eval().encoder  # biases are what a wrong mask lets in
        torch.testing.assert_close(encoder(ids, 0 * ids, mask)[:, :5], encoder(ids[:, :5], 0 * ids[:, :5], None),
                                   rtol=1e-7, atol=1e-7, msg=str(backbone))

def arrays_of(model):
    """{name: array} of a model; of a kernel made from the super-net's the taps, worked out by its rule (Sec. 3.2)."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for name, size in itertools.product([name for name in w if name.endswith(".kernel")], (31, 15, 9, 7, 5, 3)):
        if (t := w.pop(name.replace("kernel", f"transforms.{size}"), None)) is not None:
            w[name] = w[name][:, (margin := (w[name].shape[1] - size) // 2):margin + size] @ t.T
    return w

def numpy_model(w, heads, backbone, ids, segments):
    """The whole model on one text without padding, in NumPy alone: ([embeddings, hidden after each layer], MLM, NSP).

    What a port to another framework must compute, and an example of one. w: {name: array}, a kernel as its k taps."""
    n, d = len(ids), len(w["encoder.pooler.bias"])
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]  # noqa: E731
    gelu = lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))  # noqa: E731

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def attention(x, at, formula):
        inputs = {k: linear(x, f"{at}.inputs.{k}") for k in "QKVP" if f"{at}.inputs.{k}.weight" in w}
        parts = [{k: np.split(v, heads, 1)[h] for k, v in inputs.items()} for h in range(heads)]
        return np.concatenate([python_formula(formula, part, d // heads) for part in parts], -1)

    def convolution(x, at):
        a, b = np.split(linear(x, at + ".glu"), 2, -1)
        taps = np.repeat(row_softmax(w[at + ".kernel"]), d // heads, 0)  # (d, k): channel c has its head's kernel
        k = taps.shape[1]
        padded = np.pad(a / (1 + np.exp(-b)), ((k // 2, k // 2), (0, 0)))
        return np.stack([(padded[i:i + k].T * taps).sum(-1) for i in range(n)])

    x = w["encoder.tokens.weight"][ids] + w["encoder.positions.weight"][:n] + w["encoder.segments.weight"][segments]
    x = norm(x, "encoder.norm")
    states = [linear(x, "encoder.projection") if "encoder.projection.weight" in w else x]
    for i, gene in enumerate(backbone):
        at, x = f"encoder.layers.{i}." + ("convolution" if gene.startswith("conv") else "attention"), states[-1]
        y = convolution(x, at) if gene.startswith("conv") else attention(x, at, gene)
        x = norm(x + linear(y, at + ".out"), at + ".norm")
        at = f"encoder.layers.{i}.feedforward"
        states.append(norm(x + linear(gelu(linear(x, at + ".up")), at + ".down"), at + ".norm"))
    mlm = norm(gelu(linear(states[-1], "transform")), "norm") @ w["encoder.tokens.weight"].T + w["bias"]
    return states, mlm, linear(np.tanh(linear(states[-1][0], "encoder.pooler")), "next")

def a_batch(rows=8, n=40, seed=0):
    """A batch of random tokens and lengths, whose third row has no masked token, the others one to three."""
    rng = np.random.default_rng(seed)
    counts = np.where(np.arange(rows) == 2, 0, rng.integers(1, 4, rows))
    return {"ids": rng.integers(5, 50, (rows, n)), "segments": rng.integers(0, 2, (rows, n)),
            "mask": np.arange(n) < rng.integers(n // 2, n + 1, (rows, 1)), "next": rng.integers(0, 2, rows),
            "positions": rng.integers(0, n // 2, (rows, 4)),
            "targets": np.where(np.arange(4) < counts[:, None], rng.integers(5, 50, (rows, 4)), data.IGNORED)}

Batches = SimpleNamespace(batch=lambda step: a_batch(rows=12, seed=step))  # as training takes them

def losses(model, batch, pieces=1):
    """The two losses of a batch, each the sum over its pieces."""
    return sum(model(autobert.to_device(autobert.piece(batch, i, pieces), CPU)) for i in range(pieces))

@pytest.mark.parametrize("backbone", ["bert", "autobert-zero", "random", "chain"])
def test_the_whole_model_and_its_loss_are_its_numpy_twins(backbone):
    """A batch with padding in torch, against NumPy on each text alone; chain: with kernels as in the super-net."""
    genes = autobert.BACKBONES.get(backbone) or opnas.random_backbone(12, random.Random(7))
    model = new_model(replace(TINY, layers=12, embedding=8), genes, 0.05, backbone == "chain").double().eval()
    batch, mlm, nsp = a_batch(4), [], []
    ids, segments, mask = (torch.tensor(batch[key]) for key in ("ids", "segments", "mask"))
    states = [*itertools.accumulate(model.encoder.layers, lambda x, layer: layer(x, mask),  # behind each layer
                                    initial=model.encoder.embed(ids, segments))]
    for row, length in enumerate(batch["mask"].sum(1)):
        text = ids[row, :length].numpy(), segments[row, :length].numpy()
        ours, logits, next_ = numpy_model(arrays_of(model), 2, genes, *text)
        for state, expected in zip(states, ours, strict=True):
            np.testing.assert_allclose(state[row, :length].detach().numpy(), expected, rtol=0, atol=1e-9)
        nsp.append(-np.log(row_softmax(next_)[batch["next"][row]]))
        mlm += [-np.log(row_softmax(logits[place])[target])
                for place, target in zip(batch["positions"][row], batch["targets"][row]) if target != data.IGNORED]
    assert losses(model, batch).tolist() == pytest.approx([np.mean(mlm), np.mean(nsp)], rel=1e-9)

@pytest.mark.parametrize("size, backbone, total, att, flops", [
    # millions of parameters, FLOPs at n = 128; the paper prints 110M 21.3M 2.9e10, 104M 15.4M, 16.5M, 318M
    ("base", "bert", 109.5, 21.26, 2.86e10), ("base", "autobert-zero", 103.6, 15.36, 2.68e10),
    ("base", "att-only", 104.8, 16.54, None), ("small", "autobert-zero", 12.9, None, 3.41e9),
    ("small", "bert", 13.5, None, 3.68e9), ("large", "bert", 335.1, None, 8.75e10),
    ("large", "autobert-zero", 314.2, None, 8.13e10)])
def test_size_and_cost_of_the_published_models(size, backbone, total, att, flops):
    config = replace(autobert.SIZES[size], vocab=30_522)
    genes = autobert.load_backbone(backbone, config.layers)
    count = autobert.count_parameters(config, genes)
    assert round(count["total"] / 1e6, 1) == total and att in (None, round(count["att"] / 1e6, 2))
    assert flops is None or autobert.count_flops(config, genes, 128)["total"] == pytest.approx(flops, rel=2e-3)

def test_counted_flops_are_torchs_own_count_of_the_products_and_little_more():
    config, ids = autobert.ModelConfig(4, 128, 2, 128, vocab=1000, dropout=0.0), torch.ones(1, 128, dtype=torch.long)
    for genes in (autobert.load_backbone(name, 4) for name in ("bert", "conv-only", "autobert-zero")):
        encoder = autobert.AutoBert(config, genes).double().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(ids, ids, None)
        # torch counts a band with its zeros: n columns in place of k taps
        zeros = sum(2 * 128 * 128 * (128 - autobert.kernel_of(gene)) for gene in genes if gene.startswith("conv"))
        assert 1 < sum(autobert.count_flops(config, genes, 128)["layers"]) / (counter.get_total_flops() - zeros) < 1.06

# ---- autobert.py: training ----
def test_the_schedule_by_hand_and_nothing_without_need_is_decayed():
    falling = [8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]
    assert [autobert.lr_at(step, 10, 1.0, 0.2) for step in range(10)] == pytest.approx([1 / 2, 1, *falling])
    model = new_model(TINY, (BERT, "conv 3"), chained=True)
    decayed, plain = autobert.make_optimizer(model, 1e-3, 0.01).param_groups
    exempt = [p for name, p in model.named_parameters() if re.search("bias$|norm|kernel|transforms", name)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert [*map(id, exempt)] == [*map(id, plain["params"])]
    assert len(exempt) + len(decayed["params"]) == len([*model.parameters()])

def test_the_pieces_of_a_batch_add_up_to_it_and_so_do_accumulated_steps():
    batch, found, ends = a_batch(), [], []  # float64: the gradient of a key's bias is rounding, which Adam blows up
    for pieces in (1, 2, 3, 8):  # the third of 8 pieces has no masked token
        model = new_model(TINY, ("conv 3", BERT)).double()
        losses(model, batch, pieces).sum().backward()
        found.append([losses(model, batch, pieces), *(p.grad for p in model.parameters())])
        s = autobert.PretrainSettings(steps=3, batch=12, lr=1e-2, accumulate=pieces)
        ends.append(autobert.pretrain(new_model(TINY, ("conv 3", BERT)).double(), Batches, s, CPU).parameters())
    for whole, *added in [*zip(*found), *zip(*ends)]:
        for part in added:
            torch.testing.assert_close(part, whole, rtol=1e-7, atol=1e-7)

def test_training_from_any_step_is_the_same_training():
    s, ends = autobert.PretrainSettings(steps=8, batch=12, lr=1e-2), []
    for stops in ((), (3,), (1, 6)):
        model = new_model(replace(TINY, dropout=0.3), ("conv 3", BERT))
        first, optimizer = 0, autobert.make_optimizer(model, s.lr, betas=(0.9, s.beta2))
        for stop in stops:
            with pytest.raises(ZeroDivisionError):  # stopped behind that step
                autobert.pretrain(model, Batches, s, CPU, lambda done, *_: 1 / (stop - done), 0, optimizer, first)
            first = stop
            torch.manual_seed(99)  # what others draw meanwhile makes no difference
        ends.append(autobert.pretrain(model, Batches, s, CPU, optimizer=optimizer, first=first).state_dict())
    assert all(torch.equal(end[name], ends[0][name]) for end in ends for name in end)
    plain = autobert.pretrain(new_model(TINY, ("conv 3", BERT)), Batches, s, CPU).state_dict()
    assert not torch.equal(plain["bias"], ends[0]["bias"])  # it had dropout

def test_a_loss_that_is_not_finite_stops_training():
    model = new_model(TINY, (BERT, BERT))
    model.encoder.tokens.weight.data[7, 0] = math.inf
    with pytest.raises(autobert.Diverged, match="step 1"):
        autobert.pretrain(model, Batches, autobert.PretrainSettings(steps=3, batch=12), CPU)

def test_a_checkpoint_holds_all_that_is_needed_and_weights_begin_as_berts(tmp_path, tokenizer):
    model = new_model(replace(TINY, vocab=300), (BERT, "conv 31"))
    autobert.save_checkpoint(tmp_path / "m.pt", model, tokenizer, step=7)
    loaded, words, content = autobert.load_checkpoint(tmp_path / "m.pt")
    assert loaded.encoder.config == model.encoder.config and loaded.encoder.backbone == model.encoder.backbone
    assert words.proto == tokenizer.proto and content["step"] == 7
    for name, p in model.named_parameters():
        assert torch.equal(p, loaded.state_dict()[name]) and (p.abs().max() <= 0.4 or "norm" in name), name  # 0.4: 2 sd

# ---- supernet.py: who shares what (Sec. 3.2) ----
KERNEL, T = "encoder.layers.0.convolution.kernel", "encoder.layers.0.convolution.transforms."

@pytest.mark.parametrize("backbone, chain, inputs", [
    (("conv 9", "softmax(scale(Q @ T(K))) @ (K + P)"), {31, 15, 9}, "QKP"), (("conv 65", "conv 65"), set(), "")])
def test_a_child_is_a_copy_and_absorbing_it_writes_only_what_it_holds(backbone, chain, inputs):
    net = supernet.SuperNet(TINY)
    before, child = {name: slot.clone() for name, slot in net.slots.items()}, net.child(backbone)
    held = dict(child.named_parameters())
    assert {size for size in autobert.KERNELS if T + str(size) in held} == chain
    assert "".join(x for x in "QKVP" if f"encoder.layers.1.attention.inputs.{x}.weight" in held) == inputs
    assert held[KERNEL].shape == (2, 31 if chain else 65) and "encoder.layers.0.attention.out.weight" not in held
    for p in child.parameters():
        p.data += 1.0
    assert all(torch.equal(slot, before[name]) for name, slot in net.slots.items())  # a copy, not a view
    net.absorb(child)
    for name, slot in net.slots.items():
        centre = slice(17, 48) if name == KERNEL and chain else slice(None)  # 17 + 31 + 17 = 65
        before[name][..., centre] += name in held
        assert torch.equal(slot, before[name]), name
        assert name not in held or torch.equal(held[name], slot[..., centre]), name

def test_small_kernels_are_transformed_centres_and_a_child_computes_as_a_model_of_its_own():
    net = supernet.SuperNet(TINY)
    for size in autobert.KERNELS[:-1]:
        assert torch.equal(net.slots[T + str(size)], torch.eye(size))  # at the start
        net.slots[T + str(size)].copy_(gaussian(size, size, seed=size))
    for kernel in autobert.KERNELS:
        child, plain = net.child((f"conv {kernel}", BERT)), new_model(TINY, (f"conv {kernel}", BERT))
        plain.load_state_dict({name: torch.tensor(x) for name, x in arrays_of(child).items()})
        assert plain.state_dict()[KERNEL].shape == (2, kernel)
        torch.testing.assert_close(losses(child, a_batch()), losses(plain, a_batch()))

def test_the_best_child_that_holds_a_slot_wins_it_and_ties_go_to_the_earlier():
    net, scores = supernet.SuperNet(TINY), [0.2, 0.9, 0.9]
    children = [net.child(genes).state_dict() for genes in ((BERT, BERT), ("conv 3", BERT), (BERT, "conv 65"))]
    for i in supernet.write_order(scores):
        net.absorb({name: torch.full_like(x, i) for name, x in children[i].items()})
    found = {name: set(slot.unique().tolist()) for name, slot in net.slots.items()}
    assert found["encoder.tokens.weight"] == found["encoder.layers.1.attention.out.weight"] == found[T + "3"] == {1}
    assert found["encoder.layers.0.attention.out.weight"] == {2}

# ---- The size and the shape of the code (DESIGN) ----
CAPS = {"ops.py": 330, "data.py": 400, "autobert.py": 500, "supernet.py": 130, "glue.py": 460, "opnas.py": 500}
OTHERS = {"test_all.py": 1200, "README.md": 200, "results/README.md": 160, "studies/test_studies.py": 450}
CORE = [name.removesuffix(".py") for name in CAPS]  # in the order in which they are read and may import one another

def test_every_file_is_within_its_cap_and_the_six_are_an_evenings_reading():
    for name, cap in {**CAPS, **OTHERS}.items():
        lines = (HERE / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= cap and (name.endswith("md") or max(map(len, lines)) <= 120), (name, len(lines))
    sources = [(HERE / name).read_bytes() for name in CAPS]
    assert sum(source.count(b"\n") for source in sources) <= 2300 and sum(map(len, sources)) <= 125_000
    spans = [node.end_lineno - node.lineno + 1 for source in sources for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.FunctionDef)]
    assert np.median(spans) <= 12 and max(spans) <= 45

@pytest.mark.parametrize("name", CORE)
def test_imports_go_downwards_and_packages_are_three(name):
    nodes = [*ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    above = {"ops": [], "data": [], "glue": CORE[:3]}.get(name, CORE[:CORE.index(name)])
    assert imported - sys.stdlib_module_names <= {"torch", "numpy", "sentencepiece", *above}

def test_the_names_that_others_lean_on_exist():
    for module, names in {
            ops: "OPS ATTENTIONS parse formula canonical random_dag why_illegal evaluate", opnas: "evolve",
            autobert: "SIZES BACKBONES load_backbone save_backbone to_large AutoBert Pretraining count_parameters "
                      "count_flops", supernet.SuperNet: "child absorb", data: "Tokenizer Corpus",
            glue: "matthews f1 accuracy pearson spearman kendall_tau squad_scores TASKS read_task finetune"}.items():
        assert not [name for name in names.split() if not hasattr(module, name)], module
