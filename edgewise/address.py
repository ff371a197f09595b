"""Where an SSH device is: 'user@host:port'. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgewise.errors import PlanError

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@:\s/]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^@:\s/\[\]-][^@:\s/\[\]]*))(?::(?P<port>\d+))?"
)


@dataclass(frozen=True)
class Address:
    """A machine that SSH reaches."""

    host: str
    """Name, number, or an alias of ~/.ssh/config."""
    user: str | None = None
    """None: as ~/.ssh/config says, or this user's name."""
    port: int | None = None
    """None: as ~/.ssh/config says, or 22."""

    @property
    def command(self) -> str:
        """How ssh is called for it: '-p 2222 pi@host'."""
        where = f"{self.user}@{self.host}" if self.user else self.host
        return f"-p {self.port} {where}" if self.port else where

    @property
    def known_as(self) -> str:
        """The host's name in a known_hosts file."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host


def parse_ssh(text: str) -> Address:
    """'pi@192.168.1.7', 'host:2222', 'pi@[fe80::1]:2222'. Raises PlanError."""
    found = _ADDRESS.fullmatch(text)
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise PlanError(f"ssh is {text!r}; expected user@host or user@host:port")
    return Address(found["v6"] or found["host"], found["user"], port)
