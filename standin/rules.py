"""What Azure refuses, and how it tells durations. Everything here raises Refused."""

import re
from typing import Any

from .wire import Refused
from .workspace import Workspace

NAME = r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,30}[a-zA-Z0-9]"


def check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise Refused(
            400, "BadArgument", f"{name!r} is no name: 3 to 32 letters, digits and single dashes, a letter first"
        )


def check_traffic(traffic: dict[str, int], deployments: set[str]) -> None:
    strangers = [name for name in traffic if name not in deployments]
    if strangers:
        raise Refused(400, "BadRequest", f"traffic is given to {strangers[0]}, which is no deployment of the endpoint")
    if any(share < 0 for share in traffic.values()) or sum(traffic.values()) not in (0, 100):
        raise Refused(400, "BadRequest", f"traffic is percentages that sum to 0 or 100, and not {traffic}")


def check_assets(properties: dict[str, Any], workspace: Workspace) -> None:
    """What a deployment names has to be registered."""
    if not properties.get("codeConfiguration"):
        raise Refused(400, "BadRequest", "the stand-in runs code: the deployment has none")
    for asset in filter(None, (properties.get("environmentId"), properties.get("model"))):
        workspace.asset(asset)


def patience(probe: dict[str, Any]) -> float:
    """Seconds, by Azure's defaults where the probe does not say."""
    initial, period = (seconds(probe.get(name, "PT10S")) for name in ("initialDelay", "period"))
    return initial + period * int(probe.get("failureThreshold", 30))


def seconds(duration: str) -> float:
    """Of an ISO 8601 duration of days and less."""
    match = re.fullmatch(r"P(?:(\d+)D)?T?(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    if match is None:
        raise Refused(400, "BadArgument", f"{duration} is no duration")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest
