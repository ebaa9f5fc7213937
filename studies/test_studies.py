"""What the studies claim, each in seconds: python -m pytest studies/test_studies.py"""
import ast
import itertools
import json
import math
import random
import re
import sys
from dataclasses import asdict, astuple
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import autobert  # noqa: E402
import baselines  # noqa: E402
import bench  # noqa: E402
import cost  # noqa: E402
import data  # noqa: E402
import draw  # noqa: E402
import glue  # noqa: E402
import instrument  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
import report  # noqa: E402
import space  # noqa: E402
import toy  # noqa: E402
import uniformity  # noqa: E402

torch.set_num_threads(1)
STUDIES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("test"))

@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_its_command_and_its_time_and_imports_no_study_but_draw(name):
    tree = ast.parse((HERE / f"{name}.py").read_text())
    assert f"python studies/{name}.py" in ast.get_docstring(tree)
    assert re.search("second|minute|hour", ast.get_docstring(tree))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imports & set(STUDIES) - {"draw"} - ({"bench"} if name == "gpu" else set())  # it measures as bench does

# ---- toy ----
def test_the_folder_toy_holds_what_the_study_writes():
    written = dict(toy.files(0))
    there = {str(path.relative_to(HERE.parent / "toy")): path for path in (HERE.parent / "toy").rglob("*.*")}
    assert written.keys() == there.keys() and len(written) == 2 + 8 * 3 + 2 + 4
    assert all(there[name].read_bytes() == text.encode() for name, text in written.items())
    assert sum(map(len, written.values())) < 3e6 and dict(toy.files(1))["corpus.txt"] != written["corpus.txt"]

@pytest.mark.parametrize("name", glue.TASKS)
def test_no_dev_row_of_a_toy_task_is_a_training_row_and_no_label_is_most_of_them(name):
    task = glue.TASKS[name]
    train, *dev = (glue.read_task(HERE.parent / "toy/glue", name, split) for split in ("train", *task.dev))
    seen = {row[:2] for row in train}
    assert len(seen) == len(train) and not any(row[:2] in seen for part in dev for row in part)
    labels = [int(label > 2.5) if task.labels is None else label for *_, label in train]
    assert all(labels.count(label) < 0.75 * len(labels) for label in set(labels)) and len(set(labels)) > 1

def test_toy_answers_stand_where_they_are_said_to_and_once():
    for version in ("1.1", "2.0"):
        for q in glue.read_squad(HERE.parent / f"toy/squad/dev-v{version}.json"):
            assert bool(q["answers"]) != q.get("is_impossible", False)
            for answer in q["answers"]:
                assert q["context"].split(answer["text"])[0] == q["context"][:answer["answer_start"]]

# ---- draw ----
def test_a_charts_line_runs_through_its_points():
    """By hand: x from 0 to 10 with a pad of .4 on 624 pixels from 80, y from 2 to 4 with .08 on 240 from 84 down."""
    series = {"loss": ([0, 5, 10], [2.0, 4.0, 3.0]), "band": ([0, 10], [3, 3], [2, 2], [4, 4])}
    svg = ElementTree.fromstring(draw.chart("a < b & c", "step", "nats", series, [(5, None, "off", "<rejected>")]))
    paths = [(e.get("class"), e.get("d")) for e in svg.iter() if e.tag.endswith("path")]
    assert ("line s0", "M103.1,315.1 392.0,92.9 680.9,204.0h0") in paths
    assert ("band s1", "M103.1,315.1 680.9,315.1 680.9,92.9 103.1,92.9Z") in paths
    ring = next(e for e in svg.iter() if e.tag.endswith("circle"))
    assert (ring.get("cx"), ring.get("cy"), ring[0].text) == ("392.0", "324.0", "<rejected>")
    texts = {e.text for e in svg.iter() if e.tag.endswith("text")}
    assert {"a < b & c", "step", "nats", "loss", "band", "0", "2", "4", "10", "2.5"} <= texts
    assert " 392.0,92.9 " in draw.chart("t", "x", "y", {"a": ([1, 10, 100], [0, 1, 0]), "b": ([], [])}, log=True)

@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([3], [2.0])}, {"a": ([1, 2], [5.0, 5.0])},
                                    {"a": ([1, 2, 3], [1.0, math.nan, math.inf])}])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_stands_few_and_odd_numbers(series, log):
    text = draw.chart("t", "x", "y", series, log=log)
    assert ElementTree.fromstring(text) is not None and not re.search(r"\b(nan|inf)\b", text)

def test_the_picture_of_a_backbone_has_a_box_for_every_op_and_an_arc_for_every_reader():
    backbone = ("conv 9", *(ops.formula(ops.random_dag(random.Random(seed))) for seed in range(5)))
    svg = ElementTree.fromstring(draw.picture(backbone))
    dags = [ops.parse(gene) for gene in backbone[1:]]
    boxes = [tuple(float(e.get(side)) for side in ("x", "y")) for e in svg.iter() if e.tag.endswith("rect")]
    assert len(boxes) == len(set(boxes)) == 1 + sum(len(dag) + len(ops.used(dag)) for dag in dags)
    assert sum(e.tag.endswith("path") for e in svg.iter()) == sum(len(set(args)) for dag in dags for _, *args in dag)
    assert all(x + 80 < float(svg.get("width")) and y + 20 < float(svg.get("height")) for x, y in boxes)

def test_losses_of_several_trainings_are_one_picture(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.tsv").write_text(draw.tsv(["step", "mlm", "held_out_mlm"], [5, 3.1, ""], [10, 3.0, 3.2]))
    draw.losses([str(tmp_path / f"{name}.tsv") for name in ("one", "two")], str(tmp_path / "losses.svg"))
    picture = (tmp_path / "losses.svg").read_text()
    assert picture.count('<path class="line s0"') == picture.count('<path class="line s1"') == 2  # legend and line

@pytest.mark.parametrize("count, t", [(2, 12.706), (4, 3.182), (5, 2.776), (10, 2.262), (31, 2.042), (121, 1.980)])
def test_an_interval_is_students(count, t):
    mean, half = glue.interval(numbers := [float(i % 3) for i in range(count)])
    assert (mean, half) == pytest.approx((np.mean(numbers), t * np.std(numbers, ddof=1) / math.sqrt(count)), rel=3e-3)

# ---- space ----
def test_the_count_of_small_graphs_is_that_of_all_and_the_estimate_is_unbiased():
    nodes = [[(op, *args) for op, row in ops.OPS.items()
              for args in itertools.product(range(slots), repeat=row.text.count("{}"))] for slots in (4, 5)]
    found = {ops.canonical(dag) for dag in itertools.product(*nodes) if ops.why_illegal(dag) is None}
    assert space.count_legal(2) == sum(len(dag) == 2 for dag in found) == 120 and space.count_legal(3) == 6444
    mean, error = space.estimate_legal(3, 2000, random.Random(1))
    assert abs(mean - 6444) < 3 * error < 0.15 * 6444

# ---- cost ----
def test_our_counts_stand_beside_the_papers(capsys):
    cost.cost()
    lines = {tuple(line.split()[:2]): line for line in capsys.readouterr().out.splitlines()}
    for key, text in ((("base", "bert"), "109.5 (110, -0 %)"), (("base", "autobert-zero"), "2.68e+10 (2.3e+10, +17 %)"),
                      (("base", "conv-only"), "14.17 (15.4, -8 %)"), (("large", "autobert-zero"), "314.2 (318, -1 %)")):
        assert text in lines[key]

# ---- baselines ----
def test_the_linear_baseline_learns_what_words_tell():
    rng, y = np.random.default_rng(0), np.arange(300) % 2
    words = [[f"w{i}" for i in rng.integers(0, 40, 12)] for _ in y]
    single = [(" ".join([*row, ("bad", "good")[label]]), None) for row, label in zip(words, y)]
    pairs = [(" ".join(row[:6]), " ".join(row[:6] if label else row[6:])) for row, label in zip(words, y)]
    for rows, gold, labels in ((single, y, 2), (pairs, y, 2), (pairs, 5.0 * y, 0)):
        found = baselines.bag_of_words(rows[:200], gold[:200], rows[200:], labels, seed=3, epochs=40)
        assert glue.spearman(y[200:], found) > (0.9 if labels else 0.7)

def test_a_random_span_is_one_to_three_words_of_the_passage():
    questions = [{"id": str(i), "context": f"one {i} two three four"} for i in range(50)]
    spans = baselines.random_spans(questions)
    assert all(f" {spans[q['id']]} " in f" {q['context']} " for q in questions)
    assert {len(text.split()) for text in spans.values()} == {1, 2, 3}

# ---- uniformity ----
def test_uniformity_of_two_tokens_by_hand():
    """Tokens (3, 1) and (1, 3): mean (2, 2), residual (1, -1) and (-1, 1) of norm 2 in 4; cosine 6 / 10."""
    x, real = torch.tensor([[[3.0, 1.0], [1.0, 3.0]]]), torch.ones(1, 2, dtype=torch.bool)
    assert torch.cat(uniformity.uniformity(x, real)).tolist() == pytest.approx([0.5, 0.6])
    same = torch.cat(uniformity.uniformity(torch.full((1, 2, 3), -2.0), real))
    assert same.tolist() == pytest.approx([0, 1])

def test_uniformity_by_layer_is_what_numpy_computes_without_padding(tmp_path):
    tokenizer = data.Tokenizer.train([HERE.parent / "toy/held-out.txt"], 400)
    config = autobert.ModelConfig(2, 16, 2, 16, vocab=400, dropout=0.0)
    model = autobert.Pretraining(config, ("conv 3", ops.ATTENTIONS["bert"]))
    autobert.save_checkpoint(tmp_path / "tiny.pt", model, tokenizer)
    rows, _ = glue.encode(glue.read_task(HERE.parent / "toy/glue", "STS-B", "train")[:40], tokenizer, 128)
    values = uniformity.by_layer(model.encoder, rows, "cpu")  # (3, 2, 40)
    with torch.no_grad():
        x = model.encoder(*(torch.as_tensor(part)[None].long() for part in rows[7])).double().numpy()[0]  # (n, d)
    rest, whole = (math.sqrt(np.linalg.norm(m, 1) * np.linalg.norm(m, np.inf)) for m in (x - x.mean(0), x))
    cosines = [a @ b / math.sqrt(a @ a * (b @ b)) for a, b in itertools.permutations(x, 2)]
    expected = [rest / whole, np.mean(cosines)]
    assert values.shape == (3, 2, 40) and values[-1, :, 7] == pytest.approx(expected, rel=1e-4)
    uniformity.main((str(tmp_path / "tiny.pt"),), str(HERE.parent / "toy/glue"), 40, "cpu", str(tmp_path))
    last = (tmp_path / "uniformity.tsv").read_text().splitlines()[-1].split("\t")
    assert [float(x) for x in last[2::2]] == pytest.approx(values[-1].mean(-1).tolist(), abs=1e-4)

# ---- report ----
def test_a_report_shows_every_judgement_and_what_ucb_draws_from(tmp_path):
    bert, C = ops.ATTENTIONS["bert"], opnas.Candidate
    log = [C(0, 0, None, ("conv 3", "conv 5"), 0.2), C(None, 0, None, ("conv 5", bert), reason="collapsed <b>"),
           C(1, 1, 0, ("conv 3", bert), 0.45), C(2, 1, 0, ("conv 7", "conv 5"), reason="diverged"),
           C(0, 2, None, ("conv 3", "conv 5"), 0.3)]  # the last judgement of candidate 0 counts
    about = {"corpus": "toy", "glue": "toy/glue", **asdict(opnas.SearchSettings(alpha=0.0, tau=0.1))}  # as search does
    (tmp_path / "settings.json").write_text(json.dumps(about))
    opnas.save(tmp_path / "state.pt", {"log": [astuple(c) for c in log]})
    report.report(str(tmp_path))
    page = ElementTree.parse(tmp_path / "report.html")
    dots = [e[0].text for e in page.iter() if e.tag.endswith("circle")]
    assert len(dots) == len(log) and all(f"candidate={c.number} " in dot for c, dot in zip(log, dots))
    cells = {"".join(e.itertext()) for e in page.iter("td")}
    p = math.exp(3.75) / (math.exp(3.75) + math.exp(3.0) + 5 * math.exp(3.5))  # of conv 3 beside 7 and those never seen
    assert f"0.375N 2p {p:.2f}" in cells and "0.450N 1p 0.10" in cells  # and of softmax beside nine never seen
    assert "candidate=1 round=1 parent=0 score=0.450 | L2 " + bert in cells

# ---- bench ----
class Words(torch.nn.Embedding):
    """All the encoder that the peer below has."""
    def forward(self, input_ids, token_type_ids):
        return super().forward(input_ids)

class Peer(torch.nn.Module):
    """Called as transformers' BertForPreTraining is."""
    def __init__(self, c):
        super().__init__()
        self.bert, self.out = Words(c.vocab_size, c.hidden_size), torch.nn.Linear(c.hidden_size, c.vocab_size)

    def forward(self, input_ids, token_type_ids, labels, next_sentence_label):
        assert 0.1 < (labels != -100).float().mean() < 0.2 and not (labels == data.MASK).any()
        logits = self.out(self.bert(input_ids, token_type_ids))
        return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits.mT, labels))

def test_the_bench_races_with_a_peer(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "a_peer", SimpleNamespace(BertConfig=SimpleNamespace, BertForPreTraining=Peer))
    bench.bench("toy", peer="a_peer", n=16, batch=2, turns=2, device="cpu", out=str(tmp_path / "bench.tsv"))
    head, *rows = [line.split("\t") for line in (tmp_path / "bench.tsv").read_text().splitlines()]
    table = {tuple(row[:3]): dict(zip(head, row)) for row in rows}
    models = ("a_peer", "bert", "autobert-zero")
    assert table.keys() == set(itertools.product(("train", "infer"), models, ("fp32", "bf16")))
    for precision in ("fp32", "bf16"):
        row, other = (table["train", model, precision] for model in ("bert", "a_peer"))
        assert float(row["tokens/s"]) == pytest.approx(2 * 16 / float(row["ms"]) * 1e3, rel=0.05)
        assert float(row["MB"]) > 3 and (row["to_bert"], other["to_peer"]) == ("1.00 (1.00-1.00)",) * 2

def test_a_turn_is_set_against_the_same_turn_of_the_other():
    one, other = (SimpleNamespace(times=times) for times in ([1.0, 2.0, 4.0], [3.0, 4.0, 20.0]))
    assert bench.beside(one, other) == "3.00 (2.50-4.00)" and bench.beside(one, None) == "-"  # of 3, 2, 5

