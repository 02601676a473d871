"""The list of the files keeps up with them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tree_names_every_module_with_its_docstring():
    """Each module of the package stands in docs/source.md, with the first sentence of its own docstring."""
    listed = " ".join((ROOT / "docs" / "source.md").read_text(encoding="utf-8").split())
    missing = []
    for path in sorted((ROOT / "src" / "loopwise").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(docstring.split("\n\n")[0].split()).rstrip(".")
        name = f"{path.parent.name}/" if path.name == "__init__.py" and path.parent.name != "loopwise" else path.name
        if f"{name} {first}" not in listed:
            missing.append(f"{name} {first}")
    assert not missing
