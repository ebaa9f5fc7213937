"""Which points did the paper leave open, and what did we decide? Rewrites README's list of choices and deviations.

Every `CHOICE:` and `DEVIATION:` of the six files is listed: where it stands, and its first sentence. In a second:

    python studies/choices.py
"""
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import data  # noqa: E402

def place(tree, number):
    """The name of the innermost function, class or assignment around a line, or right behind it."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign))]
    around = [node for node in nodes if node.lineno <= number <= node.end_lineno]
    behind = [node for node in nodes if node.lineno > number]
    node = max(around, key=lambda node: node.lineno) if around else min(behind, key=lambda node: node.lineno)
    return node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else getattr(
        node, "name", "")

def choices(name):
    """Yield what a module chose."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    for found in re.finditer(r'(CHOICE|DEVIATION): ((?:(?!"""|CHOICE|DEVIATION)[^\n]|\n +(?:# )?(?=[^\s#"]))*)', text):
        number = text[:found.start()].count("\n") + 1
        if "#" in text.split("\n")[number - 1][:found.start() - text.rfind("\n", 0, found.start())]:
            words = re.match(r"[^\n]*(?:\n +# [^\n]*)*", found[2])[0]  # a comment ends with its lines
        else:
            words = found[2]
        words = " ".join(re.sub(r"\n +# ", " ", words).split())
        sentence = re.split(r'(?<=[\w")0-9])\. (?=[A-Z_])', words.replace("App. ", "App.~"))[0]
        yield f"`{place(tree, number)}` {found[1]}: {sentence.replace('App.~', 'App. ').rstrip('.')}"

def write():
    """Rewrite README's list of choices and deviations from the code: every one of them, with its place. A second."""
    files = {name: list(choices(name)) for name in "ops data autobert supernet glue opnas".split()}
    lines = [f"- **{name}.py** " + "; ".join(found) + "." for name, found in files.items()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, rest = readme.split("<!-- choices -->")
    data.write_beside(ROOT / "README.md", head + "<!-- choices -->\n" + "\n".join(lines) + "\n<!-- /choices -->"
                      + rest.split("<!-- /choices -->")[1])
    print(f"README.md lists {sum(map(len, files.values()))} choices and deviations")

if __name__ == "__main__":
    data.run(__doc__, usual=write)
