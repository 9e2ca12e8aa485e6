"""Print the map of the README: every file with its first line."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = {
    "catalogs": "what each survey is; imports none of ours",
    "mocksky": "a sky whose truth is known, in each survey's own files",
    "tokenizers": "measurements to tokens and back: arrays to arrays",
    "pile": "what lies on disk: parts, receipts, snapshots, shards",
    "pipeline": "from raw files to shards",
    "model": "from shards to training; the batches, so far",
    "cli": "the one door",
}
for folder, caption in CAPTIONS.items():
    print(f"{folder}/  {caption}")
    for path in sorted((ROOT / folder).glob("*.py")):
        said = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].rstrip(".")
        print(f"  {path.name:20} {said}")
