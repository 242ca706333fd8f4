"""The Dockerfile, as far as a machine without Docker can run it: its files and its commands, in another folder."""

import base64
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from server import ROOT

INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)).splitlines()
    if line
]


def instructions(name: str) -> list[str]:
    return [argument for instruction, argument in INSTRUCTIONS if instruction == name]


def test_the_image_and_the_packages_are_those_of_the_deployment() -> None:
    environment = yaml.safe_load((ROOT / "deployment.yml").read_text())["environment"]
    assert f"IMAGE={environment['image']}" in instructions("ARG")
    assert f"{environment['conda_file']} /tmp/conda.yaml" in instructions("COPY")
    assert "conda env create --prefix /opt/llava --file /tmp/conda.yaml" in instructions("RUN")[0]


def copied(image: Path) -> Path:
    """Makes the folder /app of the image: what COPY names, without what .dockerignore leaves out."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#*!"]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for argument in instructions("COPY"):
        *sources, target = argument.split()
        assert set(sources) <= set(sent), "Docker gets no file that .dockerignore leaves out"
        if target.startswith("/"):
            continue
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, image / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, image / target)
    for path in ignored:
        shutil.rmtree(image / path)
    return image


@pytest.mark.slow
def test_the_entry_point_serves_from_the_copied_files_alone(tmp_path: Path) -> None:
    image = copied(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GOMP_SPINCOUNT": "0"}
    for assignment in shlex.split(" ".join(instructions("ENV"))):
        name, _, value = assignment.partition("=")
        environment[name] = value.replace("/app", str(image))
    entry, health = (
        [
            word.replace("/opt/llava/bin/python", sys.executable).replace(":5001/", f":{port}/")
            for word in json.loads(re.sub(r"^[^\[]*", "", instructions(name)[0]))
        ]
        for name in ("ENTRYPOINT", "HEALTHCHECK")
    )
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*entry, "--port", str(port)], cwd=image, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            next(line for line in server.stdout if "Ready" in line)
            subprocess.run(health, env=environment, check=True)
            picture = base64.b64encode((ROOT / "demo/pictures/shapes.png").read_bytes()).decode()
            body = {"input_data": {"input_string": ["What is in the image?"], "images": [picture]}}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            assert answer == [{"0": "a red circle, a blue cross, a yellow triangle"}]
        finally:
            server.terminate()
            assert server.wait(30) == 0
            server.stdout.close()
