"""The commands that the documentation tells people to run: what it says is what the tests do."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support.kube import binary
from support.node import Node

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Instructions:
    """The sections of one document, by their titles: the commands in each, and the running of them.

    They run in `directory`, where `deploy` is that of the repository.
    """

    def __init__(self, document: Path, directory: Path) -> None:
        self.directory = directory
        self._sections = {title: _COMMANDS.findall(text) for title, text in _SECTION.findall(document.read_text())}
        self.pending = {title for title, blocks in self._sections.items() if blocks}
        (directory / "deploy").symlink_to(ROOT / "deploy")

    def commands(self, title: str) -> list[str]:
        """The commands of a section, in order. A line that ends in a backslash goes on in the next."""
        self.pending.discard(title)
        return [line for block in self._sections[title] for line in block.replace("\\\n", "").splitlines() if line]

    def environment(self, kubeconfig: Path | str = "") -> dict[str, str]:
        path = os.pathsep.join(
            (str(Path(sys.executable).parent), *(str(binary(n).parent) for n in ("kubectl", "helm")), os.environ["PATH"])
        )
        return {"PATH": path, "KUBECONFIG": str(kubeconfig), "HELM_CACHE_HOME": str(self.directory / "helm"), "COLUMNS": "300"}

    def follow(self, node: Node, title: str) -> None:
        """Run the commands of a section on the node."""
        for command in self.commands(title):
            self.run(node, command)

    def run(self, node: Node, command: str) -> str:
        """Run one command; AssertionError with what it says where it fails."""
        environment = [f"{key}={value}" for key, value in self.environment(node.kubeconfig).items()]
        try:
            return node.inside("env", *environment, "bash", "-c", f"cd {self.directory} && {command}", seconds=300).stdout
        except subprocess.TimeoutExpired as e:
            raise AssertionError(f"{command} has not ended:\n{e.stdout}\n{node.state()}") from e
