"""Does a search on real text find what beats BERT? Toy width, 4,000 pieces, books and Wikipedia, no shared weights.

The paper scores a candidate after 40,000 steps of 160 rows (App. D.1). Here it gets 2,000 steps of 32 rows and some
10,000 rows of two tasks, about two minutes of a core. By then most backbones have left the plateau of word frequencies,
and some have learned next-sentence prediction. `tasks` shows on which GLUE tasks any backbone leaves chance after so
little, in twenty minutes on two cores; `search` searches with two of them, then trains winner, bert and
autobert-zero for twice the steps, in two and a half hours. The same command again goes on:

    python data.py prepare --text wiki.txt.xz books.txt.xz --out corpus --vocab 4000
    python studies/real.py tasks --corpus corpus --glue glue
    python studies/real.py search --corpus corpus --glue glue
"""
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
from draw import begin, measured, trained  # noqa: E402
from glue import PRESETS, score  # noqa: E402

REAL = replace(opnas.EVENING, tasks=("STS-B", "MNLI"), population=24, parents=3, children=3, rounds=3, finalists=6,
               steps=2000, final_steps=4000, pretrain=replace(autobert.PRETRAIN["toy"], n=48, precision="bf16"),
               tune=replace(PRESETS["toy"], epochs=3, n=48, precision="bf16"))

def tasks(backbones: int = 8, corpus: str = "corpus", glue: str = "glue", out: str = "runs/real-tasks",
          workers: int = 2):
    """On which GLUE tasks with 1,000 dev rows does any backbone leave chance? Trains some as the search does.

    backbones: the published four and random ones
    corpus: a folder that `data.py prepare` wrote
    glue: the folder with CoLA, STS-B, .."""
    folder, rng = Path(out), random.Random("real")
    s = replace(REAL, tasks=("CoLA", "STS-B", "QQP", "MNLI", "QNLI"), final_steps=REAL.steps)
    begin(folder, s, corpus, glue)
    genes = {name: autobert.load_backbone(name, opnas.PROXY.config.layers) for name in autobert.BACKBONES}
    while len(genes) < backbones:
        if not opnas.PROXY.probe(backbone := opnas.random_backbone(opnas.PROXY.config.layers, rng)):
            genes[f"random-{len(genes)}"] = backbone
    todo = [(name, "0", " | ".join(backbone)) for name, backbone in genes.items()]
    head = ("name", "seed", "backbone", "seconds", "mlm", "nsp", *s.tasks)
    rows = measured(folder / "rows.tsv", head, todo, trained, workers, (folder, "cpu"))
    for task, column in zip(s.tasks, list(zip(*rows))[6:]):
        y, x = opnas.PROXY.tasks[task][1][1], [float(cell) for cell in column]
        chance = max(score(task, y, np.full_like(y, label)) for label in np.unique(y)[:3])  # the best constant
        print(f"{task:6}{min(x):.3f} to {max(x):.3f}, chance {chance:.3f}, {len(y)} dev rows")

def search(corpus: str = "corpus", glue: str = "glue", out: str = "runs/real", workers: int = 2):
    """Search on real text, then train winner, bert and autobert-zero.

    corpus: a folder that `data.py prepare` wrote
    glue: the folder with STS-B and MNLI"""
    opnas.search(vars(REAL), corpus=corpus, glue=glue, out=out, workers=workers)

if __name__ == "__main__":
    data.run(__doc__, tasks, search)
