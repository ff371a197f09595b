"""An SSH connection to a device: its host key is checked, and each way in which it fails is one clear error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from edgewise.address import Address, parse_ssh
from edgewise.errors import UserError, need_extra
from edgewise.types import Device

_CONNECT_S = 20.0
_KEEPALIVE_S = 10.0
_KEEPALIVES = 3
"""So many without an answer, and the link counts as cut."""
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")

Connection = Any
"""asyncssh.SSHClientConnection, which is imported only where one is opened."""


class LinkCutError(Exception):
    """The connection is gone, or did not come about: what is tried again may succeed."""


def where(device: Device) -> str:
    """'pi@host:22', for people."""
    return str(device.ssh)


async def open_link(device: Device) -> Connection:
    """Connect and log in, with a key: nobody is there to type a password.

    Raises UserError for a host key that is not the known one, a login that is refused, files that are not there;
    LinkCutError for what may pass: no answer, no route, no such name.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise need_extra("profile", error) from error
    address = parse_ssh(str(device.ssh))
    try:
        return await asyncssh.connect(address.host, **_options(device, address))
    except asyncssh.PermissionDenied as error:
        raise UserError(
            f"device {device.name!r}: {where(device)} does not let us in: {error.reason}; see that "
            f"`ssh -o BatchMode=yes {address.command} true` works, or name the key by identity"
        ) from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise await _host_key_error(device, address, error) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise UserError(
            f"device {device.name!r}: identity {device.identity or '(of ~/.ssh)'} cannot be used: {error}; a key with "
            f"a passphrase works through ssh-agent"
        ) from error
    except (OSError, TimeoutError, asyncssh.ConnectionLost, asyncssh.KeyExchangeFailed) as error:
        hung_up = isinstance(error, ConnectionError | asyncssh.DisconnectError)
        if hung_up and await _is_another_key(device, address):
            raise await _host_key_error(device, address, error) from error
        raise LinkCutError(
            f"cannot reach {where(device)}: {_words(error)}; is it on, and is the address right?"
        ) from error
    except asyncssh.DisconnectError as error:
        raise LinkCutError(f"{where(device)} closed the connection: {error.reason}") from error
    except ValueError as error:  # a known_hosts file or ~/.ssh/config that cannot be read
        raise UserError(f"device {device.name!r}: {error}") from error


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text or (f"no answer in {_CONNECT_S:g} s" if isinstance(error, TimeoutError) else type(error).__name__)


def _options(device: Device, address: Address) -> dict[str, Any]:
    found: dict[str, Any] = {
        # Named always: an empty UserKnownHostsFile in ~/.ssh/config would have asyncssh trust any key.
        "known_hosts": _known_hosts(device),
        "connect_timeout": _CONNECT_S,
        "login_timeout": _CONNECT_S,
        "keepalive_interval": _KEEPALIVE_S,
        "keepalive_count_max": _KEEPALIVES,
    }
    if address.user is not None:
        found["username"] = address.user
    if address.port is not None:
        found["port"] = address.port
    if device.identity is not None:
        found["client_keys"] = [_file(device, "identity", device.identity)]
    return found


def _known_hosts(device: Device) -> list[str] | bytes:
    if device.known_hosts is not None:
        return [_file(device, "known_hosts", device.known_hosts)]
    found = [str(path) for name in _KNOWN_HOSTS if (path := Path(name).expanduser()).is_file()]
    return found or b""  # none: no host is known


def _file(device: Device, what: str, name: str) -> str:
    path = Path(name).expanduser()
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise UserError(f"device {device.name!r}: {what} is {name!r}: {error.strerror}") from error


async def _shown_key(address: Address) -> Any:
    """The host key that the device shows; None where it shows none. Nothing is trusted by asking."""
    import asyncssh

    with suppress(Exception):  # it is for the words of an error, and the device may be gone by now
        async with asyncio.timeout(_CONNECT_S):
            return await asyncssh.get_server_host_key(address.host, *([address.port] if address.port else []))
    return None


def _keys_known(device: Device, address: Address) -> list[Any]:
    """The keys, of the host and of those who vouch for it, that the known_hosts file has for it; revoked ones too."""
    import asyncssh

    port = None if address.port in (None, 22) else address.port
    hosts, authorities, revoked, *_ = asyncssh.match_known_hosts(_known_hosts(device), address.host, "", port)
    return [*hosts, *authorities, *revoked]


async def _host_key_error(device: Device, address: Address, error: Exception) -> UserError:
    """Whether the host is not known or has another key than the known one, with the key that it shows."""
    key = await _shown_key(address)
    shown = f"{key.get_algorithm()} {key.get_fingerprint()}" if key else f"no key that we can read ({error})"
    file = device.known_hosts or _KNOWN_HOSTS[0]
    if _keys_known(device, address):
        return UserError(
            f"device {device.name!r}: {where(device)} has another host key than {file} says: it shows {shown}. "
            f"Somebody may stand between, or it was set up anew: if you know that it was, `ssh-keygen -f {file} -R "
            f"'{address.known_as}'` forgets the old key"
        )
    return UserError(
        f"device {device.name!r}: the host key of {where(device)} is not in {file}: it shows {shown}. Compare that "
        f"with `ssh-keygen -lf` of the key file on the device, then let ssh write it down: "
        f"`ssh -o UserKnownHostsFile={file} {address.command}`"
    )


async def _is_another_key(device: Device, address: Address) -> bool:
    """Whether a server that hung up has no key of the kinds that are known of it: it sees that before we do."""
    known = {key.get_algorithm() for key in _keys_known(device, address)}
    shown = await _shown_key(address) if known else None
    return shown is not None and shown.get_algorithm() not in known


@asynccontextmanager
async def cut_is_clear(connection: Connection) -> AsyncIterator[None]:
    """Turn whatever a lost connection raises into LinkCutError."""
    import asyncssh

    try:
        yield
    except (asyncssh.DisconnectError, asyncssh.ChannelOpenError, asyncio.IncompleteReadError, ConnectionError) as error:
        raise LinkCutError(str(error) or type(error).__name__) from error
