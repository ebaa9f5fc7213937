"""What does a backbone look like (Fig. 7), and how did pre-trainings go? Pictures as SVG, in seconds.

    python studies/draw.py backbone autobert-zero --out backbone.svg    # a name, or a file of a backbone
    python studies/draw.py losses one.tsv two.tsv --out losses.svg      # the tables beside checkpoints

The other studies draw with `chart` and count with `interval`.
"""
import html
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import ops  # noqa: E402

# ---- Tables ----


def tsv(*rows):
    """Rows as lines whose cells are parted by tabs."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def read_tsv(path):
    """The rows below the header of a table, each a dict of str."""
    head, *rows = [line.rstrip("\r\n").split("\t") for _, line in data.read_lines(path)]
    return [dict(zip(head, row)) for row in rows]


def interval(differences):
    """(mean, half width of its 95 % interval) by Student's t; the half width is inf for a single number."""
    v = len(differences) - 1
    if not v:
        return differences[0], math.inf
    # the t quantile from the normal one (Cornish-Fisher), good to .3 % from v = 4 on
    t = {1: 12.706, 2: 4.303, 3: 3.182}.get(v) or 1.960 + 2.372 / v + 2.823 / v**2 + 2.556 / v**3
    return statistics.fmean(differences), t * statistics.stdev(differences) / math.sqrt(v + 1)


# ---- Charts ----

# of each line: its colour in light and in dark, after Okabe and Ito (colour-blind readers see six, too), and its dashes
LINES = (("#0072b2", "#56b4e9", "none"), ("#d55e00", "#ff9d5c", "8 4"), ("#007a5a", "#2fcf9f", "1 5"),
         ("#b2508a", "#e8a0c8", "9 4 1 4"), ("#806000", "#f0e442", "16 5"), ("#555", "#c0c0c0", "4 4"))
_light, _dark = ("".join(f".chart .s{i}{{color:{line[mode]}}}" for i, line in enumerate(LINES)) for mode in (0, 1))
CHART = f"""<style>.chart text{{font:12px system-ui,sans-serif;fill:#222}}.chart .title{{font-weight:bold}}
.chart path{{fill:none;stroke:#ddd}}.chart .line{{stroke:currentColor;stroke-width:2;stroke-linecap:round}}
.chart .band{{fill:currentColor;fill-opacity:.2;stroke:none}}.chart circle{{fill:currentColor;fill-opacity:.75}}
.chart .off{{fill:none;stroke:#777}}{_light}
@media(prefers-color-scheme:dark){{.chart text{{fill:#ddd}}.chart path{{stroke:#3a3f45}}
.chart .off{{stroke:#aaa}}{_dark}}}</style>"""


def axis(values, log=False):
    """(low, high, about five round numbers between) of an axis. Example: [0, 10] -> (-0.4, 10.4, [0, 2, .., 10])

    log: low and high are log10 of what they stand for. Between whole numbers the round ones are whole.
    """
    whole = all(float(v).is_integer() for v in values)
    values = [math.log10(v) if log else v for v in values] or [0, 1]
    pad = 0.04 * (max(values) - min(values)) or 1
    low, high = min(values) - pad, max(values) + pad
    if log:
        powers, digits = range(math.floor(low), math.ceil(high)), (1, 2, 5) if high - low < 3 else (1,)
        return low, high, [m * 10.0**e for e in powers for m in digits if low <= e + math.log10(m) <= high]
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 6)
    step = max(step, 1) if whole else step
    return low, high, [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(title, across, up, series, dots=(), log=False):
    """Lines as SVG, light or dark as the reader's screen is. What is not finite is left out.

    series: {name: (xs, ys) or (xs, ys, lows, highs)}, the latter with a band behind the line. log: the x axis is.
    dots: (x, y, kind, tooltip); kind "s0" .. "s5" is the colour of that line, "off" a ring; y None: at the bottom.
    """
    lines = {name: [row for row in zip(*columns) if all(map(math.isfinite, row))] for name, columns in series.items()}
    rows = [row for line in lines.values() for row in line]
    left, right, columns = axis([row[0] for row in rows] + [dot[0] for dot in dots], log)
    low, high, levels = axis([y for row in rows for y in row[1:]] + [dot[1] for dot in dots if dot[1] is not None])
    top = 44 + 20 * len(lines)  # below the legend

    def px(x):
        return round(80 + 624 * ((math.log10(x) if log else x) - left) / (right - left), 1)

    def py(y):
        return round(top + 240 * (high - y) / (high - low), 1)

    def path(xs, ys):
        return " ".join(f"{px(x)},{py(y)}" for x, y in zip(xs, ys))

    title, across, up = map(html.escape, (title, across, up))
    parts = [f'<text class="title" x="80" y="20">{title}</text>',
             f'<text x="392" y="{top + 282}" text-anchor="middle">{across}</text>',
             f'<text transform="translate(16 {top + 120})rotate(-90)" text-anchor="middle">{up}</text>']
    parts += [f'<path d="M{px(x)} {top}v245"/><text x="{px(x)}" y="{top + 260}" text-anchor="middle">{x:.6g}</text>'
              for x in columns]
    parts += [f'<path d="M75 {py(y)}h629"/><text x="70" y="{py(y) + 4}" text-anchor="end">{y:.6g}</text>'
              for y in levels]
    for i, (name, line) in enumerate(lines.items()):
        pen = f'class="line s{i % 6}" stroke-dasharray="{LINES[i % 6][2]}"'
        parts.append(f'<path {pen} d="M80 {44 + 20 * i}h32"/><text x="120" y="{48 + 20 * i}">{html.escape(name)}</text>')
        xs, ys, *band = zip(*line) if line else ((), ())
        if band:
            parts.append(f'<path class="band s{i % 6}" d="M{path(xs, band[0])} {path(xs[::-1], band[1][::-1])}Z"/>')
        parts += [f'<path {pen} d="M{path(xs, ys)}h0"/>'] if line else []  # h0: of a single point, too, there is a dot
    parts += [f'<circle class="{kind}" cx="{px(x)}" cy="{py(low if y is None else y)}" r="3.5">'
              f'<title>{html.escape(tooltip)}</title></circle>' for x, y, kind, tooltip in dots]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 720 {top + 290}" width="720" '
            f'role="img" aria-label="{title}">{CHART}\n' + "\n".join(parts) + "\n</svg>\n")


