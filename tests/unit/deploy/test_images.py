"""The Dockerfiles say what `build.py` does: no engine builds them here, so what can be told of them without one is held."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "deploy" / "image"


def _build() -> ModuleType:
    """`deploy/image/build.py`, which is a program."""
    specification = importlib.util.spec_from_file_location("image_build", IMAGES / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


build = _build()
NAMES = list(build.images())


class Stage:
    """A stage of a Dockerfile: its base, and its instructions with their arguments, in order."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.instructions: list[tuple[str, str]] = []

    def arguments(self, instruction: str) -> list[str]:
        return [text for kind, text in self.instructions if kind == instruction]


def stages(name: str) -> list[Stage]:
    """The stages of the Dockerfile of an image."""
    text = (IMAGES / f"{name}.Dockerfile").read_text().replace("\\\n", " ")
    found: list[Stage] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, stage = arguments.partition(" AS ")
            found.append(Stage(base, stage))
        else:
            found[-1].instructions.append((instruction, arguments.strip()))
    return found


def test_every_image_has_a_dockerfile() -> None:
    assert {path.name.removesuffix(".Dockerfile") for path in IMAGES.glob("*.Dockerfile")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_the_same_program_as_the_same_user_in_the_same_environment(name: str) -> None:
    image, last = build.images()[name], stages(name)[-1]
    assert [json.loads(text) for text in last.arguments("ENTRYPOINT")] == [image.entrypoint]
    assert last.arguments("USER") == [image.user]
    assert last.arguments("ENV") == image.environment


@pytest.mark.parametrize("name", NAMES)
def test_what_it_copies_is_there(name: str) -> None:
    earlier: dict[str, Stage] = {}
    for stage in stages(name):
        for text in stage.arguments("COPY"):
            *options, source, _ = text.split()
            if not options:
                assert (ROOT / source).exists(), text
                continue
            (option,) = options
            origin = earlier[option.removeprefix("--from=")]
            made = " ".join(origin.arguments("RUN"))
            assert re.search(rf"(--target|-o) {source}\b", made) or source == "/usr/local/bin/envoy", text
        earlier[stage.name] = stage


@pytest.mark.parametrize("name", NAMES)
def test_only_known_instructions_are_used(name: str) -> None:
    assert {kind for stage in stages(name) for kind, _ in stage.instructions} <= {"RUN", "COPY", "USER", "ENV", "ENTRYPOINT"}


@pytest.mark.parametrize("name", NAMES)
def test_its_bases_are_of_the_same_releases(name: str) -> None:
    for stage in stages(name):
        assert stage.base in {
            f"envoyproxy/envoy:v{build.ENVOY}",
            f"python:{build.DEBIAN_PYTHON}-slim-bookworm",
            "debian:bookworm-slim",
            "gcr.io/distroless/python3-debian12:nonroot",
        }


@pytest.mark.parametrize("name", NAMES)
def test_its_packages_and_links_are_those_of_the_script(name: str) -> None:
    last = stages(name)[-1]
    installed = {
        word
        for text in last.arguments("RUN")
        for words in re.findall(r"apt-get install -y --no-install-recommends ([^&]+)", text)
        for word in words.split()
    }
    assert installed - {"python3"} <= set(build.RULES)
    links = {word for text in last.arguments("RUN") for words in re.findall(r"for applet in ([^;]+);", text) for word in words.split()}
    assert links <= set(build.APPLETS)


def test_the_plugin_is_compiled_in_the_same_way() -> None:
    (plugin,) = [stage for stage in stages("cni") if stage.name == "plugin"]
    (command,) = [text for text in plugin.arguments("RUN") if text.startswith("gcc")]
    assert shlex.split(command) == ["gcc", *build.PLUGIN, "-o", "/xds-cni", "/src/xds-cni.c"]
