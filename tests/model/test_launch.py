"""The launch file for SLURM, with stand-ins for SLURM's and torch's commands."""

import importlib.util
import os
import re
import signal
import subprocess
import time
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "launch" / "train.sbatch"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
# a step has a group of its own
exec setsid --wait bash -c 'echo $$ > group; exec "$@"' step "$@"
"""
# ends by itself where there is no `wait`; else when it is told to, as torchrun does
TORCHRUN = """#!/bin/bash
echo "$@" > given
trap 'echo saved >> signals; exit 1' TERM
touch started
while [ -e wait ]; do sleep 0.05; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" > requeued; fi
"""


def start(folder: Path, torchrun: str = TORCHRUN) -> subprocess.Popen[bytes]:
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("torchrun", torchrun), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    environment = {**os.environ, **slurm, "PATH": f"{commands}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(FILE), "run.toml"], cwd=folder, env=environment)


def test_its_syntax_and_the_flags_that_it_gives() -> None:
    from torch.distributed.run import get_args_parser

    subprocess.run(["bash", "-n", str(FILE)], check=True)
    given = re.findall(r"^    (--[a-z-]+)=", FILE.read_text(), flags=re.M)
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    assert len(given) == 6 and set(given) <= known
    module = re.search(r"-m ([\w.]+)", FILE.read_text())
    assert module and importlib.util.find_spec(module[1])


def test_a_run_that_ends_by_itself(tmp_path: Path) -> None:
    job = start(tmp_path)
    assert job.wait(30) == 0
    assert not (tmp_path / "requeued").exists()
    assert (tmp_path / "given").read_text().split() == [
        *("--nnodes=2", "--nproc-per-node=4", "--max-restarts=0", "--rdzv-id=77-0", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=node1:20077", "-m", "skycairn.cli.train", "run.toml"),
    ]


def test_a_run_whose_time_is_up_is_told_once_and_goes_on_in_another_job(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    job = start(tmp_path)
    try:
        for _ in range(600):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.05)
        os.killpg(int((tmp_path / "group").read_text()), signal.SIGUSR1)
        assert job.wait(30) == 75
    finally:
        (tmp_path / "wait").unlink()
        job.wait(30)
    assert (tmp_path / "signals").read_text() == "saved\n"
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"


def test_a_run_that_fails_is_not_put_back(tmp_path: Path) -> None:
    assert start(tmp_path, "#!/bin/bash\nexit 3\n").wait(30) == 3
    assert not (tmp_path / "requeued").exists()
