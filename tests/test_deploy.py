"""The files in deploy/: linted where a linter is there, and in step with the command line."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loopwise.cli.parsing import parse
from loopwise.cli.serve import ABOUT, Arguments

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


def program(name: str) -> str:
    """The path of a linter; without it the test is skipped, but where CI says that it must be there."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        if os.environ.get("CI") and name == "hadolint":
            pytest.fail(f"{name} is not there")
        pytest.skip(f"{name} is not there")
    return found


def test_the_dockerfile_passes_its_linter():
    """hadolint has nothing to say of the Dockerfile."""
    linted = subprocess.run(
        [program("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_unit_passes_its_verification(tmp_path):
    """systemd-analyze has nothing to say of the unit, whose program is put in place for it."""
    unit = tmp_path / "loopwise.service"
    unit.write_text((DEPLOY / "loopwise.service").read_text().replace("/opt/loopwise/bin/loopwise", "/bin/true"))
    verified = subprocess.run(
        [program("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in verified.stderr.splitlines() if "loopwise.service" in line]
    assert (verified.returncode, complaints) == (0, [])


def test_the_compose_file_keeps_strangers_out():
    """The port is bound to this machine, the key is a secret, and the container may do nothing that it need not."""
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["loopwise"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def command_lines() -> dict[str, list[str]]:
    """The arguments of `loopwise serve` in each file."""
    docker = (DEPLOY / "Dockerfile").read_text()
    unit = re.search(r"ExecStart=\S+ serve (.*)", (DEPLOY / "loopwise.service").read_text())
    return {
        "Dockerfile": yaml.safe_load(re.search(r"^CMD (\[.*\])$", docker, re.M).group(1)),
        "compose.yaml": yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["loopwise"]["command"],
        "loopwise.service": shlex.split(unit.group(1)),
    }


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml", "loopwise.service"])
def test_the_command_lines_are_understood(file):
    """Each starts the service with options that there are; outside of this machine, with a key."""
    arguments = command_lines()[file]
    options = [argument for argument in arguments if argument.startswith("--")]
    first = arguments.index(options[0])
    assert first >= 1
    parsed = parse(Arguments, arguments[first:], command="serve", about=ABOUT)
    assert parsed.host == "127.0.0.1" or parsed.key_file