# ---- Backbones ----

STYLE = """<style>text{font:12px monospace;fill:#222}.b{fill:#eef3fb;stroke:#4a6fa5}.c{fill:#fdf1e3;stroke:#b5762a}
.i{fill:none;stroke:#888}path{fill:none;stroke:#888}.l{font-weight:bold}@media(prefers-color-scheme:dark){text{fill:#ddd}
.b{fill:#1d2a3f;stroke:#7fa3d8}.c{fill:#3a2a16;stroke:#e0a860}.i,path{stroke:#999}}</style>"""


def layout(dag):
    """{slot: (column, row)}: a node stands right of all that it reads, in a row that is free until its last reader."""
    column = ops.fold(dag, [0] * 4, lambda op, *args: 1 + max(args))  # of each slot
    last, taken, place = dict(enumerate(column)), {}, {}
    for slot, (_, *args) in enumerate(dag, 4):
        last |= {a: max(last[a], column[slot]) for a in args}  # the column of its last reader
    slots = [ops.INPUTS.index(letter) for letter in ops.used(dag)] + list(range(4, 4 + len(dag)))
    for slot in sorted(slots, key=column.__getitem__):
        row = next(row for row in range(99) if taken.get(row, 0) <= column[slot])
        taken[row], place[slot] = last[slot], (column[slot], row)
    return place


def picture(backbone):
    """A backbone as SVG, as Fig. 7 draws it: a row a layer, a kernel or a graph from its inputs to its output."""
    parts, y, right = [], 10, 0
    for number, gene in enumerate(backbone, 1):
        parts.append(f'<text class="l" x="8" y="{y + 14}">L{number}</text>')
        dag = () if autobert.kernel_of(gene) else ops.parse(gene)
        at = {slot: (44 + 104 * column, y + 28 * row) for slot, (column, row) in layout(dag).items()}
        boxes = [(at[slot], dag[slot - 4], "b") if slot > 3 else (at[slot], ops.INPUTS[slot], "i") for slot in at]
        for (x2, y2), (op, *args), kind in boxes or [((44, y), (gene,), "c")]:
            parts.append(f'<rect class="{kind}" x="{x2}" y="{y2}" width="84" height="20" rx="5"/>'
                         f'<text x="{x2 + 42}" y="{y2 + 14}" text-anchor="middle">{op}</text>')
            parts += [f'<path d="M{x1 + 84} {y1 + 10}H{x2 - 18}C{x2 - 8} {y1 + 10} {x2 - 10} {y2 + 10} {x2} {y2 + 10}"/>'
                      for x1, y1 in map(at.get, args)]
            right = max(right, x2 + 100)
        y = max([y, *(y2 for _, y2 in at.values())]) + 36
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{right}" height="{y}" role="img" '
            f'aria-label="backbone of {len(backbone)} layers">{STYLE}\n' + "\n".join(parts) + "\n</svg>\n")


# ---- Commands ----


def backbone(name: str = "autobert-zero", out: str = "backbone.svg"):
    """Draw a backbone: its name, or a file of one."""
    data.write_beside(out, picture(autobert.load_backbone(name)))


def losses(*tables, out: str = "losses.svg"):
    """Draw the held-out MLM losses of pre-trainings, from the .tsv files beside their checkpoints."""
    curves = {}
    for path in tables:
        rows = [(int(row["step"]), float(row["held_mlm"])) for row in read_tsv(path) if row.get("held_mlm")]
        curves[path] = tuple(zip(*rows))
    data.write_beside(out, chart("MLM loss on held-out documents", "step", "nats", curves))


if __name__ == "__main__":
    data.run(__doc__, backbone, losses)
