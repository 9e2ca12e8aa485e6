"""Write the parts of the README that are taken from the code: the map, and what the worked example printed.

python docs/write_readme.py [FILE with the output of `skycairn build`]
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = {
    "catalogs": "what each survey is; imports none of ours",
    "archives": "how survey files are had: from a folder, over HTTPS, by query; each verified before it is used",
    "mocksky": "a sky whose truth is known, in each survey's own files, or in memory",
    "mirror": "the archives on this machine, serving the mock sky, with faults if wanted",
    "tokenizers": "measurements to tokens and back: arrays to arrays",
    "pile": "what lies on disk: parts, receipts, snapshots, shards",
    "match": "which sources are one thing: pairs of tables and of files, without anything of a pile",
    "pipeline": "from raw files to shards",
    "model": "from shards to a trained model, and what it knows",
    "report": "a page about what a pile matched: numbers, charts, maps",
    "cli": "the one door",
}


def tree() -> str:
    lines = []
    for folder, caption in CAPTIONS.items():
        lines.append(f"{folder}/  {caption}")
        for path in sorted((ROOT / folder).glob("*.py")):
            said = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].rstrip(".")
            lines.append(f"  {path.name:19} {said}")
    lines.append("launch/  how runs are started on a cluster")
    for path in sorted((ROOT / "launch").iterdir()):
        lines.append(f"  {path.name:19} {path.read_text().splitlines()[1].strip('# :')}")
    return "\n".join(lines)


def filled(text: str, mark: str, body: str) -> str:
    mark = f"<!-- {mark} -->"
    before, _, after = text.split(mark)
    return f"{before}{mark}\n```\n{body}\n```\n{mark}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = filled(readme.read_text(), "tree", tree())
    if len(sys.argv) > 1:
        said = Path(sys.argv[1]).read_text()
        said = "\n".join(line.rstrip() for line in said[said.index("Sources") :].splitlines())
        text = filled(text, "example", re.split(r"\n\s*\nreal\b", said)[0].rstrip())
    readme.write_text(text)
