"""Addresses on the command line, and what is asked there."""

import json
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import click

from xds.errors import ConfigError


class HostPort(click.ParamType[str]):
    """`HOST:PORT`, `[ADDRESS]:PORT` for IPv6. Port 0 lets the system choose."""

    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`value` as it stands, if it is one."""
        host, colon, port = value.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare and not host.startswith("[")):
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return value


HOST_PORT = HostPort()


def ask(url: str, option: str) -> Any:
    """The JSON that a page of a control plane's HTTP port has. ConfigError, which names `option`, where it has none."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(option, f"{url} is not an http:// or https:// address")
    try:
        with urlopen(url, timeout=10) as answer:  # noqa: S310 - the scheme is checked above
            return json.load(answer)
    except HTTPError as e:
        raise ConfigError(option, f"{url} answers {e.code}: {e.read().decode(errors='replace').strip()}") from e
    except (URLError, ValueError) as e:
        reason = e.reason if isinstance(e, URLError) else e
        raise ConfigError(option, f"{url} does not answer ({reason}); is `xds serve` running there?") from e
