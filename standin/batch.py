"""Batch endpoints: each job is a process that runs the deployment's entry script over its input."""

import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .container import copy_into, environment, mount_model
from .storage import Storage
from .wire import ApiError, Request, Response, Routes
from .workspace import CONTAINER, LOCATION, WORKSPACE, Document, Workspace

ENDPOINT = WORKSPACE + "/batchEndpoints/{name}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
RUN_HISTORY = "/history/v1.0" + WORKSPACE
STEP_SUFFIX = "-batchscoring"
DRIVER = Path(__file__).with_name("batch_driver.py")


@dataclass
class Job:
    """A job and its process."""

    name: str
    endpoint: str
    deployment: str
    folder: Path
    status: str = "Running"
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def step_name(self) -> str:
        """Returns the name of the step that scores. Azure stores the step's output under this name."""
        return self.name + STEP_SUFFIX

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def end(self, status: str) -> None:
        """Sets the final status, unless the job already has one."""
        if self.status == "Running":
            self.status = status

    def document(self, request: Request) -> Document:
        studio = {"endpoint": f"{request.base_url}/jobs/{self.name}", "jobServiceType": "Studio"}
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
    """All batch endpoints, their deployments and their jobs."""

    def __init__(self, folder: Path, workspace: Workspace, storage: Storage) -> None:
        self._folder = folder
        self._workspace = workspace
        self._storage = storage
        self._endpoints: dict[str, Document] = {}
        self._deployments: dict[tuple[str, str], Document] = {}
        self._jobs: dict[str, Job] = {}
        self._stopped = False

    def add_routes(self, routes: Routes) -> None:
        routes.add(
            "GET",
            WORKSPACE + "/batchEndpoints",
            lambda request, **_: Response(200, {"value": list(self._endpoints.values())}),
        )
        routes.add("GET", ENDPOINT, lambda request, name, **_: Response(200, self._find(name)))
        routes.add("PUT", ENDPOINT, self._put)
        routes.add("DELETE", ENDPOINT, self._delete)
        routes.add("GET", ENDPOINT + "/deployments", self._list_deployments)
        routes.add("GET", DEPLOYMENT, self._get_deployment)
        routes.add("PUT", DEPLOYMENT, self._put_deployment)
        routes.add("DELETE", DEPLOYMENT, self._delete_deployment)
        routes.add("POST", "/batch/{name}/jobs", self._invoke)
        routes.add("GET", WORKSPACE + "/jobs/{job}", self._get_job)
        routes.add("POST", WORKSPACE + "/jobs/{job}/cancel", self._cancel)
        for scope in (ENDPOINT, DEPLOYMENT):
            routes.add("GET", "/mferp/managementfrontend" + scope + "/jobs", self._list_jobs)
        routes.add("GET", RUN_HISTORY + "/runs/{run}/details", self._details)
        routes.add("GET", RUN_HISTORY + "/runs/{run}/children", self._children)
        routes.add("POST", RUN_HISTORY + "/rundata", self._run_data)
        routes.add("GET", "/jobs/{run}/log", lambda request, run: Response(200, self._find_job(run).log.read_bytes()))

    def stop(self) -> None:
        """Stops every job that runs."""
        self._stopped = True
        for job in self._jobs.values():
            if job.process is not None:
                job.process.kill()

    def _find(self, name: str) -> Document:
        if name not in self._endpoints:
            raise ApiError(404, "ResourceNotFound", f"there is no batch endpoint {name}")
        return self._endpoints[name]

    def _find_deployment(self, name: str, deployment: str) -> Document:
        if (name, deployment) not in self._deployments:
            raise ApiError(404, "ResourceNotFound", f"the endpoint {name} has no deployment {deployment}")
        return self._deployments[name, deployment]

    def _find_job(self, name: str) -> Job:
        job = self._jobs.get(name.removesuffix(STEP_SUFFIX))
        if job is None:
            raise ApiError(404, "ResourceNotFound", f"there is no job {name}")
        return job

    def _put(self, request: Request, name: str, **_: str) -> Response:
        sent = request.json
        default_deployment = (sent["properties"].get("defaults") or {}).get("deploymentName")
        if default_deployment:
            self._find_deployment(name, default_deployment)
        address = {"scoringUri": f"{request.base_url}/batch/{name}/jobs", "provisioningState": "Succeeded"}
        document = {**sent, "id": request.path, "name": name, "location": LOCATION}
        document["properties"] = {**sent["properties"], **address}
        document["properties"]["defaults"] = sent["properties"].get("defaults") or {"deploymentName": None}
        self._endpoints[name] = document
        return Response(200, document)

    def _delete(self, request: Request, name: str, **_: str) -> Response:
        self._deployments = {key: value for key, value in self._deployments.items() if key[0] != name}
        return Response(204 if self._endpoints.pop(name, None) is None else 200)

    def _list_deployments(self, request: Request, name: str, **_: str) -> Response:
        self._find(name)
        return Response(200, {"value": [value for key, value in self._deployments.items() if key[0] == name]})

    def _get_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        return Response(200, self._find_deployment(name, deployment))

    def _put_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        self._find(name)
        sent = request.json
        document = {**sent, "id": request.path, "name": deployment, "location": LOCATION}
        document["properties"] = {**sent["properties"], "provisioningState": "Succeeded"}
        self._deployments[name, deployment] = document
        return Response(200, document)

    def _delete_deployment(self, request: Request, name: str, deployment: str, **_: str) -> Response:
        return Response(204 if self._deployments.pop((name, deployment), None) is None else 200)

    def _invoke(self, request: Request, name: str) -> Response:
        endpoint = self._find(name)
        defaults = endpoint["properties"].get("defaults") or {}
        deployment = request.headers.get("azureml-model-deployment") or defaults.get("deploymentName")
        if not deployment:
            raise ApiError(400, "BadRequest", "the endpoint has no default deployment, and the request names none")
        sent = request.json["properties"]
        inputs = list((sent.get("inputData") or {}).values())
        if len(inputs) != 1 or "uri" not in inputs[0]:
            raise ApiError(400, "BadRequest", f"a job takes one input, a file or a folder, not {inputs}")
        source = self._workspace.path_of_uri(inputs[0]["uri"])
        properties = self._find_deployment(name, deployment)["properties"] | sent
        job = Job(sent.get("name") or f"batchjob-{uuid.uuid4()}", name, deployment, self._folder / uuid.uuid4().hex)
        results = self._results_file(job, properties)
        job.folder.mkdir(parents=True)
        job.log.touch()
        self._jobs[job.name] = job
        threading.Thread(target=self._run, args=(job, properties, source, results), daemon=True).start()
        return Response(201, job.document(request))

    def _get_job(self, request: Request, job: str, **_: str) -> Response:
        return Response(200, self._find_job(job).document(request))

    def _list_jobs(self, request: Request, name: str, deployment: str | None = None, **_: str) -> Response:
        self._find(name)
        jobs = [j for j in self._jobs.values() if j.endpoint == name and deployment in (None, j.deployment)]
        return Response(200, {"value": [job.document(request) for job in jobs]})

    def _results_file(self, job: Job, properties: dict[str, Any]) -> Path:
        """Returns the path of the results, in the job's output or else in a folder of the job's own."""
        name = str(properties.get("outputFileName") or "predictions.csv")
        if Path(name).name != name:
            raise ApiError(400, "BadRequest", f"{name} is not a file name")
        for output in (properties.get("outputData") or {}).values():
            return self._workspace.path_of_uri(output["uri"]) / name
        return self._storage.path(CONTAINER, f"azureml/{job.step_name}/score/{name}")

    def _cancel(self, request: Request, job: str, **_: str) -> Response:
        cancelled = self._find_job(job)
        cancelled.end("Canceled")
        if cancelled.process is not None:
            cancelled.process.kill()
        return Response(200)

    def _run(self, job: Job, properties: dict[str, Any], source: Path, results: Path) -> None:
        try:
            if not source.exists():
                raise FileNotFoundError("the input does not exist")
            if results.exists() and not _is_summary_only(properties):
                raise FileExistsError(f"the output already has a file {results.name}")
            job.process = self._start(job, properties, source, results)
            if job.status != "Running" or self._stopped:  # cancelled before the process started
                job.process.kill()
            job.end("Failed" if job.process.wait() else "Completed")
        except Exception as error:
            with job.log.open("a", encoding="utf-8") as log:
                log.write(f"the job could not be started: {error}\n")
            job.end("Failed")

    def _start(self, job: Job, properties: dict[str, Any], source: Path, results: Path) -> "subprocess.Popen[bytes]":
        code = copy_into(self._workspace.asset_path(properties["codeConfiguration"]["codeId"]), job.folder / "code")
        model = (properties.get("model") or {}).get("assetId")
        model_dir = model and mount_model(self._workspace.asset_path(model), model, job.folder / "azureml-models")
        results.parent.mkdir(parents=True, exist_ok=True)
        script = properties["codeConfiguration"]["scoringScript"]
        variables = environment(code, script, model_dir, properties.get("environmentVariables") or {})
        variables |= {"AZUREML_BI_OUTPUT_PATH": str(results.parent), "AZURE_ML_INPUT_job_input": str(source)}
        command = [sys.executable, str(DRIVER), str(code / script), str(source), str(results)]
        command += ["--output-action", "summary_only" if _is_summary_only(properties) else "append_row"]
        command += ["--mini-batch-size", str(properties["miniBatchSize"])]
        processes = int(properties.get("maxConcurrencyPerInstance") or 1)
        command += ["--workers", str(int((properties.get("resources") or {}).get("instanceCount") or 1) * processes)]
        command += ["--max-retries", str((properties.get("retrySettings") or {}).get("maxRetries", 3))]
        command += ["--error-threshold", str(properties.get("errorThreshold", -1))]
        with job.log.open("wb") as log:
            return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)

    def _details(self, request: Request, run: str, **_: str) -> Response:
        job = self._find_job(run)
        logs = {"logs/azureml/executionlogs.txt": f"{request.base_url}/jobs/{job.name}/log"}
        return Response(200, {"runId": run, "status": job.status, "logFiles": logs})

    def _children(self, request: Request, run: str, **_: str) -> Response:
        job = self._find_job(run)
        return Response(200, {"value": [_run_document(job.step_name, job.status)]})

    def _run_data(self, request: Request, **_: str) -> Response:
        run = request.json["runId"]
        return Response(200, {"runMetadata": _run_document(run, self._find_job(run).status)})


def _is_summary_only(properties: dict[str, Any]) -> bool:
    return str(properties.get("outputAction")).lower() in ("summaryonly", "summary_only")


def _run_document(name: str, status: str) -> Document:
    return {"runId": name, "status": status, "outputs": {}, "properties": {}, "tags": {}}
