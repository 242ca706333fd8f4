"""Azure's command line as the scripts call it: remembers what exists in FAKE_AZ/state.json, and every call.

As Azure's reference has it: options of another command are refused, `create` fails for an online endpoint or deployment
that exists and overwrites a batch one, and a deployment with traffic is not deleted.

FAKE_AZ/broken holds words; a call that has one of them fails. FAKE_AZ/answer is what endpoints answer.
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
    "batch-deployment": {"create": "--file --endpoint-name --set-default"},
    "compute": {"list": "--query --output", "create": "--file --name", "delete": "--name --yes"},
    "job": {"stream": "--name", "download": "--name --output-name --download-path"},
    "autoscale": {
        "list": "--query --output", "delete": "--name",
        "create": "--name --resource --min-count --max-count --count",
    },
    "rule": {"create": "--autoscale-name --condition --resource --scale --cooldown"},
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
    count = 3 if words[:3] == ["monitor", "autoscale", "rule"] else 2
    kind, verb, given = words[count - 1], words[count], options(words[count + 1 :])
    unknown = given.keys() - set(OPTIONS[kind][verb].split())
    if unknown:
        print(f"ERROR: unrecognized arguments: {unknown}", file=sys.stderr)
        return 2
    status = act(state, kind, verb, given)
    path.write_text(json.dumps(state))
    return status


def options(words: list[str]) -> dict[str, str]:
    """Of an option all words up to the next one."""
    given: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            given[name] = []
        else:
            given[name].append(word)
    return {name: " ".join(values) for name, values in given.items()}


def act(state: dict[str, Any], kind: str, verb: str, given: dict[str, str]) -> int:
    name = given.get("--name", "default")
    key = f"{kind}/{given.get('--endpoint-name', '')}/{name}"
    if verb == "show" and key not in state:
        return 3
    if verb == "list":
        wanted = given["--query"].removeprefix("[?name=='").removesuffix("'].name")
        if f"{kind}/{given.get('--endpoint-name', '')}/{wanted}" in state:
            print(wanted)
    elif verb in ("show", "invoke", "get-logs", "download"):
        read(state, kind, verb, given)
    elif kind == "rule":
        state[f"autoscale//{given['--autoscale-name']}"]["rules"].append(given["--condition"])
    elif verb == "create":
        return create(state, kind, key, given)
    elif verb == "update":
        state[key]["traffic"] |= {n: int(p) for n, p in (share.split("=") for share in given["--traffic"].split())}
    elif verb == "delete":
        return delete(state, key, name)
    return 0


def delete(state: dict[str, Any], key: str, name: str) -> int:
    kind, endpoint, _ = key.split("/")
    if kind == "online-deployment" and state[f"online-endpoint//{endpoint}"]["traffic"].get(name):
        print(f"ERROR: {name} has live traffic", file=sys.stderr)
        return 1
    for gone in [found for found in state if found == key or f"/{name}/" in found]:
        del state[gone]
    return 0


def create(state: dict[str, Any], kind: str, key: str, given: dict[str, str]) -> int:
    if kind.startswith("online-") and key in state:
        print(f"ERROR: {key} already exists", file=sys.stderr)
        return 1
    state[key] = {"rules": []} if kind == "autoscale" else {"traffic": {}, **state.get(key, {})}
    state[key] |= [part.split("=") for part in given.get("--set", "").split()]
    return 0


def read(state: dict[str, Any], kind: str, verb: str, given: dict[str, str]) -> None:
    name = given["--name"]
    if verb == "show":
        key = f"{kind}/{given.get('--endpoint-name', '')}/{name}"
        answer(given, {"id": f"{GROUP}/{key}", "scoring_uri": f"https://{name}/score", **state[key]})
    elif verb == "invoke":
        answer(given, {"name": "job-1"} if kind == "batch-endpoint" else (FOLDER / "answer").read_text())
    elif verb == "get-logs":
        print(f"the {given['--container']} log of {name}")
    elif verb == "download":
        folder = Path(given["--download-path"]) / "named-outputs" / "score"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.csv").write_text("a.jsonl,0,an answer,\n")


def answer(given: dict[str, str], found: Any) -> None:
    if "--query" in given:
        for part in given["--query"].split("."):
            found = None if found is None else found.get(part)
        print("" if found is None else found)
    elif given.get("--output") != "none":
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
