"""The embedded default corpus: the standard library of the Python that runs us, real text every machine has."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


def documents() -> Iterator[tuple[str, str]]:
    """(name, text) of every module's source and of every English help topic, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in module_paths(root):
        try:
            yield str(path.relative_to(root)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few modules of some Pythons declare another encoding
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topics/{name}", topics[name]


def module_paths(root: Path) -> list[Path]:
    """The library's own modules, tests left out."""
    paths = (path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return sorted(path for path in paths if path.name != "topics.py")
