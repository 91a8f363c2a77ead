"""A command on a folder in a child process that dies, or whose disk fails, at one chosen file-system operation.

The faults are real: SIGKILL from inside, an OSError from the very call, a disk that is full or read-only. What changes
the folder goes through functions of `os` that are wrapped here; an audit hook notes whatever does not.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pickle
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from authsvc.errors import AuthsvcError

_T = TypeVar("_T")

# A child that hangs ends by itself: the test's own time limit would stop the parent alone.
_CHILD_ENDS_AFTER_S: Final = 100

_CHANGES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_BY_DESCRIPTOR: Final = ("write", "writev", "pwrite", "fsync", "fdatasync", "fchmod", "fchown", "ftruncate")
_BY_PATH: Final = (
    *("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "chmod", "chown", "lchown"),
    *("link", "symlink", "truncate", "utime", "mkfifo", "mknod"),
)
_AUDITED: Final = ("rename", "remove", "mkdir", "rmdir", "chmod", "chown", "link", "symlink", "truncate", "utime")


# ---- a child process ----------------------------------------------------------------------------


class Killed(Exception):
    """SIGKILL ended the child, as planned."""


class Impossible(Exception):
    """This machine does not let us bring about what the test wants; the message says why."""


def in_child(work: Callable[[], _T]) -> _T:
    """What `work` returns, pickled, from a process of its own: with limits, mounts and wrappers that end with it.

    Raises: Killed; Impossible if `work` does; AssertionError with the child's traceback for anything else.
    """
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on a warning if there are threads. The child runs none of their code, and never returns.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_child(work, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        raise Killed
    if status != 0:
        raise AssertionError(f"the child ended with wait status {status}")
    how, value = pickle.loads(answer)
    if how == "impossible":
        raise Impossible(value)
    if how == "raised":
        raise AssertionError(f"in the child:\n{value}")
    result: _T = value
    return result


def _be_child(work: Callable[[], object], write_end: int) -> NoReturn:
    """Whatever happens, no frame of the test runner is returned to."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CHILD_ENDS_AFTER_S)
        try:
            answer: tuple[str, object] = ("returned", work())
        except Impossible as error:
            answer = ("impossible", str(error))
        except BaseException:  # noqa: BLE001 - it goes to the parent, which raises it
            answer = ("raised", traceback.format_exc())
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        status = 0
    finally:
        os._exit(status)


# ---- operations and faults ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that changes the folder, or makes a change of it last."""

    name: str  # as in `os`
    target: str  # in the folder; "." is the folder itself, and a process number is "*"
    to: str | None = None  # of a rename
    mode: int | None = None  # that a file or folder is made with, or given
    data: bytes = b""  # that was written
    failed: int = 0  # errno, if it failed by itself

    def __str__(self) -> str:
        return f"{self.name} {self.target}" + (f" to {self.to}" if self.to else "")


class What(Enum):
    KILL_BEFORE = "killed before"
    KILL_AFTER = "killed after"
    KILL_HALFWAY = "killed halfway through"  # a write: half of the data is in the file
    FAIL = "failing at"
    FAIL_FROM = "failing from"  # and everything after it fails as well


@dataclass(frozen=True, slots=True)
class Fault:
    what: What
    at: int | str  # the number of the operation, from 0, or the name of the function, for its first call
    errno: int = 0

    def __str__(self) -> str:
        return f"{self.what.value} {self.at}" + (f" ({os.strerror(self.errno)})" if self.errno else "")


@dataclass(frozen=True, slots=True)
class Run:
    """What a command did that came to its end."""

    operations: tuple[Operation, ...]
    unseen: tuple[str, ...]  # changes of the folder that went past the wrapped functions
    error: str | None  # of a command that refused: "KeysError: ..."

    def first(self, name: str) -> int:
        """The number of the first operation of this name."""
        return next(i for i, operation in enumerate(self.operations) if operation.name == name)


def run_command(folder: Path, command: Callable[[], object], fault: Fault | None = None) -> Run:
    """Run a command on `folder` in a child process, with a fault in it. Raises: Killed; AssertionError."""
    return in_child(lambda: watched(folder, command, fault))


