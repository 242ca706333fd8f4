"""A fake `az` for the scripts' tests. It keeps what exists in FAKE_AZ/state.json and logs each call to FAKE_AZ/calls.

It follows Azure's reference: it refuses options of another command. `create` fails for an online endpoint or deployment
or a budget that exists, and overwrites other resources. A deployment with traffic cannot be deleted.

FAKE_AZ/broken holds words: a call with one of these words fails. FAKE_AZ/answer is the answer of the endpoints.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_AZ"])
OPTIONS = {
    "online-endpoint": {
        "list": "--query --output", "create": "--file --name", "show": "--name --query --output",
        "update": "--name --traffic", "invoke": "--name --deployment-name --request-file", "delete": "--name --yes",
    },
    "online-deployment": {
        "list": "--endpoint-name --query --output", "create": "--file --name --endpoint-name --set",
        "show": "--name --endpoint-name --query --output", "delete": "--name --endpoint-name --yes",
        "get-logs": "--name --endpoint-name --container --lines",
    },
    "batch-endpoint": {
        "list": "--query --output", "create": "--file --name", "delete": "--name --yes",
        "invoke": "--name --input --input-type --query --output",
    },
    "batch-deployment": {"create": "--file --endpoint-name --set-default --set"},
    "compute": {
        "list": "--query --output", "create": "--file --name --max-instances", "update": "--name --max-instances",
        "delete": "--name --yes",
    },
    "job": {"stream": "--name", "download": "--name --output-name --download-path"},
    "autoscale": {
        "list": "--query --output", "delete": "--name",
        "create": "--name --resource --min-count --max-count --count",
    },
    "rule": {"create": "--autoscale-name --condition --resource --scale --cooldown"},
    "workspace": {"show": "--query --output"},
    "group": {"create": "--name --template-file --parameters"},
    "resource": {"list": "--resource-type --query --output", "delete": "--name --resource-type"},
    "action-group": {
        "list": "--query --output", "create": "--name --short-name --action", "delete": "--name",
    },
    "alert": {
        "list": "--query --output", "delete": "--name",
        "create": "--name --scopes --action --severity --window-size --evaluation-frequency --condition --description",
    },
    "budget": {
        "list": "--query --output", "delete": "--budget-name",
        "create-with-rg": "--budget-name --amount --category --time-grain --time-period --notifications",
    },
}  # fmt: skip
GROUP = "/subscriptions/s/resourceGroups/group-1/providers/p"


def main() -> int:
    words = sys.argv[1:]
    with (FOLDER / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    broken = (FOLDER / "broken").read_text().split() if (FOLDER / "broken").exists() else []
    if any(word in words for word in broken):
        print(f"ERROR: {words}", file=sys.stderr)
        return 1
    path = FOLDER / "state.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    count = next(i for i, word in enumerate(words) if word.startswith("--"))
    kind, verb, values = words[count - 2], words[count - 1], options(words[count:])
    unknown = values.keys() - set(OPTIONS[kind][verb].split())
    if unknown:
        print(f"ERROR: unrecognized arguments: {unknown}", file=sys.stderr)
        return 2
    status = execute(state, kind, verb, values)
    path.write_text(json.dumps(state))
    return status


def options(words: list[str]) -> dict[str, str]:
    """Returns the value of each option: all words up to the next option."""
    values: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            values[name] = []
        else:
            values[name].append(word)
    return {name: " ".join(parts) for name, parts in values.items()}


def execute(state: dict[str, Any], kind: str, verb: str, values: dict[str, str]) -> int:
    name = values.get("--name") or values.get("--budget-name", "default")
    key = f"{kind}/{values.get('--endpoint-name', '')}/{name}"
    if verb == "show" and kind != "workspace" and key not in state:
        return 3
    if verb == "list":
        name = values["--query"].removeprefix("[?name=='").removesuffix("'].name")
        if f"{kind}/{values.get('--endpoint-name', '')}/{name}" in state:
            print(name)
    elif verb in ("show", "invoke", "get-logs", "download"):
        read(state, kind, verb, values)
    elif kind == "rule":
        state[f"autoscale//{values['--autoscale-name']}"]["rules"].append(values["--condition"])
    elif verb in ("create", "create-with-rg"):
        return create(state, kind, key, values)
    elif kind == "compute" and verb == "update":
        state[key]["max_instances"] = values["--max-instances"]
    elif verb == "update":
        state[key]["traffic"] |= {
            name: int(percent) for name, percent in (share.split("=") for share in values["--traffic"].split())
        }
    elif verb == "delete":
        return delete(state, key, name)
    return 0


def delete(state: dict[str, Any], key: str, name: str) -> int:
    kind, endpoint, _ = key.split("/")
    if kind == "online-deployment" and state[f"online-endpoint//{endpoint}"]["traffic"].get(name):
        print(f"ERROR: {name} has live traffic", file=sys.stderr)
        return 1
    for deleted in [other for other in state if other == key or f"/{name}/" in other]:
        del state[deleted]
    return 0


def create(state: dict[str, Any], kind: str, key: str, values: dict[str, str]) -> int:
    if kind == "group":  # a deployment of a template, which creates the resource that the parameter `name` names
        parameters = dict(part.split("=", 1) for part in values["--parameters"].split())
        state[f"resource//{parameters['name']}"] = parameters
        return 0
    if kind.startswith(("online-", "budget")) and key in state:
        print(f"ERROR: {key} already exists", file=sys.stderr)
        return 1
    state[key] = {"rules": []} if kind == "autoscale" else {"traffic": {}, **state.get(key, {})}
    if "--max-instances" in values:
        state[key]["max_instances"] = values["--max-instances"]
    state[key] |= [part.split("=") for part in values.get("--set", "").split()]
    return 0


def read(state: dict[str, Any], kind: str, verb: str, values: dict[str, str]) -> None:
    name = values.get("--name", "default")
    if verb == "show":
        key = f"{kind}/{values.get('--endpoint-name', '')}/{name}"
        known = {"id": f"{GROUP}/{key}", "scoring_uri": f"https://{name}/score", "application_insights": f"{GROUP}/ai"}
        print_output(values, known | state.get(key, {}))
    elif verb == "invoke":
        print_output(values, {"name": "job-1"} if kind == "batch-endpoint" else (FOLDER / "answer").read_text())
    elif verb == "get-logs":
        print(f"the {values['--container']} log of {name}")
    elif verb == "download":
        folder = Path(values["--download-path"]) / "named-outputs" / "score" / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "0a.csv").write_text("a.jsonl,0,an answer,\n")


def print_output(values: dict[str, str], output: Any) -> None:
    """Prints `output`, or the part of it that --query names."""
    if "--query" in values:
        for part in values["--query"].split("."):
            output = None if output is None else output.get(part)
        print("" if output is None else output)
    elif values.get("--output") != "none":
        print(json.dumps(output))


if __name__ == "__main__":
    sys.exit(main())
