"""Files of folders and artefacts, and the tokenizers that are built from them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact
from attrs import field, frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.assembling.assembly import assemble
from andes_sdk.assembling.extending import open_tokenizer
from andes_sdk.errors import CheckpointError, InputError
from andes_sdk.files import FolderFiles, Journal, write_atomically
from andes_sdk.types import Files

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipeline = Pipeline.from_plugins(list(TINY))
    path = tmp_path_factory.mktemp("files") / "tiny.andes"
    pack_model(pipeline.model, default_recipe(pipeline.model, "w8"), path, plan=pipeline.plan)
    return path


@frozen(eq=False, kw_only=True)
class ByFolder:
    """Takes a folder, as plugins that read everything at once do."""

    contract = "1.1"
    seen: list[object] = field(factory=list, metadata={"help": "what came"})

    @hookimpl
    def andes_tokenizer(self, folder: Path | None) -> object:
        self.seen.append(folder)
        return None if folder is None else (folder / "tokenizer.json").read_bytes()


@frozen(eq=False, kw_only=True)
class ByFiles:
    """Takes files, as plugins that read later do."""

    contract = "1.1"

    @hookimpl
    def andes_tokenizer(self, files: Files | None) -> object:
        return files or "none"


def test_a_folders_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path)
    assert "a/b.json" not in files
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").write_bytes(b"1")
    assert "a/b.json" in files
    assert "a" not in files
    assert files.read("a/b.json") == b"1"
    assert files.where("a/b.json") == str(tmp_path / "a" / "b.json")
    with pytest.raises(CheckpointError, match=r"absent\.json: cannot be read"):
        files.read("absent.json")


def test_an_artefacts_files_are_those_that_it_extracts(path: Path, tmp_path: Path) -> None:
    artefact = Artefact.open(path)
    for file in artefact.extract(tmp_path):
        assert file.name in artefact.files
        assert artefact.files.read(file.name) == file.read_bytes()
    assert "absent.json" not in artefact.files
    with pytest.raises(CheckpointError, match=r"tiny\.andes: absent\.json: is not there"):
        artefact.files.read("absent.json")


def test_files_of_an_artefact_that_is_gone_are_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.andes"
    copy.write_bytes(path.read_bytes())
    files = Artefact.open(copy).files
    copy.rename(tmp_path / "moved.andes")
    with pytest.raises(CheckpointError, match=r"copy\.andes: tokenizer\.json: cannot be read"):
        files.read("tokenizer.json")


def test_a_plugin_that_takes_a_folder_gets_one_for_as_long_as_its_hook_runs(path: Path) -> None:
    plugin = ByFolder()
    assembly = assemble([plugin], slots_required=False)
    artefact = Artefact.open(path)
    assert open_tokenizer(assembly, artefact.files) == artefact.files.read("tokenizer.json")
    (folder,) = plugin.seen
    assert not Path(str(folder)).exists()


def test_a_plugin_that_takes_files_gets_those_of_the_folder_or_of_the_artefact(path: Path, tmp_path: Path) -> None:
    assembly = assemble([ByFiles()], slots_required=False)
    artefact = Artefact.open(path)
    assert open_tokenizer(assembly, artefact.files) == artefact.files
    assert open_tokenizer(assembly, FolderFiles(tmp_path)) == FolderFiles(tmp_path)
    assert open_tokenizer(assembly) == "none"


def test_files_opened_by_a_relative_path_are_read_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    Path("sub").mkdir()
    Path("sub/b.json").write_bytes(b"1")
    folder, artefact = FolderFiles(Path("sub")), Artefact.open(path.name)
    copies = [pickle.dumps(folder), pickle.dumps(artefact.files)]
    wanted = artefact.files.read("tokenizer.json")
    monkeypatch.chdir(tmp_path)
    assert folder.read("b.json") == pickle.loads(copies[0]).read("b.json") == b"1"
    assert artefact.files.read("tokenizer.json") == pickle.loads(copies[1]).read("tokenizer.json") == wanted
    assert folder.where("b.json") == str(path.parent / "sub" / "b.json")


def test_a_file_is_written_whole_readable_by_all_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    for content in (b"one", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o644 or os.name == "nt"
    (tmp_path / "new" / "b").mkdir()
    with pytest.raises(OSError, match="b"):  # a file cannot replace a folder
        write_atomically(tmp_path / "new" / "b", b"three")
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.bin", "b"]


def test_a_journal_keeps_what_is_wanted_and_drops_a_torn_last_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "lines.jsonl")
    assert (journal.rows(), journal.keep(lambda row: True)) == ([], [])
    for number in range(4):
        journal.add({"step": number})
    with open(journal.path, "ab") as file:
        file.write(b'{"step": 4')
    assert [row["step"] for row in journal.rows()] == [0, 1, 2, 3]
    assert [row["step"] for row in journal.keep(lambda row: row["step"] < 2)] == [0, 1]
    assert journal.path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'


@pytest.mark.parametrize(
    ("line", "says"), [(b"{oops\n", "no line of JSON"), (b'{"other": 1}\n', "no line of this file")]
)
def test_a_line_that_is_not_a_journals_is_named_and_stays(tmp_path: Path, line: bytes, says: str) -> None:
    journal = Journal(tmp_path / "lines.jsonl")
    journal.add({"step": 0})
    with open(journal.path, "ab") as file:
        file.write(line)
    before = journal.path.read_bytes()
    with pytest.raises(InputError, match=says) as caught:
        journal.keep(lambda row: row["step"] < 9)
    assert caught.value.who == f"{journal.path}:2"
    assert journal.path.read_bytes() == before
