"""Figures of the code, as a reader meets it: `python -m benchmarks.house --against REV`."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from functools import cached_property
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("CausalPerturbVAE", "HybridResidualModel", "PerturbFlow", "PerturbDiffusion")
#: What a table shows, and the most that it may be.
BARS = {
    # 160 and 38,000 when the house was moved into. Then came checks of files and input, shards,
    # training on sparse rows, inducing rows, effects streamed to files and clusters; then fourteen
    # files of questions in `tl` and `pl`, commands that train, predict and report, the report of a
    # study, and features from networks, targets, text and other screens.
    "source files": 185,
    "lines": 51_500,
    "lines of the longest file": 800,
    "most files in one folder": 16,
    "modules with one importer, outside their folder": 0,
    "imports of another folder's private modules": 0,
    "classes above CausalPerturbVAE": 4,
    "classes above HybridResidualModel": 4,
    "classes above PerturbFlow": 4,
    "classes above PerturbDiffusion": 4,
    "files that importing the diffusion loads": 50,
    "files that importing CausalPerturbVAE loads": 55,
    "files that importing the hybrid loads": 80,
    "files that hybrid.predict runs through": 30,
    "public names of generative": 20,
    "public names of metrics": 35,
    "class names that stand for two things": 0,
    "pairs of files that share six lines or more": 30,
}

# Runs in a process of its own, on the source that is measured.
PROBE = """
import json, os, sys, warnings
import scvi_perturb as svp
from scvi_perturb.data import SimulatorConfig, simulate_screen
root = os.path.dirname(svp.__file__)
warnings.simplefilter("ignore")
own = lambda cls: [c for c in cls.__mro__[1:] if c.__module__.startswith("scvi_perturb")]
found = {name: len(own(getattr(svp, name))) for name in sys.argv[1:]}
config = SimulatorConfig(n_perturbations=4, n_combinations=2, n_contexts=2, control_fraction=0.3)
adata = simulate_screen(n_cells=400, n_genes=30, seed=0, config=config)
model_class = svp.HybridResidualModel
model_class.setup_anndata(adata, context_keys=["cell_type"])
model = model_class(adata, n_latent=4, n_hidden=16, n_layers=1)
model.train(max_epochs=2, n_steps=10, accelerator="cpu", enable_progress_bar=False)
pair = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})[:2]
files = set()
def note(frame, event, arg):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(root):
        files.add(name)
sys.setprofile(note)
model.predict(pair, n_samples=20)
sys.setprofile(None)
print("\\n" + json.dumps({"above": found, "predict": len(files)}))
"""


class Source:
    """The modules of a package, as text."""

    def __init__(self, package: Path) -> None:
        self.package = package
        self.paths = {self._name(path): path for path in sorted(package.rglob("*.py"))}
        self.texts = {name: path.read_text(encoding="utf-8") for name, path in self.paths.items()}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def _name(self, path: Path) -> str:
        parts = (self.package.name, *path.relative_to(self.package).with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    def imports(self, name: str, *, types: bool) -> set[str]:
        """Return the modules of the package that one imports at its top."""
        found = set()
        todo = list(self.trees[name].body)
        while todo:
            node = todo.pop()
            if isinstance(node, ast.If) and (types or "TYPE_CHECKING" not in ast.dump(node.test)):
                todo += node.body + node.orelse
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in self.paths else node.module)
        return {module for module in found if module in self.paths and module != name}

    @cached_property
    def edges(self) -> dict[str, set[str]]:
        """Imports of each module, types included."""
        return {name: self.imports(name, types=True) for name in self.paths}

    def folder(self, name: str) -> Path:
        """Return the folder of a module."""
        return self.paths[name].parent

    def lonely(self) -> list[str]:
        """Return the modules with a single importer, which lies outside their folder."""
        importers = defaultdict(set)
        for name in self.paths:
            for used in self.imports(name, types=False):
                importers[used].add(name)
        return [
            name
            for name in self.paths
            if self.paths[name].name != "__init__.py"
            and len(importers[name]) == 1
            and self.folder(next(iter(importers[name]))) != self.folder(name)
        ]

    def private_imports(self) -> list[str]:
        """Return the imports of private modules of another folder, unless one lies in the other."""
        return [
            f"{name} -> {used}"
            for name, edges in self.edges.items()
            for used in sorted(edges)
            if used.rpartition(".")[2].startswith("_")
            and self.folder(used) != self.package
            and self.folder(used) not in (self.folder(name), *self.folder(name).parents)
        ]

    def loaded(self, name: str) -> set[str]:
        """Return the modules that importing one loads."""
        seen: set[str] = set()
        todo = [name]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += self.imports(module, types=False)
        return seen

    def model(self, word: str) -> str:
        """Return the module of a model, by a word of its path."""
        ends = (word, "model")
        return next(
            name
            for name in self.paths
            if ".model." in name and word in name and name.rpartition(".")[2].strip("_") in ends
        )

    def repeated_classes(self) -> list[str]:
        """Return the names of classes that are defined more than once."""
        names = Counter(
            node.name
            for tree in self.trees.values()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        )
        return sorted(name for name, n in names.items() if n > 1)

    def public(self, part: str) -> list[str]:
        """Return the public names of a part."""
        for node in self.trees[f"{self.package.name}.{part}"].body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                return list(ast.literal_eval(node.value))
        return []

    def rooms(self) -> dict[str, set[str]]:
        """Return which rooms each room imports from, those reached by way of others left out."""
        room = {name: name.split(".")[1] for name in self.paths if "." in name}
        room = {name: part for name, part in room.items() if (self.package / part).is_dir()}
        graph: dict[str, set[str]] = {part: set() for part in room.values()}
        for name, part in room.items():
            used = {room[other] for other in self.edges[name] if other in room}
            graph[part] |= used - {part}
        return {
            part: {a for a in used if not any(a in _reached(graph, b) for b in used - {a})}
            for part, used in graph.items()
        }

    def near_copies(self, n_lines: int = 6) -> list[tuple[str, str]]:
        """Return the pairs of modules that share as many lines in a row.

        Shared are lines that are the same, docstrings among them; and statements that are alike
        but for names and values, where they are more than lists of arguments. Imports and comments
        do not count, nor do runs that stand in more than eight modules.
        """
        places = defaultdict(set)
        for name, tree in self.trees.items():
            for lines in _lines(self.texts[name], tree):
                for start in range(len(lines) - n_lines + 1):
                    places["\n".join(lines[start : start + n_lines])].add(name)
        pairs = set()
        for found in places.values():
            if 1 < len(found) <= 8:
                pairs |= set(combinations(sorted(found), 2))
        return sorted(pairs)


def _reached(graph: dict[str, set[str]], part: str) -> set[str]:
    """Return all rooms that one imports from, by way of others too."""
    found: set[str] = set()
    todo = [part]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.5


def draw(source: Source, path: Path) -> None:
    """Draw the rooms, each above those that it imports from, with an arrow to each."""
    from matplotlib.figure import Figure

    graph = source.rooms()
    height: dict[str, int] = {}
    while len(height) < len(graph):
        ready = [part for part in graph if part not in height and graph[part] <= height.keys()]
        if not ready:
            msg = f"Rooms import each other in a circle: {sorted(set(graph) - set(height))}."
            raise ValueError(msg)
        for part in ready:
            height[part] = 1 + max((height[used] for used in graph[part]), default=-1)
    levels = [sorted(p for p in graph if height[p] == h) for h in range(max(height.values()) + 1)]
    place: dict[str, tuple[float, float]] = {}
    for h, level in enumerate(levels):  # each above the middle of what it imports, and apart
        wanted = {p: _mean([place[used][0] for used in graph[p]]) for p in level}
        row = sorted(level, key=lambda p: (wanted[p], p))
        for i, part in enumerate(row):
            even = (i + 0.5) / len(row)
            place[part] = (even if h == 0 else 0.5 * (even + wanted[part]), h + 0.12 * (i % 2))
    figure = Figure(figsize=(8, 1.1 * len(levels)), layout="constrained")
    axes = figure.add_subplot()
    for part, used in graph.items():
        for other in used:
            arrow = {"arrowstyle": "-|>", "color": "0.55", "shrinkA": 22, "shrinkB": 24,
                     "connectionstyle": "arc3,rad=0.12"}  # fmt: skip
            axes.annotate("", xy=place[other], xytext=place[part], arrowprops=arrow)
    for part, (x, y) in place.items():
        own = [name for name in source.paths if f"{name}.".split(".")[1] == part]
        lines = sum(source.texts[name].count("\n") for name in own)
        label = f"{part}\n{len(own)} files\n{lines:,} lines"
        box = {"boxstyle": "round,pad=0.5", "facecolor": "#e8f0f7", "edgecolor": "#33658a"}
        axes.text(x, y, label, ha="center", va="center", fontsize=8, bbox=box)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(levels) - 0.4))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None})


_NAME = re.compile(
    r"\b(?!(?:def|class|return|for|if|else|in|not|with|raise|self|None)\b)[A-Za-z_]\w*"
)


#: What a line of a list of arguments is, once names and values are made alike.
_ARGUMENT = re.compile(r"[x1](\s*[:=].*)?,|x: [^=]*( = .*)?|\w+|\*,")


def _lines(text: str, tree: ast.Module) -> tuple[list[str], list[str]]:
    """Return the lines as they are, and the statements with names and values made alike."""
    imports, docs = set(), set()
    for node in ast.walk(tree):
        own = range(node.lineno, node.end_lineno + 1) if hasattr(node, "lineno") else ()
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= set(own)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs |= set(own)
    same, alike = [], []
    for i, line in enumerate(text.splitlines(), 1):
        code = line.partition("#")[0].strip()
        if i in imports or not re.search(r"\w{2}", code):
            continue
        same.append(code)
        code = re.sub(r"\"[^\"]*\"|'[^']*'|\b\d[\d_.e-]*", "1", code)
        code = _NAME.sub("x", code)
        if i not in docs and not _ARGUMENT.fullmatch(code):
            alike.append(code)
    return same, alike


def figures(src: Path) -> dict[str, int]:
    """Return the figures of the package below `src`, in the order of `BARS`."""
    source = Source(src / "scvi_perturb")
    lengths = [text.count("\n") for text in source.texts.values()]
    probe = _probe(src)
    return {
        "source files": len(source.paths),
        "lines": sum(lengths),
        "lines of the longest file": max(lengths),
        "most files in one folder": max(Counter(map(source.folder, source.paths)).values()),
        "modules with one importer, outside their folder": len(source.lonely()),
        "imports of another folder's private modules": len(source.private_imports()),
        **{f"classes above {name}": probe["above"][name] for name in MODELS},
        "files that importing the diffusion loads": len(source.loaded(source.model("diffusion"))),
        "files that importing CausalPerturbVAE loads": len(source.loaded(source.model("causal"))),
        "files that importing the hybrid loads": len(source.loaded(source.model("hybrid"))),
        "files that hybrid.predict runs through": probe["predict"],
        "public names of generative": len(source.public("generative")),
        "public names of metrics": len(source.public("metrics")),
        "class names that stand for two things": len(source.repeated_classes()),
        "pairs of files that share six lines or more": len(source.near_copies()),
    }


def _probe(src: Path) -> dict:
    """Return what only running the package tells."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *MODELS],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(src), "MPLBACKEND": "Agg"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(now: dict[str, int], before: dict[str, int] | None) -> str:
    """Return a Markdown table of figures, with those of another revision."""
    head = ["", *(["before"] if before else []), "now", "bar"]
    rows = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, bar in BARS.items():
        values = [before[name]] if before else []
        values += [now[name], bar]
        rows.append(f"| {name} | " + " | ".join(f"{value:,}" for value in values) + " |")
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="REV", help="a revision to compare with")
    parser.add_argument("--draw", metavar="FILE", type=Path, help="draw the rooms, and no table")
    options = parser.parse_args()
    if options.draw:
        draw(Source(ROOT / "src" / "scvi_perturb"), options.draw)
        return
    before = None
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "archive", options.against, "src"],
                cwd=ROOT, check=True, capture_output=True,
            )  # fmt: skip
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            before = figures(Path(folder) / "src")
    print(table(figures(ROOT / "src"), before))


if __name__ == "__main__":
    main()
