"""Files' hashes, and what the authors say they should be."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .published_hashes import MD5

BLOCK = 8 * 1024 * 1024


def compare(files: Iterable[Path], with_published: bool, read: Callable[[int], None]) -> Iterator[str]:
    """A line for each file: size, sha256, name; for the authors' merged model also whether its md5 is theirs.

    `read` is told the bytes as they go.
    """
    for file in files:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(BLOCK):
                sha256.update(block)
                if with_published:
                    md5.update(block)
                read(len(block))
        line = f"{file.stat().st_size:>14,}  {sha256.hexdigest()}  {file.name}"
        if with_published and file.name in MD5:
            same = md5.hexdigest() == MD5[file.name]
            line += "  as the authors published it" if same else f"  not the authors' (md5 {md5.hexdigest()})"
        yield line
