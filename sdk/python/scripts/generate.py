"""Makes what is not written by hand: `types.py` from the OpenAPI document, `_sync/` from `_async/`.

python scripts/generate.py           # write
python scripts/generate.py --check   # fail if what is there is not what would be written
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PACKAGE = HERE / "src" / "offshoot"
DOCUMENT = HERE.parent.parent / "openapi" / "v1.json"

# Whole words only, the longer before those they contain.
WORDS = [
    (r"websockets\.asyncio\.client", "websockets.sync.client"),
    (r"asynccontextmanager", "contextmanager"),
    (r"AsyncHTTPTransport", "HTTPTransport"),
    (r"AsyncIterator", "Iterator"),
    (r"AsyncIterable", "Iterable"),
    (r"AsyncClient", "Client"),
    (r"AsyncVm", "Vm"),
    (r"AsyncFiles", "Files"),
    (r"AsyncProcess", "Process"),
    (r"AsyncTransaction", "Transaction"),
    (r"AsyncConnection", "Connection"),
    (r"AsyncTransport", "Transport"),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"__aiter__", "__iter__"),
    (r"__anext__", "__next__"),
    (r"StopAsyncIteration", "StopIteration"),
    (r"aiter_bytes", "iter_bytes"),
    (r"aread", "read"),
    (r"aclose", "close"),
    (r"in_thread", "in_place"),
    (r"wait_async", "wait"),
]
DROPPED = re.compile(r"\b(async|await) ")
HEADER = "# Made by scripts/generate.py from `_async/`: change that.\n"


def synchronous(text: str) -> str:
    """The same code without `async` and `await`."""
    for word, other in WORDS:
        text = re.sub(rf"\b{word}\b", other, text)
    return HEADER + DROPPED.sub("", text)


def types() -> str:
    """The OpenAPI document's schemas as `TypedDict`s."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "types.py"
        # fmt: off
        command = [
            sys.executable, "-W", "ignore", "-m", "datamodel_code_generator",
            "--input", str(DOCUMENT), "--input-file-type", "openapi", "--openapi-scopes", "schemas",
            "--output", str(out), "--output-model-type", "typing.TypedDict", "--no-use-closed-typed-dict",
            "--target-python-version", "3.10", "--use-standard-collections", "--use-union-operator",
            "--disable-timestamp", "--use-schema-description", "--disable-future-imports",
            "--custom-file-header", '"""The documents of the API, made from openapi/v1.json: do not edit."""',
        ]
        # fmt: on
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return out.read_text()


def made() -> dict[Path, str]:
    files = {PACKAGE / "types.py": types()}
    for source in sorted((PACKAGE / "_async").glob("*.py")):
        files[PACKAGE / "_sync" / source.name] = synchronous(source.read_text())
    return files


def main() -> int:
    stale = [path for path, text in made().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(HERE)} is not what scripts/generate.py makes", file=sys.stderr)
        return 1 if stale else 0
    for path, text in made().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
