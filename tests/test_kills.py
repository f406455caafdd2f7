"""Killed at any moment, or out of room: the old file or the new one, each with its own data, never half of one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold import files

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
FOLD = [sys.executable, "-m", "bnfold", "net.onnx", "--no-check", "--no-receipt"]
WAYS = {"in place": ["--in-place"], "over another": ["-o", "out.onnx", "--force"]}
TARGETS = {"in place": "net.onnx", "over another": "out.onnx"}


def model(channels: int, layers: int) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    x = "x"
    for i in range(layers):
        held = {f"w{i}": generator.standard_normal((channels, channels, 3, 3), np.float32)}
        held |= {f"{role}{i}": generator.uniform(0.5, 1.5, channels).astype(np.float32) for role in "sbmv"}
        tensors += [numpy_helper.from_array(array, name) for name, array in held.items()]
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *(f"{r}{i}" for r in "sbmv")], [f"y{i}"]))
        x = f"y{i}"
    ends = [helper.make_tensor_value_info(name, 1, [1, channels, 4, 4]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Scene:
    """A folder with a model to fold and, where the target is another file, an older one that stands there."""

    def __init__(self, folder: Path, way: str, external: bool, channels: int, layers: int = 1) -> None:
        self.folder, self.way, self.target = folder, way, folder / TARGETS[way]
        made = model(channels, layers)
        onnx.save(
            made, folder / "net.onnx", save_as_external_data=external, location="net.onnx.data", size_threshold=1024
        )
        self.source = self.read(folder / "net.onnx")
        if way == "over another":
            made = model(channels, layers)
            for tensor in made.graph.initializer:  # another net of the same sizes
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
            onnx.save(made, self.target, save_as_external_data=external, location="out.onnx.data", size_threshold=1024)
        self.start = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.old = self.read(self.target)
        self.run()
        self.new, self.names = self.read(self.target), sorted(path.name for path in folder.iterdir())
        assert self.new != self.old
        self.reset()

    def read(self, path: Path) -> bytes:
        return onnx.load(path).SerializeToString(deterministic=True)

    def run(self) -> None:
        subprocess.run([*FOLD, *WAYS[self.way]], cwd=self.folder, check=True, capture_output=True)

    def reset(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                subprocess.run(["rm", "-r", str(path)], check=True)
            elif path.name not in self.start:
                path.unlink()
        for name, data in self.start.items():
            path = self.folder / name
            if path.read_bytes() != data:
                path.write_bytes(data)

    def judge(self) -> str:
        """ "old" or "new"; whatever else is there fails."""
        strays = {path.name for path in self.folder.iterdir()} - set(self.names) - set(self.start)
        assert all(name.startswith(".bnfold-") for name in strays), strays
        files.load(self.target)
        found = self.read(self.target)
        assert found in (self.old, self.new), "neither the old model nor the new one"
        if self.way == "over another":
            assert self.read(self.folder / "net.onnx") == self.source
        return "old" if found == self.old else "new"


STEPS = """
import os, signal, sys
calls, last = 0, int(sys.argv.pop(1))
def counted(name):
    right = getattr(os, name)
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return right(*arguments, **keywords)
    setattr(os, name, call)
for name in "pwrite copy_file_range sendfile ftruncate replace rename link unlink rmdir mkdir fsync chmod".split():
    if hasattr(os, name):
        counted(name)
from bnfold.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_killed_before_each_call_that_changes_a_file(way: str, external: bool, tmp_path: Path):
    scene = Scene(tmp_path, way, external, 24)
    found: list[str] = []
    for step in range(1, 200):
        done = subprocess.run(
            [sys.executable, "-c", STEPS, str(step), *FOLD[3:], *WAYS[way]], cwd=tmp_path, check=False
        )
        found.append(scene.judge())
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0
            break
        scene.reset()
    else:
        pytest.fail("it never came to an end")
    assert found == sorted(found, reverse=True), "first the old one, then the new one"
    assert found[0] == "old" and found[-2:] == ["new", "new"]
    assert not any(path.name.startswith(".bnfold-") for path in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_random_times(way: str, external: bool, tmp_path: Path):
    """50 kills of each kind on a model of 30 MB; two of three in the second half, where files are written."""
    scene = Scene(tmp_path, way, external, 520, 3)
    chance = random.Random(f"{way} {external}")
    start = time.monotonic()
    scene.run()
    whole = time.monotonic() - start
    scene.reset()
    found: list[str] = []
    while len(found) < 50:
        child = subprocess.Popen(
            [*FOLD, *WAYS[way]], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(whole * (chance.random() if chance.random() < 1 / 3 else chance.uniform(0.5, 1.05)))
        child.kill()
        child.wait()
        found.append(scene.judge())
        scene.reset()
    assert "old" in found


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_no_room_for_the_file_is_a_sentence_and_leaves_nothing(way: str, external: bool, tmp_path: Path):
    pytest.importorskip("resource")
    scene = Scene(tmp_path, way, external, 64)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1)); "
    limited += "from bnfold.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limited, *FOLD[3:], *WAYS[way]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"{scene.target.name} cannot be written: File too large. Nothing was changed there." in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(way: str, tmp_path: Path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes Linux and root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        onnx.save(model(230, 1), disk / "net.onnx")
        (disk / "out.onnx").write_bytes(bytes(2_500_000))
        (disk / "filler").write_bytes(bytes(900_000))
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        done = subprocess.run([*FOLD, *WAYS[way]], cwd=disk, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "cannot be written: No space left on device. Nothing was changed there." in done.stderr
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)
