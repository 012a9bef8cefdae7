"""The environment of LiteRT: made once, apart from ours, because its packages want older ones than ours.

It holds what `requirements.txt` beside this file pins. Work for it lies in a folder; a process of its own does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from andes_sdk.errors import BackendUnavailable, ConfigError

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
READY = "ready.json"
NEEDS = 4 << 30
"""Bytes of disk that making the environment takes at its peak."""
LIMIT = 1800.0
"""Seconds without a word after which work counts as hanging, unless told otherwise."""

Tell = Callable[[str], None]


def _quiet(text: str) -> None:
    """Tell nobody."""


def cache() -> Path:
    """`$ANDES_CACHE`, else `$XDG_CACHE_HOME/andes_sdk`, else `~/.cache/andes_sdk`."""
    if place := os.environ.get("ANDES_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andes_sdk"


def folder() -> Path:
    """Where the environment of these versions lies, or would lie."""
    mark = hashlib.sha256(REQUIREMENTS.read_bytes() + f"{sys.version_info[:2]}".encode()).hexdigest()[:12]
    return cache() / f"dimensity-{mark}"


def python() -> Path:
    """The interpreter of the environment.

    Raises:
        BackendUnavailable: it was not made here, or not to its end.
    """
    found = folder() / "bin" / "python"
    if not (folder() / READY).is_file() or not found.exists():
        raise BackendUnavailable(
            "the environment of LiteRT is missing", who="dimensity", why=f"there is no {folder()}",
            fix="run: andes deploy setup dimensity   (2.3 GB, a few minutes)",
        )  # fmt: skip
    return found


def is_ready() -> bool:
    """Whether work can be done here."""
    with suppress(BackendUnavailable):
        return python().exists()
    return False


def setup(tell: Tell = _quiet, *, again: bool = False) -> dict[str, Any]:
    """Make the environment, if it is not there -> facts: path, seconds, packages.

    Raises:
        BackendUnavailable: no room on the disk, or a package that cannot be installed. What was made is removed.
    """
    target = folder()
    if is_ready() and not again:
        known: dict[str, Any] = json.loads((target / READY).read_text(encoding="utf-8"))
        return known | {"made": False}
    refuse_full(NEEDS)
    shutil.rmtree(target, ignore_errors=True)
    start = time.monotonic()
    try:
        tell("making an empty environment")
        _call([sys.executable, "-m", "venv", str(target)], "the environment cannot be made")
        tell("installing LiteRT (2.3 GB)")
        pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*pip, "-r", str(REQUIREMENTS)], "its packages cannot be installed")
        tell("trying it")
        trial = "import litert_torch, litert_lm, litert_lm_builder, ai_edge_quantizer, ai_edge_litert; print('fine')"
        _call([str(target / "bin" / "python"), "-W", "ignore", "-c", trial], "it cannot be imported")
        packages = REQUIREMENTS.read_text(encoding="utf-8").split()
        facts = {"path": str(target), "seconds": time.monotonic() - start, "packages": packages}
        (target / READY).write_text(json.dumps(facts), encoding="utf-8")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return facts | {"made": True}


def _clean() -> dict[str, str]:
    """Our surroundings without what belongs to our own environment."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_CONSTRAINT")
    }
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _call(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_clean(), check=False)
    if done.returncode:
        why = " · ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        fix = "look at the connection and the disk, and run it again"
        raise BackendUnavailable(what, who="dimensity", why=why, fix=fix)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for one work, which goes with it; those of processes that were killed go too."""
    cache().mkdir(parents=True, exist_ok=True)
    for left in cache().glob("dimensity-work-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists() and Path("/proc").is_dir():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"dimensity-work-{os.getpid()}-", dir=cache()) as name:
        yield Path(name)


def refuse_full(needed: int) -> None:
    """Refuse work that the disk has no room for.

    Raises:
        BackendUnavailable: saying how much is free, and where.
    """
    cache().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache()).free
    if free < needed:
        why = f"{free / 2**30:.1f} GB are free below {cache()}, {needed / 2**30:.1f} are needed while it is written"
        raise BackendUnavailable(
            "there is no room for it", who="dimensity", why=why, fix="make room, or set ANDES_CACHE"
        )


def work(place: Path, job: Mapping[str, Any], tell: Tell = _quiet, *, limit: float = LIMIT) -> dict[str, Any]:
    """Let the environment do what `job` says, in the folder `place` -> its result.

    Raises:
        BackendUnavailable: the environment is missing, the process died, or it said nothing for `limit` seconds.
        ConfigError: the work could not be done; why says what LiteRT said.
    """
    interpreter = python()
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    (place / "result.json").unlink(missing_ok=True)
    with open(place / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [str(interpreter), "-W", "ignore", str(HERE / "worker" / "main.py"), str(place)],
            stdout=subprocess.PIPE, stderr=log, env=_clean(), start_new_session=True,
        )  # fmt: skip
        heard = [time.monotonic()]
        listener = Thread(target=_listen, args=(process, tell, heard), daemon=True)
        listener.start()
        try:
            code = _watched(process, heard, limit)
        finally:
            with suppress(ProcessLookupError):  # whatever it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            listener.join(5)
            if process.stdout is not None:
                process.stdout.close()
    try:
        result: dict[str, Any] = json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = (place / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        why = f"exit {code}: " + (" · ".join(last) or "it said nothing")
        fix = "free memory and try again; if it comes back: andes deploy setup dimensity --again"
        raise BackendUnavailable("LiteRT died", who="dimensity", why=why, fix=fix) from None
    if "No space left" in str(result.get("error", "")):
        why, fix = f"{result['error']}; it works below {cache()}", "make room, or set ANDES_CACHE"
        raise BackendUnavailable("the disk is full", who="dimensity", why=why, fix=fix)
    if "error" in result:
        raise ConfigError(
            "LiteRT could not do it", who="dimensity", why=str(result["error"]), fix="see the layer it names"
        )
    return result


def _watched(process: subprocess.Popen[bytes], heard: list[float], limit: float) -> int:
    """The exit status; what goes on telling of progress may take as long as it needs."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=min(1.0, limit))
        if time.monotonic() - heard[0] > limit:
            why = f"it said nothing for {limit:.0f} seconds"
            fix = "free the processor and try again; if it comes back: andes deploy setup dimensity --again"
            raise BackendUnavailable("LiteRT hangs", who="dimensity", why=why, fix=fix)


def _listen(process: subprocess.Popen[bytes], tell: Tell, heard: list[float]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"@ "):
            heard[0] = time.monotonic()
            tell(line[2:].decode("utf-8", "replace").strip())
