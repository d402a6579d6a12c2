"""What happened to a deployment, in words for whoever watches it start or change. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployer.deployments.state import DeployedRecord, DeploymentRecord


def changes(before: DeploymentRecord | None, after: DeploymentRecord) -> list[str]:
    """A line for each thing that is another one than it was, oldest first."""
    old = _servers(before) if before else {}
    lines = [*_of_servers(old, _servers(after))]
    retired = set(after.retiring) - set(before.retiring if before else ())
    lines += [f"{instance} gets nothing new and finishes what it has" for instance in after.retiring
              if instance in retired]  # fmt: skip
    if before is not None:
        lines += [f"{name} has ended" for name in before.retiring if name not in after.retiring]
        if after.gateway_restarts > before.gateway_restarts:
            lines.append("the gateway is started again")
    return lines


def _servers(record: DeploymentRecord) -> dict[str, tuple[str, DeployedRecord]]:
    """Every process of a record, those of a reload too: its server's name and how it is."""
    starting = record.reload.starting if record.reload else {}
    both = [*record.servers.items(), *starting.items()]
    return {one.instance: (server, one) for server, one in both}


def _of_servers(
    old: Mapping[str, tuple[str, DeployedRecord]], new: Mapping[str, tuple[str, DeployedRecord]]
) -> Iterator[str]:
    for instance, (server, one) in new.items():
        was = old[instance][1].state if instance in old else ""
        if was == one.state:
            continue
        after = f" after {one.ready_seconds:.1f} s" if one.ready_seconds is not None else ""
        if one.state == "ready":
            yield f"{server} is ready{after} ({instance})"
        elif one.state == "starting" and not was:
            yield f"{server} starts ({instance})"
        else:
            cause = str((one.error or {}).get("message", "")).partition("\n")[0]
            yield f"{server} is {one.state}" + (f": {cause}" if cause else "") + f" ({instance})"
