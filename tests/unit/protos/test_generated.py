"""The generated code beside protos/*.proto is what `make protos` makes of them now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROTOS = sorted((ROOT / "protos").glob("*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    scripts = Path(sys.executable).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--plugin=protoc-gen-{plugin}={scripts / f'protoc-gen-{plugin}'}" for plugin in ("mypy", "mypy_grpc")]
    command += [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command += [str(path.relative_to(ROOT)) for path in PROTOS]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "protos"


def test_the_engines_view_of_plans_is_current(tmp_path: Path) -> None:
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--plugin=protoc-gen-mypy={plugin}"]
    command += [f"--python_out={tmp_path}", f"--mypy_out={tmp_path}", "engine/dfplan.proto"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in "dfplan_pb2.py", "dfplan_pb2.pyi":
        assert (ROOT / "engine" / name).read_text() == (tmp_path / "engine" / name).read_text(), "run: make protos"


def test_there_are_contracts() -> None:
    assert [path.name for path in PROTOS] == ["internal.proto", "runnel.proto"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_the_checked_in_code_is_current(made: Path, path: Path, suffix: str) -> None:
    name = path.stem + suffix
    assert (ROOT / "protos" / name).read_text() == (made / name).read_text(), "run: make protos"


def test_nothing_is_left_over() -> None:
    generated = {path.name for path in (ROOT / "protos").iterdir() if "_pb2" in path.name}
    assert generated == {path.stem + suffix for path in PROTOS for suffix in SUFFIXES}
