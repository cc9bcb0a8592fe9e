"""Read Qt resource files (.rcc): many small files in one, as Qt programs carry them.

The format is that of Qt's own rcc program, all numbers big-endian: a header (magic, version, where tree, data and names
begin), a tree of nodes of one size, the data (a length, then that many bytes), and the names in UTF-16.
"""

import struct
import zlib
from typing import NamedTuple

from i2sb.errors import FileError

_HEADER = struct.Struct(">4sIIII")  # magic, version, offsets of tree, data and names
_FOLDER = struct.Struct(">IHII")  # offset of the name, flags, number of children, index of the first
_FILE = struct.Struct(">IHHHI")  # offset of the name, flags, territory, language, offset of the data
_COMPRESSED_ZLIB, _IS_FOLDER, _COMPRESSED_ZSTD = 1, 2, 4


class _Entry(NamedTuple):
    flags: int
    offset: int  # of the length that stands before the data


class QtResources:
    """The files in a .rcc file's bytes. Raises UserError if these are none, or cut off."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name = data, name
        if data[:4] != b"qres":
            raise FileError(name, "is not a Qt resource file")
        _, version, self._tree, self._contents, self._names = self._unpack(_HEADER, 0)
        if version not in (1, 2, 3):
            raise FileError(name, f"is a Qt resource file of version {version}; versions 1 to 3 can be read")
        # From version 2 on, each node ends with the file's time.
        self._node_size = _FILE.size + (8 if version >= 2 else 0)
        self._entries: dict[str, _Entry] = {}
        self._list_folder(0, "")

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def read(self, path: str) -> bytes:
        """Return a file's content. Raises KeyError if there is no such file, UserError if it is damaged."""
        flags, offset = self._entries[path]
        (length,) = self._unpack(struct.Struct(">I"), offset)
        content = self._slice(offset + 4, length)
        if flags & _COMPRESSED_ZSTD:
            raise FileError(self._name, f"{path} is compressed with zstd, which cannot be read here")
        if not flags & _COMPRESSED_ZLIB:
            return content
        try:
            return zlib.decompress(content[4:])  # the first four bytes are the unpacked length
        except zlib.error:
            raise FileError(self._name, f"{path} is damaged") from None

    def _list_folder(self, node: int, prefix: str) -> None:
        offset = self._tree + node * self._node_size
        _, flags, count, first = self._unpack(_FOLDER, offset)
        # Children come after their folder, so that even with a damaged file this ends.
        if not flags & _IS_FOLDER or (count and first <= node):
            raise FileError(self._name, "is damaged")
        for child in range(first, first + count):
            name_offset, flags, _, _, data_offset = self._unpack(_FILE, self._tree + child * self._node_size)
            path = prefix + self._read_name(name_offset)
            if flags & _IS_FOLDER:
                self._list_folder(child, path + "/")
            else:
                self._entries[path] = _Entry(flags, self._contents + data_offset)

    def _read_name(self, offset: int) -> str:
        (length,) = self._unpack(struct.Struct(">H"), self._names + offset)
        name = self._slice(self._names + offset + 6, 2 * length)  # 4 bytes of hash come between
        return name.decode("utf-16-be", errors="replace")

    def _unpack(self, layout: struct.Struct, offset: int) -> tuple:
        return layout.unpack(self._slice(offset, layout.size))

    def _slice(self, offset: int, length: int) -> bytes:
        piece = self._data[offset : offset + length]
        if len(piece) < length:
            raise FileError(self._name, "is cut off")
        return piece