def watched(folder: Path, command: Callable[[], object], fault: Fault | None = None) -> Run:
    """The same in this process, which has to end with it: `os` stays wrapped."""
    os.umask(0)  # nothing may rely on it
    watch = _Watch(folder, fault)
    watch.install()
    error = None
    try:
        command()
    except AuthsvcError as refused:
        error = f"{type(refused).__name__}: {refused}"
    return watch.result(error)


class _Watch:
    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self._folder = os.path.abspath(folder)
        self._fault = fault
        self._fails = False
        self._within = False
        self._operations: list[Operation] = []
        self._unseen: list[str] = []
        self._paths: dict[int, str] = {}  # of open descriptors
        self._sizes: dict[str, int] = {}  # of files that were opened, by what was written through `os`

    def install(self) -> None:
        for name in ("open", "close", *_BY_DESCRIPTOR, *_BY_PATH):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        sys.addaudithook(self._audit)

    def result(self, error: str | None) -> Run:
        for path, size in self._sizes.items():
            if os.path.exists(path) and os.path.getsize(path) != size:
                self._unseen.append(f"written, not by os.write: {self._label(path)}")
        return Run(tuple(self._operations), tuple(self._unseen), error)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "close":
                self._paths.pop(args[0], None)
                return real(*args, **kwargs)
            path = self._path(args[0], kwargs.get("dir_fd", kwargs.get("src_dir_fd")))
            if path is None or not self._is_inside(path):
                return real(*args, **kwargs)
            if name == "open" and not args[1] & _CHANGES:
                result = real(*args, **kwargs)
            else:
                result = self._operate(self._operation(name, path, args, kwargs), real, args, kwargs)
            self._note(name, path, args, result)
            return result

        return call

    def _operate(self, operation: Operation, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        number = len(self._operations)
        self._operations.append(operation)
        what = self._what_happens(number, operation)
        if what is What.KILL_BEFORE:
            _kill()
        if what is What.KILL_HALFWAY:
            assert operation.name == "write", "only a write can be half done"
            real(args[0], args[1][: len(args[1]) // 2])
            _kill()
        if what is What.FAIL:
            assert self._fault is not None
            raise OSError(self._fault.errno, os.strerror(self._fault.errno), operation.target)
        self._within = True
        try:
            result = real(*args, **kwargs)
        except OSError as error:
            self._operations[number] = replace(operation, failed=error.errno or 0)
            if what is What.KILL_AFTER:
                _kill()
            raise
        finally:
            self._within = False
        if operation.name == "write":
            self._operations[number] = replace(operation, data=bytes(args[1])[:result])
        if what is What.KILL_AFTER:
            _kill()
        return result

    def _what_happens(self, number: int, operation: Operation) -> What | None:
        if self._fails:
            return What.FAIL
        if self._fault is None or self._fault.at not in (number, operation.name):
            return None
        if self._fault.what is What.FAIL_FROM:
            self._fails = True
            return What.FAIL
        return self._fault.what

    def _operation(self, name: str, path: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Operation:
        to = self._path(args[1], kwargs.get("dst_dir_fd")) if name in ("replace", "rename", "link") else None
        mode: object = None
        if name in ("mkdir", "chmod", "fchmod"):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", 0o777)
        elif name == "open" and args[1] & os.O_CREAT:
            mode = args[2] if len(args) > 2 else kwargs.get("mode", 0o777)
        return Operation(name, self._label(path), self._label(to) if to else None, mode if type(mode) is int else None)

    def _note(self, name: str, path: str, args: Sequence[Any], result: Any) -> None:
        if name == "open":
            self._paths[result] = path
            if args[1] & _CHANGES:
                self._sizes[path] = os.path.getsize(path)
        elif name == "write":
            self._sizes[path] = self._sizes.get(path, 0) + result
        elif name in ("replace", "rename") and path in self._sizes:
            self._sizes[str(self._path(args[1], None))] = self._sizes.pop(path)

    def _path(self, given: Any, folder_descriptor: int | None) -> str | None:
        if isinstance(given, int):
            return self._paths.get(given)
        path = os.fsdecode(given)
        if folder_descriptor is not None:
            path = os.path.join(self._paths.get(folder_descriptor, ""), path)
        return os.path.abspath(path)

    def _is_inside(self, path: str) -> bool:
        return path == self._folder or path.startswith(self._folder + os.sep)

    def _label(self, path: str) -> str:
        return re.sub(r"\.[0-9]+\.tmp$", ".*.tmp", os.path.relpath(path, self._folder))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._within or not (event == "open" or event.removeprefix("os.") in _AUDITED):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _CHANGES):
            return
        for given in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            path = self._path(given, None) if isinstance(given, str | bytes | os.PathLike | int) else None
            # The event does not say which folder a relative path starts from, so it may be this one.
            is_relative = isinstance(given, str | bytes) and not os.path.isabs(given)
            if path is not None and (is_relative or self._is_inside(path)):
                self._unseen.append(f"{event} {self._label(path)}")


def _kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives SIGKILL")


# ---- which faults -------------------------------------------------------------------------------


def kills(run: Run) -> Iterator[Fault]:
    """The process's death at every operation in turn."""
    for number, operation in enumerate(run.operations):
        yield Fault(What.KILL_BEFORE, number)
        if operation.name == "write":
            yield Fault(What.KILL_HALFWAY, number)
        yield Fault(What.KILL_AFTER, number)


def failures(run: Run, errnos: Sequence[int], *, what: What = What.FAIL) -> Iterator[Fault]:
    """The disk's failure at every operation in turn, with each errno."""
    for number, operation in enumerate(run.operations):
        # A call that failed by itself (mkdir of a folder that is there) does not get as far as the disk.
        if not operation.failed:
            for errno in errnos:
                yield Fault(what, number, errno)


def sample(faults: Sequence[Fault], run: Run, *, every: int, turning_point: str = "replace") -> list[Fault]:
    """Every so many of the faults, and always those right before and right after the turning point."""
    turn = run.first(turning_point)
    # After the turning point a process is killed at the same number, and a disk fails at the next.
    ends = {(what, turn) for what in What} | {(What.FAIL, turn + 1), (What.FAIL_FROM, turn + 1)}
    return [fault for number, fault in enumerate(faults) if number % every == 0 or (fault.what, fault.at) in ends]


# ---- disks that refuse, for real ----------------------------------------------------------------

_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWUSER: Final = 0x1000_0000
_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 0x20
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x4_0000
_CAPABILITY_VERSION_3: Final = 0x2008_0522


def mount_small_disk(at: Path, *, size_bytes: int) -> None:
    """A disk (tmpfs) of this size that this process alone sees, and that goes with it. Raises: Impossible."""
    uid, gid = os.geteuid(), os.getegid()
    # Without being root: as the user that we are, in a user namespace that may mount.
    _call("unshare", _CLONE_NEWNS | (0 if uid == 0 else _CLONE_NEWUSER))
    if uid != 0:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        except OSError as error:
            raise Impossible(f"a user namespace: {error.strerror}") from None
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    options = f"size={size_bytes},mode=0700".encode()
    _call("mount", b"tmpfs", bytes(at), b"tmpfs", ctypes.c_ulong(0), options)


def make_disk_read_only(at: Path) -> None:
    """Raises: Impossible."""
    _call("mount", b"none", bytes(at), None, ctypes.c_ulong(_MS_REMOUNT | _MS_RDONLY), None)


def obey_file_modes() -> None:
    """Give up root's power to write where nobody may; for other users there is nothing to give up."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        _call("capset", header, (ctypes.c_uint32 * 6)())


def _call(name: str, *args: Any) -> None:
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except AttributeError:
        raise Impossible(f"{name}: this system does not have it") from None
    if function(*args) != 0:
        raise Impossible(f"{name}: {os.strerror(ctypes.get_errno())}")
