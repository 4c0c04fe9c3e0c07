"""Addresses on the command line."""

import click


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
