"""Small image files written byte by byte, by the descriptions of their formats, without the libraries that read."""

import struct
import zlib

import numpy as np

TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4}


def tiff(*pages, order="<", loop=False):
    """A TIFF file without compression. pages: dicts of an array `(C, H, W)` under "pixels", tags (number -> letter and
    values) and "planar" (samples in planes). A loop: the last page says that the first one follows."""
    body, places = bytearray(b"II*\0" if order == "<" else b"MM\0*") + bytes(4), [4]
    first = None
    for page in pages:
        pixels = np.asarray(page["pixels"])
        channels, height, width = pixels.shape
        planar = page.get("planar", False)
        stored = pixels.astype(pixels.dtype.newbyteorder(order))
        planes = [plane.tobytes() for plane in stored] if planar else [np.moveaxis(stored, 0, -1).tobytes()]
        offsets = []
        for plane in planes:
            offsets.append(len(body))
            body += plane + b"\0" * (len(plane) % 2)
        kind = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
        tags = {
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [pixels.dtype.itemsize * 8] * channels),
            259: ("H", [1]),
            262: ("H", [1]),
            273: ("I", offsets),
            277: ("H", [channels]),
            278: ("I", [height]),
            279: ("I", [len(plane) for plane in planes]),
            284: ("H", [2 if planar else 1]),
            339: ("H", [kind] * channels),
            **page.get("tags", {}),
        }
        entries = []
        for number, (letter, values) in sorted(tags.items()):
            data = values + b"\0" if letter == "s" else struct.pack(f"{order}{len(values)}{letter}", *values)
            count = len(data) if letter == "s" else len(values)
            if len(data) > 4:
                place = struct.pack(f"{order}I", len(body))
                body += data + b"\0" * (len(data) % 2)
            else:
                place = data.ljust(4, b"\0")
            entries.append(struct.pack(f"{order}HHI", number, TIFF_TYPES[letter], count) + place)
        start = len(body)
        first = first or start
        body[places[-1] : places[-1] + 4] = struct.pack(f"{order}I", start)
        body += struct.pack(f"{order}H", len(entries)) + b"".join(entries)
        places.append(len(body))
        body += bytes(4)
    if loop:
        body[places[-1] : places[-1] + 4] = struct.pack(f"{order}I", first)
    return bytes(body)


def png(pixels, bits=16, color=None):
    """Of `(H, W, C)` numbers; less than 8 bits: of one channel, whose rows fill bytes."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if color is None else color
    if bits < 8:
        wide = np.unpackbits(pixels.astype(np.uint8), axis=-1).reshape(height, width, 8)[..., 8 - bits :]
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in wide]
    else:
        rows = [row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def dicom(pixels, photometric=b"MONOCHROME2", frames=None, syntax=b"1.2.840.10008.1.2.1", bits=None, **texts):
    """Explicit little-endian. pixels: `(H, W)`, `(H, W, 3)` or, with `frames`, `(N, H, W)`; 16 bits. texts: decimal
    strings by their tag in hexadecimal, such as x00281052="-1024"."""
    height, width = pixels.shape[-2:] if frames or pixels.ndim == 2 else pixels.shape[:2]
    samples = 3 if pixels.ndim == 3 and not frames else 1
    bits = bits or pixels.dtype.itemsize * 8

    def element(group, number, kind, data):
        data += (b"\0" if kind == b"UI" else b" ") * (len(data) % 2)
        if kind in (b"OW", b"OB"):
            return struct.pack("<HH2sHI", group, number, kind, 0, len(data)) + data
        return struct.pack("<HH2sH", group, number, kind, len(data)) + data

    def short(number, value):
        return element(0x28, number, b"US" if value >= 0 else b"SS", struct.pack("<H" if value >= 0 else "<h", value))

    meta = element(2, 0x10, b"UI", syntax)
    meta = element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    elements = {
        0x00280002: short(2, samples),
        0x00280004: element(0x28, 4, b"CS", photometric),
        0x00280010: short(0x10, height),
        0x00280011: short(0x11, width),
        0x00280100: short(0x100, pixels.dtype.itemsize * 8),
        0x00280101: short(0x101, bits),
        0x00280102: short(0x102, bits - 1),
        0x00280103: short(0x103, int(pixels.dtype.kind == "i")),
    }
    if samples == 3:
        elements[0x00280006] = short(6, 0)
    if frames:
        elements[0x00280008] = element(0x28, 8, b"IS", str(frames).encode())
    for name, text in texts.items():
        tag = int(name[1:], 16)
        value = (
            short(tag & 0xFFFF, text)
            if isinstance(text, int)
            else element(tag >> 16, tag & 0xFFFF, b"DS", text.encode())
        )
        elements[tag] = value
    content = element(0x7FE0, 0x10, b"OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    return bytes(128) + b"DICM" + meta + b"".join(elements[tag] for tag in sorted(elements)) + content


def fits(pixels, **cards):
    """One image, big-endian as ever, the last axis first."""
    bits = pixels.dtype.itemsize * (-8 if pixels.dtype.kind == "f" else 8)
    lines = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": pixels.ndim}
    lines |= {f"NAXIS{number + 1}": length for number, length in enumerate(reversed(pixels.shape))} | cards
    text = "".join(f"{name:<8}= {value!s:>20}".ljust(80) for name, value in lines.items()) + "END".ljust(80)
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return text.ljust(-(-len(text) // 2880) * 2880).encode() + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def nifti(pixels, order="<", slope=0.0, intercept=0.0):
    """NIfTI-1 in one file. pixels: `(Z, Y, X)`, so that the first of the file's axes is the fastest."""
    code = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "u2": 512}[pixels.dtype.str[1:]]
    header = bytearray(352)
    lengths = [pixels.ndim, *reversed(pixels.shape), 1, 1, 1, 1][:8]
    for place, letters, values in (
        (0, "i", [348]),
        (40, "8h", lengths),
        (70, "hh", [code, pixels.dtype.itemsize * 8]),
        (76, "8f", [1.0] * 8),
        (108, "fff", [352.0, slope, intercept]),
    ):
        struct.pack_into(order + letters, header, place, *values)
    header[344:348] = b"n+1\0"
    return bytes(header) + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