# ---- compare ----
import compare  # noqa: E402
import child  # noqa: E402
import collapse  # noqa: E402
import found  # noqa: E402
import landscapes  # noqa: E402
import real  # noqa: E402
import sharing  # noqa: E402
import supernet  # noqa: E402

TINY = {"tasks": ("RTE",), "warm": 3, "population": 4, "parents": 2, "children": 1, "rounds": 1,
        "finalists": 2, "rows": 24, "steps": 2, "final_steps": 4, "collapse": 0.0, "seed": 3}

def worth(genes):
    return random.Random(" | ".join(genes)).random()

@pytest.fixture
def search(tmp_path_factory, monkeypatch):
    """search(out, run=opnas.search): a tiny one without training: a loss is a sum of weights, a score the worth."""
    corpus = tmp_path_factory.getbasetemp() / "corpus"
    if not corpus.exists():
        data.prepare((str(HERE.parent / "toy/held-out.txt"),), str(corpus), 400)
    monkeypatch.setattr(opnas.Proxy, "pretrain", lambda self, model, steps, seed, offset=0: (
        -1e6 + sum(p.detach().double().sum().item() for p in model.parameters()), steps))
    monkeypatch.setattr(opnas.Proxy, "scores", lambda self, model, *_, **__: (("RTE", worth(model.encoder.backbone)),))
    flags = dict(corpus=str(corpus), glue=str(HERE.parent / "toy/glue"), workers=1, device="cpu")
    return lambda out, run=opnas.search, **more: run(TINY, out=str(out), **flags, **more)

def rows_of(path):
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]

def test_a_winners_child_computes_as_the_super_nets_and_training_goes_on_from_it(search, tmp_path, monkeypatch):
    search(tmp_path / "run")
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    net, corpus = supernet.SuperNet(autobert.ModelConfig(**state["config"]), 0, state["slots"]), state["corpus"]
    lent = net.child(autobert.load_backbone(f"{tmp_path}/run/best.json")).eval()
    child.child(f"{tmp_path}/run", f"{tmp_path}/child.pt")
    autobert.train({"steps": 1, "batch": 4, "n": 32}, corpus, init=f"{tmp_path}/child.pt", out=f"{tmp_path}/m.pt")
    batches = data.PretrainingData(data.Corpus(corpus), data.split_held_out(data.Corpus(corpus))[0], 32, 4, 0)
    first = float((tmp_path / "m.pt.tsv").read_text().splitlines()[1].split("\t")[2])
    assert first == pytest.approx(autobert.held_out_loss(lent, batches, 1, torch.device("cpu"))[0], rel=1e-5)

def test_a_proxy_that_ranks_as_full_training_has_a_tau_of_1(search, tmp_path, capsys):
    x = np.arange(8.0)
    same, other = (np.stack([x, -x, -x, score], 1) for score in (x, -x))
    assert sharing.summary({"w": same}, x).count("1.00 [1.00,1.00]  1.00") == 4  # score, with NSP, NSP, MLM
    assert "-1.00 [-1.00,-1.00] -1.00" in sharing.summary({"w": other}, x)
    search(tmp_path)
    backbones = [*dict.fromkeys(row[-1] for row in rows_of(tmp_path / "candidates.tsv"))][:3]
    (tmp_path / "rows.tsv").write_text("name\tseed\tbackbone\tseconds\tmlm\tnsp\tRTE\n" + "".join(
        f"a\t1\t{b}\t1\t2\t.5\t{worth(b.split(' | '))}\n" for b in backbones * 2))
    sharing.sharing(str(tmp_path), ("0:1:9", "r1xo1:1:9", "k1+b1:1:9", "c1+r1@1:1:9"), 1)
    assert len(rows_of(tmp_path / "proxy.tsv")) == 12 and capsys.readouterr().out.count("1.00 [") >= 4

def test_from_scratch_all_judgements_count_alike_and_the_next_one_tells_what_was_found(
        search, tmp_path, monkeypatch, capsys):
    """Rounds have the seeds 98, 97, 96, the last 99, finals 0, 1, ..: candidate 0 is judged .5, .4 and .9."""
    monkeypatch.setitem(TINY, "warm", 0)
    scores = {398: 0.5, 397: 0.2, 396: 0.4, 399: 0.9, 300: 0.7}
    monkeypatch.setattr(opnas.Proxy, "scores", lambda self, model, seed, *_, **__: (("RTE", scores[seed]),))
    search(tmp_path)
    log = [opnas.Candidate(*c) for c in opnas.load(tmp_path / "state.pt")["log"]]
    assert [c.score for c in log if c.number == 0] == pytest.approx([0.5, 0.45, 0.9])
    assert [score for _, score in found.curve(log)] == pytest.approx([40])
    found.found((str(tmp_path),), str(tmp_path / "found.tsv"))
    (_, *row, points), = rows_of(tmp_path / "found.tsv")
    assert row == ["op-nas", "3", "6", row[3], "70.00", "70.00", "70.00", "1"] and points.endswith(":40.0")
    assert "so far is worth 40.0 ± inf" in capsys.readouterr().out and "op-nas" in (tmp_path / "found.svg").read_text()

def test_with_shared_weights_the_last_judgement_counts(search, tmp_path, monkeypatch):
    calls = itertools.count(1)  # the super-net matures
    monkeypatch.setattr(opnas.Proxy, "scores", lambda *_, **__: (("RTE", 1 / next(calls)),))
    search(tmp_path)
    log = [opnas.Candidate(*c) for c in opnas.load(tmp_path / "state.pt")["log"]]
    assert [c.score for c in log] == [score for c in log for _, score in c.tasks] and len(log) == 10

