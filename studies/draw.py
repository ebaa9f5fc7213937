"""What does a backbone look like (Fig. 7), and how did pre-trainings go? Pictures as SVG, in seconds.

    python studies/draw.py backbone --name autobert-zero --out backbone.svg
    python studies/draw.py losses --tables bert.pt.tsv zero.pt.tsv --out losses.svg
"""
import functools
import html
import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from glue import interval, kendall_tau  # noqa: E402

# ---- Tables and charts, for other studies too ----
LINES = (("#0072b2", "none"), ("#d55e00", "8 4"), ("#007a5a", "1 5"),  # colours that colour-blind readers see; dashes
         ("#b2508a", "9 4 1 4"), ("#806000", "16 5"), ("#555", "4 4"))
STYLE = ("<style>text{font:12px sans-serif}path{fill:none;stroke:#bbb}.line{stroke:currentColor;stroke-width:2;"
         "stroke-linecap:round}.band{fill:currentColor;fill-opacity:.2;stroke:none}circle{fill:currentColor}"
         ".off{fill:none;stroke:#777}" + "".join(f".s{i}{{color:{colour}}}" for i, (colour, _) in enumerate(LINES))
         + "</style>")

def tsv(*rows):
    """Rows as lines with tabs between the cells."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)

def agreement(x, full, resamples=2000):
    """(tau-b, least, most): Kendall's, with a 95 % interval by resampling what is ranked."""
    picked = np.random.default_rng(0).integers(len(x), size=(resamples, len(x)))
    return kendall_tau(x, full)[0], *np.quantile([kendall_tau(x[i], full[i])[0] for i in picked], (0.025, 0.975))

def pairs(rows, measures, families=("",)):
    """Rows of a table, two arms of a measure each: means, paired difference with its 95 % interval, the least one that
    shows with a power of 80 %, how often the first is above (a tie: half). rows: dicts with "arm", "pair" and measures.
    measures: {measure: [(arm, other), ..]}. families: ends of pairs' names, whose pairs have rows of their own."""
    table = [("measure", "arm", "mean", "other", "its mean", "difference", "+-", "detectable", "above", "pairs")]
    todo = [(family, measure, *two) for family in families for measure, twos in measures.items() for two in twos]
    for family, measure, a, b in todo:
        found = {(row["arm"], row["pair"]): float(row[measure]) for row in rows if row["pair"].endswith(family)}
        both = [(x, found[b, pair]) for (arm, pair), x in found.items() if arm == a]
        mean, half = interval([x - y for x, y in both])
        above = fmean((x > y) + (x == y) / 2 for x, y in both)
        x, y, *more = (f"{z:.4f}" for z in (*map(fmean, zip(*both)), mean, half, 1.43 * half, above))
        table.append((f"{measure} {family}".strip(), a, x, b, y, *more, len(both)))
    return table

def before_the_last(s, log):
    """A search's log without the last round, whose trainings are longer."""
    return [c for c in log if opnas.plan(s)[c.round][0] != "last"]

def begin(folder, s, corpus, glue):
    """Load this process's Proxy, in a folder that has no other settings. corpus: a text file or a prepared folder."""
    kept, path = data.open_corpus(corpus, folder / "corpus", autobert.SIZES[s.size].vocab), folder / "settings.json"
    about = json.dumps({"corpus": str(kept.folder), "glue": glue, **asdict(s)})
    if path.exists():
        data.check_same(json.loads(path.read_text()), json.loads(about), folder)
    data.write_beside(path, about)
    opnas.start_worker(folder, "cpu")

def measured(path, head, todo, job, workers, start):
    """Rows (*key, *job(key)) of a table file, as text. Those that it lacks are computed, and written one by one."""
    text = path.read_text() if path.exists() else tsv(head)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), opnas.start_worker, start)
    results = {key: pool.submit(job, key).result if workers > 1 else functools.partial(job, key)
               for key in todo if "\n" + "\t".join(key) + "\t" not in text}
    try:
        for key, result in results.items():
            text += (row := tsv((*key, *result())))
            data.write_beside(path, text)
            print(row[-100:], end="", flush=True)
    finally:
        for worker in multiprocessing.active_children():
            worker.kill()
    return [row for row in (line.split("\t") for line in text.splitlines()) if tuple(row[:len(todo[0])]) in todo]

def trained(key):
    """(seconds, held-out MLM and NSP losses, score of each task) of a (name, seed, backbone)."""
    (_, seed, backbone), begun, proxy = key, time.process_time(), opnas.PROXY
    model = proxy.model(tuple(backbone.split(" | ")), int(seed))
    losses = proxy.pretrain(model, proxy.s.final_steps, int(seed))
    scores = [x for _, x in proxy.scores(model, int(seed), final=True)]
    return time.process_time() - begun, *losses, *scores

def svg(width, height, parts):
    """A picture of SVG parts."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="background:#fff">'
            f"{STYLE}\n" + "\n".join(parts) + "\n</svg>\n")

def axis(values):
    """(low, high, about five round numbers between) of an axis. Example: [0, 10] -> (-0.4, 10.4, [0, 2, .., 10])"""
    low, high = min(values, default=0), max(values, default=1)
    pad = 0.04 * (high - low) or 1
    low, high = low - pad, high + pad
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 6)
    return low, high, [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

def chart(title, across, up, series, dots=(), log=False):
    """Lines as SVG. What is not finite is left out.

    series: {name: (xs, ys) or (xs, ys, lows, highs)}, the latter with a band. log: the x axis is, marked at all xs.
    dots: (x, y, kind, tooltip); kind "s0" .. "s5" is the colour of that line, "off" a ring; y None: at the bottom."""
    turn = math.log10 if log else float
    lines = [[row for row in zip(*columns) if all(map(math.isfinite, row))] for columns in series.values()]
    rows, top = [row for line in lines for row in line], 44 + 20 * len(lines)  # below the legend
    left, right, columns = axis([turn(row[0]) for row in (*rows, *dots)])
    low, high, levels = axis([y for row in rows for y in row[1:]] + [dot[1] for dot in dots if dot[1] is not None])

    def px(x):
        return round(80 + 624 * (turn(x) - left) / (right - left), 1)

    def py(y):
        return round(top + 240 * (high - y) / (high - low), 1)

    def path(xs, ys):
        return " ".join(f"{px(x)},{py(y)}" for x, y in zip(xs, ys))

    title, across, up, *names = map(html.escape, (title, across, up, *series))
    parts = [f'<text font-weight="bold" x="80" y="20">{title}</text>',
             f'<text x="392" y="{top + 282}" text-anchor="middle">{across}</text>',
             f'<text transform="translate(16 {top + 120})rotate(-90)" text-anchor="middle">{up}</text>']
    parts += [f'<path d="M{px(x)} {top}v245"/><text x="{px(x)}" y="{top + 260}" text-anchor="middle">{x:.6g}</text>'
              for x in (sorted({row[0] for row in rows}) if log else columns)]
    parts += [f'<path d="M75 {py(y)}h629"/><text x="70" y="{py(y) + 4}" text-anchor="end">{y:.6g}</text>'
              for y in levels]
    for i, (name, line) in enumerate(zip(names, lines)):
        pen, at = f'class="line s{i % 6}" stroke-dasharray="{LINES[i % 6][1]}"', 44 + 20 * i
        xs, ys, *band = zip(*line) if line else ((), ())
        parts.append(f'<path {pen} d="M80 {at}h32"/><text x="120" y="{at + 4}">{name}</text>')
        if band:
            parts.append(f'<path class="band s{i % 6}" d="M{path(xs, band[0])} {path(xs[::-1], band[1][::-1])}Z"/>')
        if line:
            parts.append(f'<path {pen} d="M{path(xs, ys)}h0"/>')  # h0: a line of one point is a dot
    parts += [f'<circle class="{kind}" cx="{px(x)}" cy="{py(low if y is None else y)}" r="3.5">'
              f"<title>{html.escape(tooltip)}</title></circle>" for x, y, kind, tooltip in dots]
    return svg(720, top + 290, parts)

# ---- Backbones ----
def picture(backbone):
    """A backbone as SVG, a row a layer: a kernel, or inputs and ops in the order of the path, arcs to their readers."""
    parts, y, right = [], 0, 0
    for number, gene in enumerate(backbone, 1):
        dag = () if autobert.kernel_of(gene) else ops.parse(gene)
        slots = [slot for slot, letter in enumerate(ops.INPUTS) if letter in ops.used(dag)] + [*range(4, 4 + len(dag))]
        place = {slot: 44 + 92 * i for i, slot in enumerate(slots)}
        arcs = sorted({(place[a], place[slot]) for slot, (_, *args) in enumerate(dag, 4) for a in args})
        boxes = [(x, ops.INPUTS[slot] if slot < 4 else dag[slot - 4][0]) for slot, x in place.items()] or [(44, gene)]
        y += 16 + max([(b - a) // 16 for a, b in arcs], default=0)
        parts.append(f'<text font-weight="bold" x="8" y="{y + 14}">L{number}</text>')
        parts += [f'<rect x="{x}" y="{y}" width="80" height="20" rx="5" fill="#eef3fb" stroke="#4a6fa5"/>'
                  f'<text x="{x + 40}" y="{y + 14}" text-anchor="middle">{label}</text>' for x, label in boxes]
        parts += [f'<path d="M{a + 50} {y}Q{(a + b) / 2 + 40} {y - (b - a) / 8} {b + 30} {y}"/>' for a, b in arcs]
        y, right = y + 20, max(right, boxes[-1][0] + 96)
    return svg(right, y + 16, parts)

def backbone(name: str = "autobert-zero", out: str = "backbone.svg"):
    """Draw a backbone as Fig. 7 does, in a second.

    name: one of autobert.BACKBONES, or a file
    out: the picture"""
    data.write_beside(out, picture(autobert.load_backbone(name)))

def losses(tables: tuple[str, ...] = ("model.pt.tsv",), out: str = "losses.svg"):
    """Draw the MLM losses of pre-trainings on held-out documents, in a second.

    tables: those beside their checkpoints
    out: the picture"""
    curves = {}
    for path in tables:
        head, *rows = [line.rstrip("\n").split("\t") for _, line in data.read_lines(path)]
        step, loss = head.index("step"), head.index("held_out_mlm")
        curves[path] = list(zip(*[(int(row[step]), float(row[loss])) for row in rows if row[loss]]))
    data.write_beside(out, chart("MLM loss on held-out documents", "step", "nats", curves))

if __name__ == "__main__":
    data.run(__doc__, backbone, losses)
