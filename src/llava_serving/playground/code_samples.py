"""The next request as code that can be copied: a curl command, a Python program, and the JSON body.

None of them holds the key. They read it from the variable that `llava-serving score` reads.
"""

import json
import pprint
import shlex
from dataclasses import dataclass
from typing import Any, Literal

from ..client.credentials import KEY_VARIABLE

# Whether callers send the endpoint's key, a Microsoft Entra token, or nothing.
Authorization = Literal["key", "entra"] | None
ENTRA_COMMAND = "az account get-access-token --resource https://ml.azure.com --query accessToken --output tsv"


@dataclass(frozen=True)
class Target:
    """An endpoint as its callers name it: without key or token."""

    url: str
    deployment: str | None = None
    authorization: Authorization = None


def curl_command(target: Target, body: dict[str, Any]) -> str:
    """Returns a command for a POSIX shell."""
    headers = ["-H 'Content-Type: application/json'"]
    if target.authorization == "key":
        headers.append(f'-H "Authorization: Bearer ${KEY_VARIABLE}"')
    if target.authorization == "entra":
        headers.append(f'-H "Authorization: Bearer $({ENTRA_COMMAND})"')
    if target.deployment:
        headers.append(f"-H {shlex.quote(f'azureml-model-deployment: {target.deployment}')}")
    return f"curl -s {shlex.quote(target.url)} {' '.join(headers)} -d @- <<'END'\n{json_body(body)}\nEND"


def python_program(target: Target, body: dict[str, Any]) -> str:
    """Returns a program that needs only Python."""
    headers = ["'Content-Type': 'application/json'"]
    imports = ["json", "urllib.request"]
    if target.authorization == "key":
        imports.insert(1, "os")
        headers.append(f"'Authorization': 'Bearer ' + os.environ['{KEY_VARIABLE}']")
    if target.authorization == "entra":
        imports.insert(1, "subprocess")
        headers.append("'Authorization': 'Bearer ' + token")
    if target.deployment:
        headers.append(f"'azureml-model-deployment': {target.deployment!r}")
    token = f"token = subprocess.check_output({ENTRA_COMMAND.split()!r}, text=True).strip()\n"
    return (
        "".join(f"import {name}\n" for name in imports)
        + f"\nbody = {pprint.pformat(body, width=100, sort_dicts=False)}\n"
        + (token if target.authorization == "entra" else "")
        + f"headers = {{{', '.join(headers)}}}\n"
        + f"request = urllib.request.Request({target.url!r}, json.dumps(body).encode(), headers)\n"
        + "with urllib.request.urlopen(request) as response:\n"
        + f"    print(json.load(response){_answer_text(body)})\n"
    )


def json_body(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False)


def _answer_text(body: dict[str, Any]) -> str:
    """Returns the expression that takes the text out of an answer in the form of `body`."""
    return "['choices'][0]['message']['content']" if "messages" in body else "[0]['0']"