def test_the_share_that_varies_is_the_probes_and_thresholds_are_counted_by_hand(tmp_path, capsys):
    collapse.collapse(3, 8, 2, 1, str(tmp_path), str(HERE.parent / "toy/held-out.txt"), 1)
    for seed in range(12):
        backbone = opnas.random_backbone(3, random.Random(seed))
        assert (collapse.varying(backbone) < 0.2) == (opnas.PROXY.probe(backbone) == "collapsed")
    assert len(rows_of(tmp_path / "rows.tsv")) == 2 and "pass the probe" in capsys.readouterr().out
    rows = [("0", "", "0.01", "5.0", "0.6"), ("1", "", "0.4", "3.0", "0.5"), ("2", "", "0.9", "2.0", "0.4")]
    lines = [line.split() for line in collapse.summary([0.01, 0.4, 0.6, 0.9], rows, 4.0)]
    assert lines[1] == "0.02 25% 0 of 1 2 of 2".split() and lines[6] == "0.50 50% 1 of 2 1 of 1".split()

def test_the_other_studies_are_within_their_cap():
    texts = [path.read_text("utf-8") for path in {*HERE.glob("*.py")} - {HERE / "test_studies.py"}]
    assert 1000 < len(lines := "\n".join(texts).split("\n")) <= 2200 and max(map(len, lines)) <= 120

def test_a_landscape_does_what_its_family_says():
    def z(family, *backbone):  # the logit is z / 3
        f = landscapes.landscape(family, 7)(backbone)
        return 3 * math.log(f / (1 - f)) * math.sqrt(len(backbone))
    a, b, c, d = "-Q @ T(K) @ V", "softsign(K @ T(Q) @ V)", "T(-Q) @ K @ V", "-T(Q) @ K @ V"
    for family in ("by position", "by op", "by motif", "op in context"):
        assert z(family, a, b) == pytest.approx(z(family, a) + z(family, b)) == pytest.approx(z(family, b, a))
        assert (z(family, c) == pytest.approx(z(family, d))) == (family == "by op")  # other places, readers
    assert z("misleading", a, b) == pytest.approx(z("by position", a) - z("by position", b))
    assert z("none", a, b) != pytest.approx(z("none", a) + z("none", b))

def test_the_control_copies_a_layers_attention_if_there_is_one():
    bert, rng, tables = ops.ATTENTIONS["bert"], random.Random(0), opnas.OperationPriority()
    found = {landscapes.flip_to_copy(("conv 9", bert), tables, rng, {}) for _ in range(60)}
    assert {("conv 9", bert), (bert, bert)} < found and all("conv" in b for _, b in found if b != bert)
    flips = landscapes.flip_to_copy, opnas.mutate_inter
    alone = [flip(("conv 9",), tables, random.Random(2), {}) for flip in flips]
    assert alone[0] == alone[1] != ("conv 9",)  # nothing to copy: it grows

def test_every_strategy_has_as_many_judgements_and_random_search_full_trainings():
    s = opnas.SearchSettings(population=12, parents=2, children=2, rounds=4, finalists=3)
    for arm in ("op-nas", "ea+ws", "random+ws"):
        plan = opnas.plan(compare.settings_of(3, arm, s, 5))
        assert sum(sum(counts) for _, *counts in plan[:-1]) == 12 + 4 * (4 + 2) and plan[-1] == ("last", 0, 3)
    alone = compare.settings_of(3, "random", s, 5)
    assert opnas.plan(alone) == [("random", 4, 0), ("random", 1, 0)] and (alone.steps, alone.rows) == (1000, 0)

def test_differences_of_pairs_by_hand():
    """Of 1, 3, 0, 4: mean 2, sd 1.826; half 3.182 * 1.826 / 2 = 2.905; above 3.5 of 4."""
    scores = [*zip("aaaabbbb", "01230123", "14290125")]
    rows = [{"arm": arm, "pair": f"{pair} f", "best": score} for arm, pair, score in scores]
    _, row, same = draw.pairs(rows, {"best": ["ab"]}, ["", "f"])
    assert row[0] == "best" and same == ("best f", *row[1:]) and row[-2:] == ("0.8750", 4)
    assert [float(row[i]) for i in (2, 4, 5, 6, 7)] == pytest.approx([4, 2, 2, 2.905, 1.43 * 2.905], abs=2e-3)

