"""The rules by which Azure refuses requests, and the durations in them. All functions here raise ApiError."""

import re
from typing import Any

from .wire import ApiError
from .workspace import Workspace

NAME_PATTERN = r"[a-zA-Z](?!.*--)[a-zA-Z0-9-]{1,30}[a-zA-Z0-9]"


def check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ApiError(
            400, "BadArgument", f"{name!r} is not 3 to 32 letters, digits and single dashes that begin with a letter"
        )


def check_traffic(traffic: dict[str, int], deployments: set[str]) -> None:
    unknown = [name for name in traffic if name not in deployments]
    if unknown:
        raise ApiError(400, "BadRequest", f"traffic names {unknown[0]}, which is not a deployment of the endpoint")
    if any(share < 0 for share in traffic.values()) or sum(traffic.values()) not in (0, 100):
        raise ApiError(400, "BadRequest", f"traffic must be percentages that sum to 0 or 100, not {traffic}")


def check_assets(properties: dict[str, Any], workspace: Workspace) -> None:
    """Checks that the environment and the model of a deployment are registered, and that it has code."""
    if not properties.get("codeConfiguration"):
        raise ApiError(400, "BadRequest", "the deployment has no code, and the stand-in runs only code")
    for asset in filter(None, (properties.get("environmentId"), properties.get("model"))):
        workspace.find_asset(asset)


def startup_seconds(probe: dict[str, Any]) -> float:
    """Returns the seconds that a readiness probe allows, with Azure's defaults for fields that it lacks."""
    initial, period = (seconds(probe.get(name, "PT10S")) for name in ("initialDelay", "period"))
    return initial + period * int(probe.get("failureThreshold", 30))


def seconds(duration: str) -> float:
    """Returns the seconds of an ISO 8601 duration of days, hours, minutes and seconds."""
    match = re.fullmatch(r"P(?:(\d+)D)?T?(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    if match is None:
        raise ApiError(400, "BadArgument", f"{duration} is not a duration")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest
