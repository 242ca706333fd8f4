"""The hashes of files, compared with those that the authors published."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .published_hashes import MD5

BLOCK_BYTES = 8 * 1024 * 1024


def hash_lines(files: Iterable[Path], compare_published: bool, on_read: Callable[[int], None]) -> Iterator[str]:
    """Yields a line for each file: size, SHA-256, name, and for the authors' merged model whether its MD5 is theirs.

    `on_read` receives the number of bytes after each block.
    """
    for file in files:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(BLOCK_BYTES):
                sha256.update(block)
                if compare_published:
                    md5.update(block)
                on_read(len(block))
        line = f"{file.stat().st_size:>14,}  {sha256.hexdigest()}  {file.name}"
        if compare_published and file.name in MD5:
            is_same = md5.hexdigest() == MD5[file.name]
            line += "  as the authors published it" if is_same else f"  not the authors' (md5 {md5.hexdigest()})"
        yield line