def test_on_landscapes_each_decision_changes_the_search_and_not_its_budget(tmp_path, monkeypatch):
    logs, evolve = [], opnas.evolve
    monkeypatch.setattr(opnas, "evolve", lambda *args: logs.append(evolve(*args)) or logs[-1])
    monkeypatch.setattr(landscapes, "LAYERS", 4)
    landscapes.landscapes(1, out=str(tmp_path))
    found = dict(zip(landscapes.ARMS, ([c for c in log if c.number is not None] for log in logs)))
    assert {len(log) for arm, log in found.items() if arm != "no finalists"} == {50 + 4 * 30 + 3}
    assert len(found["no finalists"]) == 50 + 4 * 30 + 3 * 10
    assert len({tuple((c.backbone, c.score) for c in log) for log in found.values()}) == len(logs) == 13
    assert {c.reason for c in logs[0]} == {"", "collapsed"} and any(c.score is None for c in found["op-nas"])
    for arm, log in found.items():  # judgements count alone, but for the mean, and there of the finalists
        alone = {c.score in (None, c.tasks[0]) for c in log if arm != "mean of judgements" or c.round == 6}
        assert alone == {True} and (arm != "mean of judgements" or any(c.score not in (None, *c.tasks) for c in log))
    landscapes.landscapes(1, out=str(tmp_path))
    assert len(logs) == 13

def test_the_search_on_real_text_is_the_commands_and_tasks_are_set_beside_chance(tmp_path, search, monkeypatch, capsys):
    monkeypatch.setattr(real, "REAL", opnas.replace(real.REAL, **TINY | {"warm": 0}))
    search(tmp_path, lambda s, device, **flags: real.search(**flags))
    assert json.loads((tmp_path / "settings.json").read_text())["pretrain"]["n"] == 48
    monkeypatch.setattr(opnas.Proxy, "scores", lambda self, *_, **__: [(task, 0.5) for task in self.s.tasks])
    corpus = str(Path(json.loads((tmp_path / "settings.json").read_text())["corpus"]))
    real.tasks(5, corpus, str(HERE.parent / "toy/glue"), str(tmp_path / "tasks"), 1)
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert "CoLA  0.500 to 0.500, chance 0.000," in lines[0] and len(rows_of(tmp_path / "tasks/rows.tsv")) == 5

def test_searches_are_compared_with_their_winners(tmp_path, search):
    search(tmp_path, compare.compare, seeds=1, longer=5)
    rows, longer = (rows_of(tmp_path / f"{name}.tsv") for name in ("searches", "longer"))
    assert [row[:2] for row in rows] == [["3", arm] for arm in ("op-nas ea+ws random+ws random median bert".split())]
    for _, arm, best, winner, _, curve in rows[:4]:
        found = sorted({worth(c[3]) for c in opnas.load(tmp_path / f"3-{arm}/state.pt")["log"]})
        assert [float(best), float(winner), json.loads(curve)[-1][1]] == pytest.approx(found[-1:] * 3, abs=1e-5)
        middle = found[(len(found) - 1) // 2] if arm == "op-nas" else middle
    assert [float(row[3]) for row in rows[4:]] == pytest.approx([middle, worth(autobert.load_backbone("bert", 4))])
    assert longer == [[*row[:2], "5", row[3]] for row in rows]

def test_the_interval_of_tau_narrows_with_more_backbones():
    x, y = np.random.default_rng(0).normal(size=(2, 100))
    (_, low, high), (tau, lower, upper) = (draw.agreement(x[:n], (x + y)[:n]) for n in (12, 100))
    assert lower < tau < upper and upper - lower < 0.6 * (high - low)

# ---- gpu ----
import gpu  # noqa: E402

def test_gpu_checks_everything_whatever_fails_and_writes_it_down(tmp_path, monkeypatch):
    peer, compiled = SimpleNamespace(BertConfig=SimpleNamespace, BertForPreTraining=Peer, __spec__=True), []
    monkeypatch.setitem(sys.modules, "transformers", peer)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, disable, backend: disable or compiled.append(backend))
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward.__qualname__) or forward)
    monkeypatch.setattr(glue, "finetune", lambda *_: (None, 0.59))  # beyond its bound
    monkeypatch.setattr(glue, "fit", lambda *_: 1 / 0)
    with pytest.raises(data.UserError, match="2 of 29 lines are not ok"):
        gpu.gpu("cpu", True, str(tmp_path / "gpu.tsv"))
    rows = rows_of(tmp_path / "gpu.tsv")
    assert [row for row in rows if row[3] != "ok"] == [["SST-2: accuracy", "0.59", ">= 0.6", "wrong"], [
        "tuning", "-", "-", "failed: ZeroDivisionError: division by zero"]]
    figures = {check: float(figure) for check, figure, *_ in rows if figure != "-"}
    assert figures["30 steps, bf16: a loss differs from fp32's by"] > 0 == figures["bf16 in hardware"]
    speed, other = (figures[f"toy 2 {name} train: tokens/s"] for name in ("bert", "transformers"))
    assert figures["toy 2 bert train: times the peer's speed"] == pytest.approx(speed / other, abs=0.01)
    g = SimpleNamespace(device=torch.device("cpu"), cuda=False, quick=True, folder=tmp_path, peak=1e9)
    names = {name.split(": ")[0] for name, *_ in gpu.speed("toy", 2, True, g)}
    assert names == {f"toy 2 {name} train compiled" for name in ("transformers", "bert", "autobert-zero")}
    assert compiled == ["eager", "Pretraining.forward", "Peer.forward"]

