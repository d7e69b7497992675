"""Text files: decompression, and detection of the encoding."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from task.data.raw import DataError

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
BLOCK = 2**20
WRONG_KIND = "the data is not of the kind that its name says"
BOMS = {  # 32 bits first: they begin like those of 16 bits
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UTF8 = "utf-8-sig"
WESTERN = "cp1252"  # Latin-1 with the quotes and dashes of Windows
# In western languages letters beyond ASCII are isolated; in others they are in runs, and some take two bytes.
IN_A_ROW, MOST_IN_A_ROW = re.compile(b"[\x80-\xff](?=[\x80-\xff])"), 0.2
NO_WESTERN = re.compile(b"[\x81\x8d\x8f\x90\x9d]")
BAD, GOOD = re.compile("[\udc80-\udcff]"), re.compile("[\x80-\ud7ff\ue000-\U0010ffff]")
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError)
CURE = "save it as UTF-8, or name its encoding by data.encoding, such as 'cp1252', 'cp1251', 'gb18030' or 'shift_jis'"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if its name says that it is compressed. Raises DataError if that fails."""
    try:
        with _unpacked(path) as file:
            yield file
    except RecursionError:  # raised by the code that uses the file
        raise
    except BROKEN as error:
        problem = "the file cannot be unpacked" if path.suffix.lower() in PACKED else "the file cannot be read"
        raise DataError(f"{path}: {problem}: {error}", problem) from error


@contextmanager
def text_of(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a file as text, with unchanged line ends. Raises DataError if it is not in this encoding."""
    with opened(path) as file:
        try:
            yield io.TextIOWrapper(file, UTF8 if _same(encoding, "utf-8") else encoding, newline="")
        except UnicodeError as error:
            line = _bad_line(path, encoding)
            problem = f"not in the encoding {encoding}"
            raise DataError(f"{path}, line {line} is {problem}; {CURE}", f"the data is {problem}") from error


def encoding_of(path: Path, given: str) -> tuple[str, tuple[str, ...]]:
    """Return the encoding of a file, and notices on it: `given`, the one of its byte order mark, UTF-8, or
    Windows-1252. Raises DataError if it is none of these."""
    if given:
        return given, ()
    with opened(path) as file:
        start = file.read(BLOCK)
        for mark, encoding in BOMS.items():
            if start.startswith(mark):
                return encoding, () if encoding == UTF8 else (f"{path} is read as {encoding.upper()}",)
        seen = _Seen()
        while start:
            seen.block(start)
            start = file.read(BLOCK)
        seen.block(b"", final=True)
    if not seen.bad:
        return UTF8, ()
    where = f"{path}, line {seen.line}"
    if seen.zeros:
        problem = "the file is not UTF-8 and has bytes of zero: it is no text, or data.encoding = 'utf-16-le'"
        raise DataError(f"{where}: {problem}", problem)
    if seen.good or seen.odd or seen.in_a_row > MOST_IN_A_ROW * seen.bad:
        problem = "the file is not UTF-8, or not all of it"
        raise DataError(f"{where}: {problem}; {CURE}", problem)
    said = f"{where} is not UTF-8: the file is read as Windows-1252 (Latin-1); if that is wrong, set data.encoding"
    return WESTERN, (said,)


class _Seen:
    """Statistics of a file's bytes as UTF-8: the position of the first bad byte, and counts of each kind of byte."""

    def __init__(self) -> None:
        self.bad = self.good = self.in_a_row = self._news = self._returns = 0
        self.odd = self.zeros = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def block(self, block: bytes, *, final: bool = False) -> None:
        """Add the next bytes."""
        self.zeros |= b"\0" in block
        plain = block.isascii() and not self._decoder.getstate()[0]
        text = "" if plain else self._decoder.decode(block, final)
        first = None if plain or self.bad else BAD.search(text)
        if not self.bad:
            before: Any = text[: first.start()].encode("utf-8", "replace") if first else block
            self._news, self._returns = self._news + before.count(b"\n"), self._returns + before.count(b"\r")
        if plain:
            return
        self.bad += len(BAD.findall(text))
        self.good += len(GOOD.findall(text))
        self.in_a_row += len(IN_A_ROW.findall(block))
        self.odd |= NO_WESTERN.search(block) is not None

    @property
    def line(self) -> int:
        """Return the line of the first byte that is not UTF-8. A carriage return ends a line if nothing else does."""
        return 1 + (self._news or self._returns)


def _unpacked(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    if kind == ".zip":
        return _only(path)
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(kind, open)(path, "rb")


@contextmanager
def _only(path: Path) -> Iterator[IO[bytes]]:
    """Open the only file of a zip archive."""
    with zipfile.ZipFile(path) as archive, archive.open(members(archive)[0]) as file:
        yield file


def unpacked_name(path: Path) -> Path:
    """Return a file's name after decompression; empty for an archive of several files. Raises DataError."""
    if path.suffix.lower() != ".zip":
        return path.with_suffix("") if path.suffix.lower() in PACKED else path
    try:
        with zipfile.ZipFile(path) as archive:
            inside = members(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a zip file: {error}", WRONG_KIND) from error
    return Path(inside[0] if len(inside) == 1 else "")


def members(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the files in an archive, without those that operating systems add."""
    return [name for name in archive.namelist() if not name.endswith("/") and not hidden(name)]


def hidden(name: str) -> bool:
    """Return whether a path inside a folder or archive is hidden: .DS_Store, Thumbs.db."""
    parts = Path(name).parts
    return any(part.startswith((".", "~$", "__MACOSX")) for part in parts) or parts[-1:] in (
        ("Thumbs.db",),
        ("desktop.ini",),
    )


def _bad_line(path: Path, encoding: str) -> int:
    """Return the first line of a file that is not in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 1
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                decoder.decode(line)
            except UnicodeError:
                return number
    return number


def _same(one: str, other: str) -> bool:
    return codecs.lookup(one).name == codecs.lookup(other).name
