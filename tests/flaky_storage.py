"""A storage for tests that fails on demand: fsspec's memory file system behind the protocol `flaky://`."""

from fsspec.implementations.memory import MemoryFileSystem


class Flaky(MemoryFileSystem):
    """`fail_next` operations whose path contains `on` raise `error`; `calls` lists all of them."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012 (fsspec's own memory file system shares it among instances too)
    pseudo_dirs = [""]  # noqa: RUF012
    fail_next = 0
    on = ""
    error: Exception = OSError("503 Service Unavailable")
    calls: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    @classmethod
    def reset(cls):
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.calls.clear()
        cls.heal()

    @classmethod
    def fail(cls, times=10**9, on="", error=None):
        cls.fail_next, cls.on, cls.error = times, on, error or OSError("503 Service Unavailable")

    @classmethod
    def heal(cls):
        cls.fail_next = 0

    def _maybe_fail(self, doing, path):
        Flaky.calls.append((doing, path))
        if Flaky.fail_next > 0 and Flaky.on in path:
            Flaky.fail_next -= 1
            raise Flaky.error

    def cat_file(self, path, *arguments, **keywords):
        self._maybe_fail("read", path)
        return super().cat_file(path, *arguments, **keywords)

    def get_file(self, rpath, lpath, *arguments, **keywords):
        self._maybe_fail("read", rpath)
        return super().get_file(rpath, lpath, *arguments, **keywords)

    def pipe_file(self, path, *arguments, **keywords):
        self._maybe_fail("write", path)
        return super().pipe_file(path, *arguments, **keywords)

    def put_file(self, lpath, rpath, *arguments, **keywords):
        self._maybe_fail("write", rpath)
        return super().put_file(lpath, rpath, *arguments, **keywords)

    def ls(self, path, *arguments, **keywords):
        self._maybe_fail("list", path)
        return super().ls(path, *arguments, **keywords)
