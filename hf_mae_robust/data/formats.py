"""Which files are images: those that Pillow opens here, those that it opens with a plugin, and arrays."""

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from ..model.band_files_vit_mae_robust import WAYS

# Formats of Pillow that are not still pictures, or for which it has a stub that cannot decode.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# Image formats that need more than Pillow, and what reads them or what to do.
PLUGINS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pip install pillow-avif-plugin, or a newer Pillow"),
    ".jxl": "pip install pillow-jxl-plugin",
    ".jls": "convert them to PNG, or give a folder of them alone, with pip install imagecodecs",
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "install a Pillow with OpenJPEG"),
    ".webp": "install a Pillow with WebP",
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "convert camera raw files, with rawpy"
    ),
    **dict.fromkeys((".dcm", ".dicom"), "pip install pydicom"),
    **dict.fromkeys((".svg", ".svgz"), "draw them as PNG files"),
    ".nii": "convert volumes to .npy files, a slice each",
}
# Of arrays; a folder of images may hold others beside them, such as features or masks.
ARRAYS = frozenset([".npy", ".npz"])
# Read by more than Pillow (model/band_files_vit_mae_robust.py), where the package is installed.
_BAND_FILES = {".dcm": "pydicom", ".dicom": "pydicom"}
# These, too, where a folder holds no other images: beside pictures they would make a data set of bands of all.
_BAND_FILES_ALONE = {".jls": "imagecodecs", ".jxl": "imagecodecs"}
# Endings of arrays in formats that are not read -> the format, a key of `WAYS`.
_UNREAD_ARRAYS = {
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".he5"), "HDF5"),
    **dict.fromkeys((".nc", ".nc4", ".cdf"), "netCDF"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NRRD"),
    **dict.fromkeys((".mha", ".mhd"), "MetaImage"),
    ".mat": "MATLAB",
    ".exr": "OpenEXR",
    **dict.fromkeys((".img", ".bil", ".bip", ".bsq"), "ENVI"),
}
# First bytes of the usual formats, for files whose name says nothing.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
# Endings of files that are not images, so that their content need not be looked at.
_OTHER = frozenset(
    [
        ".arrow",
        ".bin",
        ".bz2",
        ".cfg",
        ".ckpt",
        ".csv",
        ".db",
        ".gz",
        ".h5",
        ".hdf",
        ".hdf5",
        ".html",
        ".ini",
        ".ipynb",
        ".jsonl",
        ".json",
        ".lock",
        ".log",
        ".mat",
        ".md",
        ".mov",
        ".mp3",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".npy",
        ".npz",
        ".onnx",
        ".parquet",
        ".pdf",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".py",
        ".pyc",
        ".rar",
        ".rst",
        ".safetensors",
        ".sh",
        ".sum",
        ".tar",
        ".tex",
        ".tgz",
        ".toml",
        ".tsv",
        ".txt",
        ".wav",
        ".xls",
        ".xlsx",
        ".xml",
        ".xz",
        ".yaml",
        ".yml",
        ".zip",
        ".zst",
        ".7z",
        ".avi",
        ".mkv",
        ".pb",
        ".tfrecord",
        ".sqlite",
        ".doc",
        ".docx",
        ".ps",
        ".eps",
        ".wmf",
        ".emf",
        ".bufr",
        ".grib",
        ".iim",
    ]
)


def _register_plugins() -> None:
    """Plugins that are installed but have to be asked before Pillow uses them."""
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    for module in ("pillow_avif", "pillow_jxl"):  # these do it when they are imported
        with suppress(ImportError):
            import_module(module)


def readable_endings() -> frozenset[str]:
    """Lower-case endings, with the dot, of the image files that can be decoded here, those of arrays apart."""
    Image.init()
    pictures = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PICTURES
    }
    return frozenset(pictures | _installed(_BAND_FILES))


def endings_alone() -> frozenset[str]:
    """Endings of the files that are images where a data set holds no others: arrays, and what imagecodecs reads."""
    return frozenset(ARRAYS | _installed(_BAND_FILES_ALONE))


def _installed(packages: dict[str, str]) -> set[str]:
    return {ending for ending, package in packages.items() if find_spec(package) is not None}


def unread_array(path: Path) -> str | None:
    """What is said of a file of arrays in a format that is not read; None of other files."""
    kind = _UNREAD_ARRAYS.get(path.suffix.lower())
    if kind is None and path.suffix.lower() == ".hdr" and path.is_file() and path.read_bytes()[:4] == b"ENVI":
        kind = "ENVI"
    return kind and f"{kind} files are not read. Convert each image to TIFF or .npy, as in {WAYS[kind]}"


def looks_like_an_image(path: Path) -> bool:
    """Whether a file begins as one of the usual image formats, whatever its name ends with."""
    if path.suffix.lower() in _OTHER:
        return False
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":  # scanners write no ending
        return find_spec("pydicom") is not None
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


_register_plugins()
