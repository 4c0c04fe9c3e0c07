"""Help, exit codes, and errors that a person can act on."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format
from support.commands import xds
from support.serving import Serve, eventually

from xds import pb
from xds.cli import COMMANDS, cli

EXAMPLE = Path(__file__).parents[2] / "examples/bookinfo"
WORKLOAD = "productpage-v1.default"


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


class TestHelp:
    def test_names_every_command(self) -> None:
        ran = xds("--help")
        assert ran.code == 0
        assert all(re.search(rf"^  {name} +\S", ran.out, re.MULTILINE) for name in COMMANDS)

    def test_is_at_h_too(self) -> None:
        assert xds("-h").out == xds("--help").out

    def test_without_arguments_is_shown(self) -> None:
        assert "Try it:" in xds().err + xds().out

    @pytest.mark.parametrize("name", COMMANDS)
    def test_has_examples_that_parse(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = CliRunner().invoke(cli, [name, "--help"], prog_name="xds").output
        examples = re.findall(rf"\bxds {name}((?: [^\s>&|)]+)*)", text.partition("Example")[2].partition("Options:")[0])
        assert examples, text
        monkeypatch.chdir(tmp_path)
        Path("examples").symlink_to(EXAMPLE.parent)
        for example in examples:
            arguments = [each.strip("'") for each in example.split()]
            for path in arguments:
                if path.endswith(".yaml"):
                    Path(path).touch()
            with command(name).make_context(name, arguments):
                pass

    @pytest.mark.parametrize("name", COMMANDS)
    def test_explains_every_option_that_its_name_does_not(self, name: str) -> None:
        plain = {"--help", "--service-account", "--admin-port", "--log-level", "-o"}
        options = [p for p in command(name).params if isinstance(p, click.Option) and not plain.intersection(p.opts)]
        assert [option.name for option in options if not option.help] == []

    def test_does_not_wait_for_what_it_does_not_need(self) -> None:
        program = "import sys, xds.cli; sys.exit(bool({'grpc', 'xds.pb', 'aiohttp'} & sys.modules.keys()))"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_script(self, shell: str) -> None:
        ran = xds("completion", shell)
        assert ran.code == 0
        assert "_XDS_COMPLETE" in ran.out

    def test_bash_completes_commands_and_values(self) -> None:
        def completed(words: str, at: int) -> list[str]:
            environment = {"_XDS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
            return [line.partition(",")[2] for line in xds(env=environment).out.splitlines()]

        assert completed("xds d", 1) == ["dump", "demo"]
        assert completed("xds dump --as a.b cl", 4) == ["clusters"]


class TestErrors:
    """One line on stderr, without a traceback; 2 where the command line or what it names is wrong, 1 where the answer is no."""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["nonsense"], "No such command 'nonsense'"),
            (["dump", "clusters"], "Missing option '--as'"),
            (["dump", "--as", "nope", "clusters"], "'nope' names no namespace: write pod.namespace"),
            (["dump", "--as", "a.b", "nonsense"], "'nonsense' is not one of"),
            (["dump", "--as", "a.b", "--files", "/nowhere", "clusters"], "'/nowhere' does not exist"),
            (["dump", "--as", "a.b", "--server", "here", "clusters"], "'here' is not HOST:PORT"),
            (["dump", "--as", "a.b", "--server", "127.0.0.1:1", "clusters"], "is `xds serve` running there?"),
            (["serve", "--files", "/nowhere"], "/nowhere: no such file or directory"),
            (["serve", "--kubeconfig", "/nowhere"], "/nowhere: no such file"),
            (["serve", "--resources", "/nowhere"], "/nowhere"),
            (["serve", "--files", str(EXAMPLE), "--http-address", "here"], "'here' is not HOST:PORT"),
            (["serve", "--files", str(EXAMPLE), "--grpc-address", "fd00::1:80"], "'fd00::1:80' is not HOST:PORT"),
            (["bootstrap", "nope"], "'nope' names no namespace: write pod.namespace"),
            (["bootstrap", "a.b", "--label", "x"], "'x' is not KEY=VALUE"),
            (["bootstrap", "a.b", "--server", "here"], "'here' is not HOST:PORT"),
            (["proxies", "--server", "127.0.0.1:1"], "is not an http:// or https:// address"),
            (["proxies", "--server", "http://127.0.0.1:1"], "is `xds serve` running there?"),
            (["completion", "tcsh"], "'tcsh' is not one of"),
            (["demo", "--requests", "5"], "5 is not in the range"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_is_wrong_with_the_command_line(self, arguments: list[str], said: str) -> None:
        ran = xds(*arguments, env={"KUBECONFIG": ""})
        assert (ran.code, ran.out) == (2, "")
        assert said in ran.err
        assert "Traceback" not in ran.err

    @pytest.mark.parametrize("option", ["--http-address", "--grpc-address"])
    def test_a_port_that_is_taken(self, option: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            addresses = {"--http-address": "127.0.0.1:0", "--grpc-address": "127.0.0.1:0", option: address}
            ran = xds("serve", "--files", EXAMPLE, *(part for pair in addresses.items() for part in pair))
        assert ran.code == 2
        assert f"xds: {address}: cannot listen here" in ran.err
        assert "Traceback" not in ran.err

    def test_nothing_matches(self) -> None:
        ran = xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, "clusters", "--name", "nothing*")
        assert ran == (1, "", "nothing matches\n")


class TestBootstrap:
    def test_envoy_reads_it(self) -> None:
        ran = xds("bootstrap", WORKLOAD, "--address", "10.0.0.7", "--label", "app=productpage", "--interception", "TPROXY")
        message = json_format.ParseDict(yaml.safe_load(ran.out), pb.Bootstrap(), descriptor_pool=pb.POOL)
        assert message.node.id == "sidecar~10.0.0.7~productpage-v1.default~default.svc.cluster.local"
        assert dict(message.node.metadata["LABELS"]) == {"app": "productpage"}
        assert message.node.metadata["INTERCEPTION_MODE"] == "TPROXY"
        assert message.dynamic_resources.ads_config.api_type == message.dynamic_resources.ads_config.DELTA_GRPC

    def test_json_is_the_same(self) -> None:
        assert json.loads(xds("bootstrap", WORKLOAD, "-o", "json").out) == yaml.safe_load(xds("bootstrap", WORKLOAD).out)

    def test_state_of_the_world(self) -> None:
        found = yaml.safe_load(xds("bootstrap", WORKLOAD, "--sotw").out)
        assert found["dynamic_resources"]["ads_config"]["api_type"] == "GRPC"

    def test_for_grpc(self) -> None:
        found = json.loads(xds("bootstrap", WORKLOAD, "--grpc", "--server", "istiod.example.com:15010").out)
        assert found["xds_servers"][0]["server_uri"] == "istiod.example.com:15010"
        assert found["node"]["metadata"]["NAMESPACE"] == "default"


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    with Serve("--files", EXAMPLE) as serve:
        yield serve


class TestDump:
    @pytest.mark.parametrize("kind", ["clusters", "endpoints", "listeners", "routes"])
    def test_a_table_is_whole_where_nobody_looks_at_it(self, kind: str) -> None:
        ran = xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, kind, env={"COLUMNS": "40"})
        assert ran.code == 0
        assert "…" not in ran.out
        assert "reviews.default.svc.cluster.local" in ran.out or "127.0.2.1:9080" in ran.out

    def test_json_and_yaml_say_the_same(self) -> None:
        command = ("dump", "--files", EXAMPLE, "--as", WORKLOAD)
        found = json.loads(xds(*command, "-o", "json").out)
        assert found == list(yaml.safe_load_all(xds(*command, "-o", "yaml").out))
        assert {each["@type"].rpartition(".")[2] for each in found} == {
            "Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration",
        }  # fmt: skip

    def test_only_some(self) -> None:
        ran = xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, "clusters", "--name", "*|v1|*", "--name", "Black*", "-o", "json")
        assert [each["name"] for each in json.loads(ran.out)] == ["BlackHoleCluster", "outbound|9080|v1|reviews.default.svc.cluster.local"]

    def test_of_a_running_server_is_as_of_its_files(self, serve: Serve) -> None:
        asked = xds("dump", "--server", f"127.0.0.1:{serve.grpc}", "--as", WORKLOAD, "-o", "json")
        assert json.loads(asked.out) == json.loads(xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, "-o", "json").out)

    def test_why(self) -> None:
        ran = xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, "clusters", "--name", "*|v2|*", "--why")
        assert "DestinationRule reviews.default" in ran.out

    def test_why_of_a_running_server_is_as_of_its_files(self, serve: Serve) -> None:
        server = ("--server", f"127.0.0.1:{serve.grpc}", "--http", f"http://127.0.0.1:{serve.http}")
        asked = xds("dump", *server, "--as", WORKLOAD, "--why", "-o", "json")
        assert asked.code == 0, asked.err
        found = json.loads(asked.out)
        assert found == json.loads(xds("dump", "--files", EXAMPLE, "--as", WORKLOAD, "--why", "-o", "json").out)
        assert any("DestinationRule reviews.default" in each["why"] for each in found)
        classes = serve.debug("memory")["classes"]["count"]
        assert json.loads(xds("dump", *server, "--as", WORKLOAD, "--why", "-o", "json").out) == found
        assert serve.debug("memory")["classes"]["count"] == classes, "asked again, nothing is made again"

    def test_why_of_a_server_that_does_not_say(self, serve: Serve) -> None:
        server = ("--server", f"127.0.0.1:{serve.grpc}", "--http", f"http://127.0.0.1:{serve.http}/nothing")
        ran = xds("dump", *server, "--as", WORKLOAD, "--why", "clusters")
        assert ran.code == 2
        assert "answers 404" in ran.err

    def test_what_is_wrong_with_files_is_told_and_hides_nothing(self, tmp_path: Path) -> None:
        shutil.copytree(EXAMPLE, tmp_path / "it")
        (tmp_path / "it/broken.yaml").write_text("}")
        rules = tmp_path / "it/reviews.yaml"
        rules.write_text(rules.read_text().replace("weight: 90", "wieght: 90"))
        ran = xds("dump", "--files", tmp_path / "it", "--as", WORKLOAD, "routes", "-o", "json")
        assert ran.code == 0
        assert json.loads(ran.out) != []
        broken, warned = ran.err.splitlines()
        assert broken.startswith(f"xds: File {tmp_path}/it/broken.yaml: {tmp_path}/it/broken.yaml:1: $: not YAML")
        assert warned.endswith("$.spec.http[0].route[0].wieght: unknown field; did you mean `weight`?")


class TestServe:
    def test_pages_of_the_http_port(self, serve: Serve) -> None:
        assert serve.get("/healthz") == (200, "ok\n")
        assert serve.get("/readyz") == (200, "ok\n")
        assert "pilot_xds_pushes" in serve.get("/metrics")[1]
        assert serve.get("/nothing")[0] == 404
        assert serve.get("/debug/why?as=nobody") == (400, "?as= 'nobody' names no namespace: write pod.namespace\n")
        for page in json.loads(serve.get("/debug/")[1])["endpoints"]:
            status, text = serve.get(page)
            assert status == 200, page
            json.loads(text)
        assert {s["hostname"] for s in serve.debug("registryz")} >= {"reviews.default.svc.cluster.local"}
        assert serve.debug("memory")["rss_bytes"] > 0
        assert serve.debug("errors") == []

    def test_objects_with_problems_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad}\nspec: {hosts: [a], http: [{timeout: x}]}\n"
        )
        with Serve("--files", tmp_path) as serve:
            found = serve.debug("configz")
        assert [(p["object"], p["in_force"], p["warning"]) for p in found] == [("VirtualService bad.default", False, False)]
        assert found[0]["problem"].startswith(f"{tmp_path}/bad.yaml:4: $.spec.http[0].timeout: must be a duration")

    def test_it_is_not_ready_before_everything_is_known(self, tmp_path: Path) -> None:
        kubeconfig = tmp_path / "config"
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "a", "user": {}}],
        }))  # fmt: skip
        with Serve("--kubeconfig", kubeconfig, ready=False) as serve:
            eventually(lambda: serve.get("/healthz")[0] == 200, "the HTTP port")
            assert serve.get("/readyz")[0] == 503
            eventually(lambda: "cluster.unreachable" in serve.log, "the reason to be logged")
            with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", serve.grpc)):
                pass

    def test_it_ends_when_it_is_told_to(self, tmp_path: Path) -> None:
        with Serve("--files", tmp_path) as serve:
            serve.process.terminate()
            assert serve.process.wait(60) == 0
            assert "Traceback" not in serve.log


class TestProxies:
    def test_none(self, serve: Serve) -> None:
        ran = xds("proxies", "--server", f"http://127.0.0.1:{serve.http}")
        assert ran.code == 0
        assert "PROXY" in ran.out

    def test_as_data(self, serve: Serve) -> None:
        for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
            assert read(xds("proxies", "--server", f"http://127.0.0.1:{serve.http}", "-o", form).out) == []


def test_python_m_xds_is_xds() -> None:
    script = Path(sys.executable).with_name("xds")
    assert xds("--version").out == subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout


class TestDemo:
    def test_an_envoy_that_is_not_there(self) -> None:
        ran = xds("demo", "--once", env={"XDS_ENVOY": "/nowhere/envoy"})
        assert ran.code == 2
        assert ran.err == "xds: XDS_ENVOY: /nowhere/envoy is not an executable file\n"

    def test_an_address_that_is_taken(self) -> None:
        with socket.create_server(("127.0.1.5", 9080)):
            ran = xds("demo", "--once")
        assert ran.code == 2
        assert "127.0.1.5:9080, which the sidecar of ratings-v1 needs, cannot be had: Address already in use" in ran.err
