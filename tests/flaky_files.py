"""A file system whose files forget nothing but what they are told to."""

import io

from fsspec.implementations.memory import MemoryFileSystem


class FlakyFile(io.BytesIO):
    """Bytes of a memory file; the faults in `FlakyFileSystem.faults` are used up one a read."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.size = len(content)

    def read(self, size=-1):
        FlakyFileSystem.reads.append((self.tell(), size))
        fault = FlakyFileSystem.faults.pop(0) if FlakyFileSystem.faults else None
        if isinstance(fault, Exception):
            raise fault
        data = super().read(size)
        return fault(data, self.getvalue()) if fault else data


class FlakyFileSystem(MemoryFileSystem):
    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    faults, reads, opened, sizes = [], [], [], []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        if mode != "rb":
            return super()._open(path, mode, **options)
        self.opened.append(options.get("cache_type"))
        fault = self.faults.pop(0) if self.faults and self.faults[0] == "open" else None
        if fault:
            raise ConnectionRefusedError("no connection")
        if path not in self.store:
            raise FileNotFoundError(path)
        file = FlakyFile(self.store[path].getvalue())
        file.size = self.sizes.pop(0) if self.sizes else file.size
        return file


def half(data, whole):
    return data[: len(data) // 2]


def everything(data, whole):
    return whole
