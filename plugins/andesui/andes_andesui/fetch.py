"""Get kits from their registries into a folder, with version and licence written down."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

from andes_andesui.kits import KIT_FILE, KITS, Kit
from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.files import appearing, writing

MINUTES = 10


def fetch(names: list[str], to: Path) -> list[dict[str, Any]]:
    """Get kits, each into a folder of its name -> what was got. A kit that is there in its version is left alone.

    Raises:
        InputError: a name is unknown, a registry fails, or a licence is not the expected one.
        BackendUnavailable: npm is not installed.
    """
    unknown = [name for name in names if name not in KITS]
    if unknown:
        raise InputError(f"unknown: {', '.join(unknown)}", who="andes ui fetch", fix=f"give some of {', '.join(KITS)}")
    found = []
    for name in names:
        kit, folder = KITS[name], to / name
        facts: dict[str, Any] = {
            "name": name, "registry": kit.registry, "package": kit.package, "version": kit.version,
            "licence": kit.licence, "pages": list(kit.pages),
        }  # fmt: skip
        if kit.needs:
            facts["needs"] = dict(zip(("package", "version", "licence"), kit.needs, strict=True))
        if not (folder / KIT_FILE).is_file() or json.loads((folder / KIT_FILE).read_text(encoding="utf-8")) != facts:
            with writing(folder), appearing(folder) as fresh:
                _got(kit, fresh)
                (fresh / KIT_FILE).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        found.append(facts)
    return found


def _got(kit: Kit, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        npm = kit.registry == "npm"
        package = _npm(kit.package, kit.version, kit.licence, place) if npm else _pypi(kit, place)
        shutil.copytree(package / kit.inner, folder, dirs_exist_ok=True)
        for licence in sorted(package.glob("LICEN[CS]E*")):
            shutil.copy(licence, folder)
        if kit.needs:
            shutil.copytree(_npm(*kit.needs, place), folder / "needed")


def _npm(package: str, version: str, licence: str, place: Path) -> Path:
    """A package of npm, unpacked."""
    npm = shutil.which("npm")
    if npm is None:
        raise BackendUnavailable("npm is not installed", who="andes ui fetch", fix="apt-get install npm")
    folder = place / package.replace("/", "-")
    folder.mkdir()
    _run([npm, "pack", "--silent", f"{package}@{version}"], folder, package)
    (packed,) = folder.glob("*.tgz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    (made,) = (path.parent for path in folder.glob("*/package.json"))
    _same(licence, json.loads((made / "package.json").read_text(encoding="utf-8")).get("license"), package)
    return made


def _pypi(kit: Kit, place: Path) -> Path:
    """A wheel of PyPI, unpacked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    _run([*command, f"{kit.package}=={kit.version}"], place, kit.package)
    (wheel,) = place.glob("*.whl")
    folder = place / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (metadata,) = folder.glob("*.dist-info/METADATA")
    told = Parser().parsestr(metadata.read_text(encoding="utf-8"))
    _same(kit.licence, str(told["License-Expression"] or told["License"] or "").removesuffix(" License"), kit.package)
    return folder


def _run(command: list[str], folder: Path, package: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
        said = done.stderr.strip()[-500:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        said = f"not done after {MINUTES} minutes"
    if said:
        fix = "check the network and the registry's address, then start again"
        raise InputError("cannot be fetched", who=package, why=said, fix=fix)


def _same(licence: str, told: Any, package: str) -> None:
    if told != licence:
        why, fix = f"it states {told!r}, expected {licence!r}", "read its licence, and do not use it unseen"
        raise InputError("has another licence", who=package, why=why, fix=fix)
