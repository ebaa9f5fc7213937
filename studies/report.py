"""What did a search find, and how? Its folder as one page, report.html, finished or not. It takes a second:

    python studies/report.py --run runs/search

The page has the search curve (one line of Fig. 6), the winner as Fig. 7 draws it, the tables that the UCB draws from
(Eq. 3), what was rejected and why, the winner's family, the final trainings and the settings.
"""
import collections
import html
import json
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from autobert import KERNELS, load_backbone  # noqa: E402
from draw import before_the_last, chart, picture  # noqa: E402

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><title>{title}</title><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;background:#fff;color:#222}}
div{{overflow-x:auto}}table{{border-collapse:collapse;font-size:.85rem}}p,small{{color:#666;max-width:75ch}}
th,td{{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}}.heat td{{text-align:center;padding:.2rem}}
small{{display:block}}</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""

def line(c, M):
    """A Candidate in one line, with the layers that its parent has not. M: {number: Candidate}."""
    other = M[c.parent].backbone if c.parent in M else [None] * len(c.backbone)
    new = " ".join(f"L{i} {gene}" for i, (gene, old) in enumerate(zip(c.backbone, other), 1) if gene != old)
    score = f"rejected: {c.reason}" if c.score is None else f"score={c.score:.3f}"
    return f"candidate={c.number} round={c.round} parent={c.parent} {score} | {new}"

def rows(pairs):
    """An HTML table of (head, text) rows."""
    cells = (f"<tr><th>{html.escape(str(head))}</th><td>{html.escape(str(text))}</td></tr>" for head, text in pairs)
    return f"<table>{''.join(cells)}</table>"

def facts(s, log, M, best):
    """(what, text) rows: the headlines of a run."""
    expected = sum(size for _, size, _ in opnas.plan(s))
    seconds = [c.seconds for c in log if c.number is not None]
    scored = sum(c.score is not None for c in M.values())
    yield "candidates", f"{len(M)} of {expected} judged, {scored} with a score"
    yield "turned away", f"{len(log) - len(seconds)} before any training"
    yield "judgements", f"{len(seconds)}, {sum(seconds):.0f} s in all, median {statistics.median(seconds or [0]):.1f} s"
    yield "best", line(best, M) if best else "none has a score yet"
    yield "score", f"the mean of {', '.join(s.tasks)}, from 0 to 1"

def curve(log, M):
    """The search curve: the best score as a line, each judgement a dot."""
    dots, best, known = [], [], set()
    for i, c in enumerate(log):
        kind = "s5" if c.number in known else "s2" if c.parent is None else "s1"
        dots.append((i, c.score, "off" if c.score is None else kind, line(c, M)))
        known.add(c.number)
        best += [(i, x.score) for x in opnas.best_of(opnas.last_of(log[:i + 1]), 1)]
    return chart("The search", "judgement", "score", {"best": list(zip(*best)) or ((), ())}, dots)

def heat(tables, places, choices):
    """UCB's tables as HTML: a row a choice, a column a place, coloured by mean score. places: {place: name}."""
    means = [statistics.fmean(scores) for place in places for scores in tables.tables[place].values()] or [0]
    found = ["<tr><th></th>" + "".join(f"<th>{name}</th>" for name in places.values()) + "</tr>"]
    for choice in choices:
        cells = [f"<th>{choice}</th>"]
        for place in places:
            scores, p = tables.tables[place].get(choice, []), tables.p(place)[choice]
            mu = statistics.fmean(scores) if scores else min(means)
            shade = 0.6 * (mu - min(means)) / (max(means) - min(means) or 1)
            cells.append(f'<td style="background:rgba(0,114,178,{shade:.2f})">{f"{mu:.3f}" if scores else "never"}'
                         f"<small>N {len(scores)}<br/>p {p:.2f}</small></td>")
        found.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="heat">{"".join(found)}</table>'

def family(best, M):
    """The Candidates from a random backbone down to the best one."""
    found = [best] if best else []
    while found and found[0].parent is not None:
        found.insert(0, M[found[0].parent])
    return found

def sections(folder, about, s, log):
    """(head, explanation, HTML) of each part of the page."""
    M = {c.number: c for c in opnas.last_of(log)}
    best = next(iter(opnas.best_of(M.values(), 1)), None)
    if (folder / "best.json").exists():  # the winner of the last round
        chosen = load_backbone(folder / "best.json")
        best = next(c for c in M.values() if c.backbone == chosen)
    tables = opnas.OperationPriority(M.values(), s.alpha, math.inf if s.strategy == "ea" else s.tau)
    layers = {place: f"L{place[1] + 1}" for place in sorted(p for p in tables.tables if not isinstance(p, int))}
    positions = {place: place + 1 for place in sorted(p for p in tables.tables if isinstance(p, int))}
    final = (folder / "table.txt").read_text() if (folder / "table.txt").exists() else "not yet"
    yield "In short", "", rows(facts(s, log, M, best))
    yield ("Search curve", "A dot is the score after a judgement: green of a random backbone, orange of a mutant, grey "
           "of one judged again, without the finalists; a ring at the bottom has no score. Point at it to read it.",
           curve(log, M))
    yield ("Best", "Convolutions; of attentions inputs and ops in the order of the path, with an arc to each reader.",
           picture(best.backbone) + rows((f"L{i}", gene) for i, gene in enumerate(best.backbone, 1)) if best else "")
    yield ("Ops", "By position in the path: mean score of the candidates that have the op there (a rejected one counts "
           "as the worst), N times seen, p that a mutation draws it next.", heat(tables, positions, ops.OPS))
    yield "Kernels", "The same by layer.", heat(tables, layers, KERNELS)
    yield "Rejected", "", rows(collections.Counter(c.reason for c in log if c.score is None).most_common())
    yield "Family of the best", "", rows((c.number, line(c, M)) for c in family(best, M))
    yield "Final trainings", "From scratch with one budget; scores x 100.", f"<pre>{html.escape(final)}</pre>"
    yield "Settings", "", rows(about.items())

def report(run: str = "runs/search"):
    """What did a search find, and how? Write its folder as one page, RUN/report.html, finished or not, in a second.

    run: the folder"""
    folder = Path(run)
    about, state = json.loads((folder / "settings.json").read_text()), opnas.load(folder / "state.pt")
    known = opnas.SearchSettings.__dataclass_fields__
    s = opnas.SearchSettings(**{key: x for key, x in about.items() if key in known})
    log = before_the_last(s, [opnas.Candidate(*c) for c in state["log"]])
    body = "\n".join(f"<h2>{head}</h2><p>{text}</p><div>{what}</div>"
                     for head, text, what in sections(folder, about, s, log))
    data.write_beside(folder / "report.html", PAGE.format(title=f"Run {html.escape(folder.name)}", body=body))
    print(f"wrote {folder / 'report.html'}")

if __name__ == "__main__":
    data.run(__doc__, report, usual=report)
