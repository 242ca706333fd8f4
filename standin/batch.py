"""Batch endpoints: each job is a process that runs the deployment's entry script over its input."""

import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .container import copy, environment, mount_model
from .storage import Storage
from .wire import Answer, Refused, Request, Routes
from .workspace import CONTAINER, LOCATION, WORKSPACE, Document, Workspace

ENDPOINT = WORKSPACE + "/batchEndpoints/{name}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
HISTORY = "/history/v1.0" + WORKSPACE
DRIVER = Path(__file__).with_name("batch_driver.py")


@dataclass
class Job:
    name: str
    endpoint: str
    deployment: str
    folder: Path
    status: str = "Running"
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def child(self) -> str:
        """The step that scores: Azure keeps its output under that name."""
        return f"{self.name}-batchscoring"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def end(self, status: str) -> None:
        """The first end is the one that holds."""
        if self.status == "Running":
            self.status = status

    def document(self, request: Request) -> Document:
        studio = {"endpoint": f"{request.base}/jobs/{self.name}", "jobServiceType": "Studio"}
        properties = {
            "jobType": "Pipeline",
            "status": self.status,
            "displayName": self.name,
            "experimentName": "batch",
            "tags": {"azureml.batchrun": "true"},
            "properties": {},
            "services": {"Studio": studio},
            "inputs": {},
            "outputs": {},
            "settings": {},
        }
        return {"id": request.path, "name": self.name, "type": "jobs", "properties": properties}


