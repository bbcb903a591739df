"""A run on two machines: network namespaces of this one, each with a name, an address and host names of its own.

Root alone may make such namespaces, and `ip` has to be there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import NO_STEPS, make_toy_data

import run_sample
from net.weights import read_checkpoint
from tests.test_distributed import assert_equal_weights

pytestmark = pytest.mark.slow

ROOT = Path(run_sample.__file__).parent
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 29500
KNOWN = "127.0.0.1 localhost\n" + "".join(f"{address} node{k}\n" for k, address in enumerate(ADDRESSES))
ITSELF_ALONE = "127.0.0.1 localhost\n127.0.1.1 node{k}\n"  # as Debian and Ubuntu write it


class Machines:
    """Two namespaces with a cable between them. `hosts` is the text of their /etc/hosts, {k} being their number."""

    def __init__(self, folder):
        self.folder = folder
        self.spaces = [f"wood{os.getpid()}{end}" for end in "ab"]

    def plug_in(self):
        first, second = self.spaces
        lines = [f"ip netns add {first}", f"ip netns add {second}"]
        lines += [f"ip -n {first} link add cable type veth peer name cable netns {second}"]
        for space, address in zip(self.spaces, ADDRESSES, strict=True):
            lines += [f"ip -n {space} addr add {address}/24 dev cable"]
            lines += [f"ip -n {space} link set {name} up" for name in ("lo", "cable")]
        return all(subprocess.run(line.split(), capture_output=True).returncode == 0 for line in lines)

    def take_down(self):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)

    def run(self, *command, hosts, cwd, apart=None, **environment):
        """Run a command under torchrun on both; returns what each said, and its exit code.

        `apart`: a folder in whose place the second machine has one of its own.
        """
        started = []
        for k, space in enumerate(self.spaces):
            names = self.folder / f"hosts{k}"
            names.write_text(hosts.format(k=k))
            begin = f'mount --bind {names} /etc/hosts && hostname node{k} && exec "$@"'
            if apart and k == 1:
                begin = f"mount -t tmpfs its_own {apart} && {begin}"
            place = ["ip", "netns", "exec", space, "unshare", "-m", "-u", "sh", "-c", begin, "sh"]
            meet = ["--nnodes", "2", "--node_rank", k, "--master_addr", ADDRESSES[0], "--master_port", PORT]
            line = [*place, sys.executable, "-m", "torch.distributed.run", *meet, *command]
            settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen([*map(str, line)], cwd=cwd, env=settings, **pipes))
        try:
            return [(process.communicate(timeout=300)[0], process.returncode) for process in started]
        finally:
            for process in started:
                process.terminate()


@pytest.fixture
def machines(tmp_path):
    if not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("two machines: `ip` and `unshare` are needed")
    made = Machines(tmp_path)
    try:
        if not made.plug_in():
            pytest.skip("two machines: root is needed, and leave to make network namespaces")
        yield made
    finally:
        made.take_down()


@pytest.mark.parametrize(
    ("hosts", "environment"), [(KNOWN, {}), (ITSELF_ALONE, {"GLOO_SOCKET_IFNAME": "cable"})], ids=["known", "named"]
)
def test_two_machines_train_as_one_process(machines, tmp_path_factory, monkeypatch, hosts, environment):
    one, two = (make_toy_data(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    steps = {"train_classifier_pass": True, "train_cam_pass": True, "make_cam_pass": True}
    flags = NO_STEPS | steps | {"cam_batch_size": 3, "ood_batch_size": 3, "cam_num_epoches": 2}
    monkeypatch.chdir(one.work)
    run_sample.run(one.flags(**flags))
    for said, code in machines.run(
        ROOT / "run_sample.py", *two.flags(**flags), hosts=hosts, cwd=two.work, **environment
    ):
        assert code == 0, said
    for name in ("res50_cam_orig", "res50_cam_ood"):
        assert_equal_weights(*(read_checkpoint(toy.work / f"sess/{name}.pth") for toy in (two, one)))
    made_by_one, made_by_two = (
        {path.name for path in (toy.work / "result/cam_ood").glob("*.npy")} for toy in (one, two)
    )
    assert made_by_one == made_by_two


def test_images_that_one_machine_lacks_are_told(machines, tmp_path):
    toy = make_toy_data(tmp_path)
    line = [ROOT / "run_sample.py", *toy.flags(**NO_STEPS | {"train_classifier_pass": True})]
    (_, code), (said, other_code) = machines.run(*line, hosts=KNOWN, cwd=toy.work, apart=toy.root / "JPEGImages")
    assert code != 0
    assert other_code != 0
    assert "process 1: error: --train_list: 6 of the 6 images" in said


def test_a_name_that_leads_to_the_machine_itself_alone_is_told_by_both(machines):
    (machines.folder / "meet.py").write_text(MEET)
    for said, _ in machines.run("meet.py", hosts=ITSELF_ALONE, cwd=machines.folder):
        assert "said: the 2 processes have met and can't connect to each other (" in said
        assert "name in GLOO_SOCKET_IFNAME on each machine" in said


MEET = """
from datetime import timedelta
import torch
from misc.errors import InputError
from misc.run import distributed

distributed.PATIENCE_TO_CONNECT = timedelta(seconds=2)
try:
    with distributed.process_group(lambda: torch.device("cpu")):
        pass
except InputError as error:
    print("said:", error)
"""
