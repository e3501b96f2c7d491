"""PNG and TIFF files that Pillow does not write: each depth, each meaning of the numbers."""

import struct
import zlib


def png(rows, depth, colour=0, *, transparent=None, palette=None):
    """Write a PNG file.

    Parameters
    ----------
    rows : list of bytes
        Packed pixels, one row each. The width follows from their length.
    depth : int
        Bits of a sample.
    colour : int
        0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
    transparent, palette : bytes, optional
        Content of tRNS and PLTE.
    """

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    head = struct.pack(">IIBBBBB", len(rows[0]) * 8 // (depth * samples), len(rows), depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            b"" if palette is None else chunk(b"PLTE", palette),
            b"" if transparent is None else chunk(b"tRNS", transparent),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        )
    )


def grey_tiff(pixels, width, bits, *, order="<", white_is_zero=False, signed=False):
    """Write a TIFF file of one row of grey.

    Parameters
    ----------
    pixels : bytes
        Packed.
    width : int
    bits : int
        Bits of a pixel.
    order : {"<", ">"}
    white_is_zero, signed : bool
        The meaning of the numbers.
    """
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, 1),
        (258, short, bits),
        (259, short, 1),
        (262, short, 0 if white_is_zero else 1),
        (273, long, 8),
        (277, short, 1),
        (278, short, 1),
        (279, long, len(pixels)),
        (339, short, 2 if signed else 1),
    ]
    values = {short: "HHIHH", long: "HHII"}
    directory = struct.pack(f"{order}H", len(tags))
    for name, kind, value in tags:
        directory += struct.pack(order + values[kind], name, kind, 1, value, *((0,) if kind == short else ()))
    pixels += bytes(len(pixels) % 2)
    return b"".join(
        (
            b"II*\0" if order == "<" else b"MM\0*",
            struct.pack(f"{order}I", 8 + len(pixels)),
            pixels,
            directory,
            bytes(4),
        )
    )
