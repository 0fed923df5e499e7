"""Print twenty random sentences of the code and the docs, for a review of the prose.

The commit's hash is the seed, so every reviewer of a commit reads the same ones:

    python docs/sentences.py [--count 20] [--seed TEXT]
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SENTENCE_END: Final = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z`*\[])")
_WORDS: Final = 4  # fewer are a label


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the pieces of prose in a file, each with its line."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from _texts_of_python(source)
    elif path.suffix == ".md":
        prose = re.sub(
            r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), source, flags=re.M | re.S
        )
        for paragraph in re.finditer(r"(?:^(?![#\s|]).+\n?)+|^\|.*$", prose, re.M):
            yield prose.count("\n", 0, paragraph.start()) + 1, paragraph[0]
    else:
        for comment in re.finditer(r"(?:^\s*(?:#|//) .*\n)+", source, re.M):
            yield (
                source.count("\n", 0, comment.start()) + 1,
                re.sub(r"(?m)^\s*(#|//) ", "", comment[0]),
            )
        if path.suffix == ".js":
            for string in re.finditer(r'"([^"\n]+)"|`([^`$]+)`', source):
                yield source.count("\n", 0, string.start()) + 1, string[1] or string[2]


def _texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for paragraph in node.value.split("\n\n"):
                yield node.lineno, paragraph
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def sentences() -> list[str]:
    """Return every sentence of the tracked files, with its place."""
    found = []
    for name in _git("ls-files", "*.py", "*.md", "*.js", "*.sh", "*.yml", "*.yaml").splitlines():
        for line, text in texts(ROOT / name):
            for sentence in SENTENCE_END.split(" ".join(text.split())):
                words = re.findall(r"[^\W\d_]{2,}", sentence)
                if len(words) >= _WORDS and "noqa" not in sentence:
                    found.append(f"{name}:{line}: {sentence}")
    return sorted(set(found))


def main() -> None:
    """Print the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="how many (20)")
    parser.add_argument("--seed", default=_git("rev-parse", "HEAD"), help="(the commit's hash)")
    options = parser.parse_args()
    print("\n".join(random.Random(options.seed).sample(sentences(), options.count)))  # noqa: S311 - not a secret


if __name__ == "__main__":
    main()
