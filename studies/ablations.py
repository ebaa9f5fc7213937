"""What matters in a backbone (Table 5): attention alone, convolution alone, or both?

bert, autobert-zero, att-only, conv-only and a search's winner, trained alike from scratch over several seeds, with the
search's text, tasks and budget of full training, and compared in pairs of one seed. At toy size about 20 minutes on two
cores; the same command again goes on. RUN/ablations gets points.tsv (a training a row), table.txt and ablations.svg:

    python studies/ablations.py --run runs/search --seeds 8
"""
import contextlib
import functools
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
from draw import chart, measured, tsv  # noqa: E402
from glue import interval  # noqa: E402

def trained(backbones, key):
    """(MLM loss, mean score, score of each task) of a (name, seed, steps), scores x 100 and 0 if it diverged."""
    (name, seed, steps), proxy, mlm, scores = key, opnas.PROXY, math.nan, [0.0] * len(opnas.PROXY.tasks)
    with contextlib.suppress(autobert.Diverged):
        model = proxy.model(backbones[name], int(seed))
        mlm, _ = proxy.pretrain(model, int(steps), int(seed))
        scores = [100 * x for _, x in proxy.scores(model, int(seed), final=True)]
    return mlm, statistics.fmean(scores), *scores

def table(found, tasks, base="bert"):
    """Table 5 as text, scores x 100. found: {name: rows over seeds: MLM loss, average, tasks}."""
    lines = [f"{'':14}{'average':>8}  minus {base}, 95 %{''.join(f'{task:>8}' for task in tasks)}     MLM"]
    for name, rows in found.items():
        mlm, average, *scores = map(statistics.fmean, zip(*rows))
        mean, half = interval([mine[1] - other[1] for mine, other in zip(rows, found[base])])
        gap = f"{mean:+9.1f} +- {half:5.1f}" if name != base else " " * 18
        lines.append(f"{name:14}{average:8.1f}{gap}{''.join(f'{x:8.1f}' for x in scores)}{mlm:8.2f}")
    return "\n".join([*lines, ""])

def picture(found):
    """The averages as SVG: a dot a seed, and of each backbone the 95 % interval of their mean."""
    series, dots = {}, []
    for i, (name, rows) in enumerate(found.items()):
        mean, half = interval([row[1] for row in rows])
        series[name] = (i, i), (mean - half, mean + half)
        dots += [(i + 0.1, row[1], f"s{i % 6}", f"{name}, seed {seed}") for seed, row in enumerate(rows)]
    return chart("What matters in a backbone?", "backbones, as in the legend", "average score x 100", series, dots)

def ablations(run: str = "runs/search", seeds: int = 5, workers: int = 2, device: str = "auto"):
    """What matters in a backbone (Table 5)? Train the published ones, their variants and a search's winner alike, from
    scratch over several seeds, and compare them with bert, in RUN/ablations.

    run: the search's folder
    seeds: trainings of each"""
    folder, out = Path(run), Path(run) / "ablations"
    opnas.start_worker(folder, device)
    s, config, tasks = opnas.PROXY.s, opnas.PROXY.config, tuple(opnas.PROXY.tasks)
    paths = {name: name for name in autobert.BACKBONES} | {"best": str(folder / "best.json")}
    backbones = {name: autobert.load_backbone(path, config.layers) for name, path in paths.items()}
    todo = [(name, str(seed), str(s.final_steps)) for seed in range(s.seed, s.seed + seeds) for name in backbones]
    found, job = {name: [] for name in backbones}, functools.partial(trained, backbones)
    head = ("name", "seed", "steps", "MLM", "average", *tasks)
    for name, _, _, *numbers in measured(out / "points.tsv", head, todo, job, workers, (folder, device)):
        found[name].append([*map(float, numbers)])
    text = table(found, tasks)
    data.write_beside(out / "table.txt", text)
    data.write_beside(out / "ablations.svg", picture(found))
    print(text)

if __name__ == "__main__":
    data.run(__doc__, ablations, usual=ablations)