# ---- conformance ----
import conformance  # noqa: E402

@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    conformance.write(folder := tmp_path_factory.mktemp("conformance"))
    return folder

def test_a_ports_vectors_are_what_the_numpy_twin_computes_and_show_a_mistake(vectors):
    assert conformance.worst(vectors)[0] < 1e-5 and sum(path.stat().st_size for path in vectors.rglob("*.*")) < 3e6
    for mistake in ("1e-12 => 1e-6", 'forgotten="?" => forgotten="glu.bias"', 'if axis and => if op == "softmax" and'):
        assert conformance.worst(vectors, mistake)[0] > 1e-4

def test_the_training_steps_kernels_and_edits_of_the_vectors_by_hand(vectors):
    s, w, at = (np.load(vectors / name) for name in ("training/steps.npz", "training/weights.npz", "kernels.npz"))
    w, m, v, f = dict(w), dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), lambda t, name: s[f"{t}.{name}"].astype(float)
    for t, rate in enumerate([5e-3, 1e-2, 2e-2 / 3, 1e-2 / 3]):
        norm = math.sqrt(sum((f(t, f"gradient.{name}") ** 2).sum() for name in w))
        for name in w:
            g, decay = f(t, f"gradient.{name}") / max(1, norm), 0.01 * (not re.search("bias|norm|kernel", name))
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, s["beta2"] * v[name] + (1 - s["beta2"]) * g * g
            mean, root = m[name] / (1 - 0.9 ** (t + 1)), np.sqrt(v[name] / (1 - s["beta2"] ** (t + 1)))
            w[name] = w[name] * (1 - rate * decay) - rate * mean / (root + 1e-6)
            np.testing.assert_allclose(w[name], f(t, f"weight_after.{name}"), rtol=0, atol=1e-6)
    for k, large in ((31, 65), (15, 31), (9, 15), (7, 9), (5, 7), (3, 5)):
        centre = at[f"kernel_{large}"][:, (large - k) // 2:(large + k) // 2]
        np.testing.assert_allclose(at[f"kernel_{k}"], np.einsum("ij,hj->hi", at[f"T_{k}"], centre), atol=1e-5)
    edited = [e["after"] for e in json.loads((vectors / "search.json").read_text())["edits"]]
    assert edited[1:3] == ["a = scale(K) + V; softmax(scale(a @ T(a))) @ V", "softmax(scale(Q @ T(scale(K)))) @ V"]

# ---- instrument ----
def test_an_instrument_that_only_repeats_itself_has_an_icc_of_1_and_noise_has_none():
    assert instrument.icc(np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])) == 1
    assert instrument.icc(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])) == 0
    x = np.array([[1.0, 3.0], [5.0, 7.0]])  # between 8 - 2 / 2, within 2
    assert instrument.icc(x) == pytest.approx(7 / 9) and instrument.icc(x, 2) == pytest.approx(7 / 8)
    genes = instrument.varied(7, 2, lambda backbone: None, 0)
    assert len(set(genes.values())) == 7 and genes["bert"] == autobert.load_backbone("bert", 2)