class BatchEndpoints:
    def __init__(self, folder: Path, workspace: Workspace, storage: Storage) -> None:
        self._folder = folder
        self._workspace = workspace
        self._storage = storage
        self._endpoints: dict[str, Document] = {}
        self._deployments: dict[tuple[str, str], Document] = {}
        self._jobs: dict[str, Job] = {}
        self._stopped = False

    def routes(self, routes: Routes) -> None:
        routes.add(
            "GET",
            WORKSPACE + "/batchEndpoints",
            lambda request, **_: Answer(200, {"value": list(self._endpoints.values())}),
        )
        routes.add("GET", ENDPOINT, lambda request, name, **_: Answer(200, self._find(name)))
        routes.add("PUT", ENDPOINT, self._put)
        routes.add("DELETE", ENDPOINT, self._delete)
        routes.add("GET", ENDPOINT + "/deployments", self._list_deployments)
        routes.add(
            "GET", DEPLOYMENT, lambda request, name, deployment, **_: Answer(200, self._deployment(name, deployment))
        )
        routes.add("PUT", DEPLOYMENT, self._put_deployment)
        routes.add("DELETE", DEPLOYMENT, self._delete_deployment)
        routes.add("POST", "/batch/{name}/jobs", self._invoke)
        routes.add(
            "GET", WORKSPACE + "/jobs/{job}", lambda request, job, **_: Answer(200, self._job(job).document(request))
        )
        routes.add("POST", WORKSPACE + "/jobs/{job}/cancel", self._cancel)
        for place in (ENDPOINT, DEPLOYMENT):
            routes.add("GET", "/mferp/managementfrontend" + place + "/jobs", self._list_jobs)
        routes.add("GET", HISTORY + "/runs/{run}/details", self._details)
        routes.add("GET", HISTORY + "/runs/{run}/children", self._children)
        routes.add("POST", HISTORY + "/rundata", self._run_data)
        routes.add("GET", "/jobs/{run}/log", lambda request, run: Answer(200, self._job(run).log.read_bytes()))

    def stop(self) -> None:
        """Every job that runs."""
        self._stopped = True
        for job in self._jobs.values():
            if job.process is not None:
                job.process.kill()

    def _find(self, name: str) -> Document:
        if name not in self._endpoints:
            raise Refused(404, "ResourceNotFound", f"there is no batch endpoint {name}")
        return self._endpoints[name]

    def _deployment(self, name: str, deployment: str) -> Document:
        if (name, deployment) not in self._deployments:
            raise Refused(404, "ResourceNotFound", f"the endpoint {name} has no deployment {deployment}")
        return self._deployments[name, deployment]

    def _job(self, name: str) -> Job:
        job = self._jobs.get(name.removesuffix("-batchscoring"))
        if job is None:
            raise Refused(404, "ResourceNotFound", f"there is no job {name}")
        return job

    def _put(self, request: Request, name: str, **_: str) -> Answer:
        given = request.json
        chosen = (given["properties"].get("defaults") or {}).get("deploymentName")
        if chosen:
            self._deployment(name, chosen)
        address = {"scoringUri": f"{request.base}/batch/{name}/jobs", "provisioningState": "Succeeded"}
        document = {**given, "id": request.path, "name": name, "location": LOCATION}
        document["properties"] = {**given["properties"], **address}
        document["properties"]["defaults"] = given["properties"].get("defaults") or {"deploymentName": None}
        self._endpoints[name] = document
        return Answer(200, document)

    def _delete(self, request: Request, name: str, **_: str) -> Answer:
        self._deployments = {key: value for key, value in self._deployments.items() if key[0] != name}
        return Answer(204 if self._endpoints.pop(name, None) is None else 200)

    def _list_deployments(self, request: Request, name: str, **_: str) -> Answer:
        self._find(name)
        return Answer(200, {"value": [value for key, value in self._deployments.items() if key[0] == name]})

    def _put_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        self._find(name)
        given = request.json
        document = {**given, "id": request.path, "name": deployment, "location": LOCATION}
        document["properties"] = {**given["properties"], "provisioningState": "Succeeded"}
        self._deployments[name, deployment] = document
        return Answer(200, document)

    def _delete_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Answer:
        return Answer(204 if self._deployments.pop((name, deployment), None) is None else 200)

    def _invoke(self, request: Request, name: str) -> Answer:
        endpoint = self._find(name)
        defaults = endpoint["properties"].get("defaults") or {}
        chosen = request.headers.get("azureml-model-deployment") or defaults.get("deploymentName")
        if not chosen:
            raise Refused(400, "BadRequest", "the endpoint has no default deployment, and the request names none")
        asked = request.json["properties"]
        given = list((asked.get("inputData") or {}).values())
        if len(given) != 1 or "uri" not in given[0]:
            raise Refused(400, "BadRequest", f"a job takes one input, a file or a folder, and not {given}")
        source = self._workspace.stored(given[0]["uri"])
        deployment = self._deployment(name, chosen)["properties"]
        job = Job(asked.get("name") or f"batchjob-{uuid.uuid4()}", name, chosen, self._folder / uuid.uuid4().hex)
        results = self._results(job, deployment | asked)
        job.folder.mkdir(parents=True)
        job.log.touch()
        self._jobs[job.name] = job
        threading.Thread(target=self._run, args=(job, deployment | asked, source, results), daemon=True).start()
        return Answer(201, job.document(request))

    def _list_jobs(self, request: Request, name: str, deployment: str | None = None, **_: str) -> Answer:
        self._find(name)
        found = [j for j in self._jobs.values() if j.endpoint == name and deployment in (None, j.deployment)]
        return Answer(200, {"value": [job.document(request) for job in found]})

    def _results(self, job: Job, asked: dict[str, Any]) -> Path:
        """The file of the results: where the job says, else in a folder of its own."""
        name = str(asked["outputFileName"])
        if Path(name).name != name:
            raise Refused(400, "BadRequest", f"{name} is no file's name")
        for given in (asked.get("outputData") or {}).values():
            return self._workspace.stored(given["uri"]) / name
        return self._storage.path(CONTAINER, f"azureml/{job.child}/score/{name}")

    def _cancel(self, request: Request, job: str, **_: str) -> Answer:
        found = self._job(job)
        found.end("Canceled")
        if found.process is not None:
            found.process.kill()
        return Answer(200)

    def _run(self, job: Job, deployment: dict[str, Any], source: Path, results: Path) -> None:
        try:
            if not source.exists():
                raise FileNotFoundError("there is no such input")
            if results.exists():
                raise FileExistsError(f"the output has a {results.name} already")
            job.process = self._start(job, deployment, source, results)
            if job.status != "Running" or self._stopped:  # cancelled before there was a process
                job.process.kill()
            job.end("Failed" if job.process.wait() else "Completed")
        except Exception as error:
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"the job could not be started: {error}\n")
            job.end("Failed")

    def _start(self, job: Job, deployment: dict[str, Any], source: Path, results: Path) -> "subprocess.Popen[bytes]":
        code = copy(self._workspace.files(deployment["codeConfiguration"]["codeId"]), job.folder / "code")
        model = (deployment.get("model") or {}).get("assetId")
        mounted = model and mount_model(self._workspace.files(model), model, job.folder / "azureml-models")
        results.parent.mkdir(parents=True, exist_ok=True)
        script = deployment["codeConfiguration"]["scoringScript"]
        variables = environment(code, script, mounted, deployment.get("environmentVariables") or {})
        variables |= {"AZUREML_BI_OUTPUT_PATH": str(results.parent), "AZURE_ML_INPUT_job_input": str(source)}
        command = [sys.executable, str(DRIVER), str(code / script), str(source), str(results)]
        command += ["--mini-batch-size", str(deployment["miniBatchSize"])]
        command += ["--max-retries", str((deployment.get("retrySettings") or {}).get("maxRetries", 3))]
        command += ["--error-threshold", str(deployment.get("errorThreshold", -1))]
        with job.log.open("wb") as log:
            return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def _details(self, request: Request, run: str, **_: str) -> Answer:
        job = self._job(run)
        logs = {"logs/azureml/executionlogs.txt": f"{request.base}/jobs/{job.name}/log"}
        return Answer(200, {"runId": run, "status": job.status, "logFiles": logs})

    def _children(self, request: Request, run: str, **_: str) -> Answer:
        job = self._job(run)
        return Answer(200, {"value": [_run(job.child, job.status)]})

    def _run_data(self, request: Request, **_: str) -> Answer:
        run = request.json["runId"]
        return Answer(200, {"runMetadata": _run(run, self._job(run).status)})


def _run(name: str, status: str) -> Document:
    return {"runId": name, "status": status, "outputs": {}, "properties": {}, "tags": {}}
