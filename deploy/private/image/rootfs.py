"""The files of an image without a shell: folders and programs, and the shared libraries that they are linked with.

python rootfs.py NEW PATH...    copies each PATH, and what it needs, to the same place under NEW
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ELF = b"\x7fELF"


def below(path: Path) -> Iterator[Path]:
    """The files of a folder, or the file itself."""
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def libraries(files: Iterable[Path]) -> set[Path]:
    """What the programs and libraries among the files are linked with, by the paths at which the loader finds it."""
    found = set()
    for file in files:
        if file.is_symlink() or not file.is_file() or file.open("rb").read(4) != ELF:
            continue
        # Its answer for what is not linked dynamically is an error, and says nothing that is needed.
        lines = subprocess.run(["ldd", file], capture_output=True, text=True).stdout.splitlines()
        words = [word for line in lines for word in line.split() if word.startswith("/")]
        found |= {Path(word.rstrip(":")) for word in words}
    return found


def copy(path: Path, new: Path) -> None:
    """Copies a folder or file to its place under `new`; a link stays one, and what it leads to comes along."""
    target = new / path.relative_to("/")
    if target.is_symlink() or (target.exists() and not path.is_dir()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(os.readlink(path))
        copy(path.parent / os.readlink(path), new)
    elif path.is_dir():
        shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(path, target)


def main() -> None:
    """Copies all."""
    new, *given = map(Path, sys.argv[1:])
    for path in given:
        copy(path, new)
    for library in sorted(libraries(file for path in given for file in below(path))):
        if not (new / library.relative_to("/")).exists():
            copy(library.parent.resolve() / library.name, new)
            if (
                library.parent.resolve() != library.parent
            ):  # /lib is /usr/lib, and the loader is asked for in the former
                copy(library, new)


if __name__ == "__main__":
    main()
