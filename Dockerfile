# The service in a container, for machines without Linux, make or Python: deployment.yml's image, conda.yaml's packages,
# and the files that Azure uploads. The demo model is in it.
#
#   docker build --tag llava .
#   docker run --rm --publish 127.0.0.1:5001:5001 llava
#   docker run --rm --publish 127.0.0.1:5001:5001 --gpus all --volume /path/to/llava-13b-v0:/model llava --model-dir /model
#
# Without a GPU, Azure's image without CUDA and torch's CPU build are gigabytes smaller:
#
#   docker build --tag llava --build-arg IMAGE=mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:latest \
#     --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
ARG IMAGE=mcr.microsoft.com/azureml/openmpi5.0-cuda13.1-ubuntu24.04:latest
FROM ${IMAGE}

ARG PIP_EXTRA_INDEX_URL=
COPY conda.yaml /tmp/conda.yaml
RUN conda env create --prefix /opt/llava --file /tmp/conda.yaml && conda clean --all --yes

# Nothing in the container needs root. Triton writes compiled kernels into the home folder.
RUN useradd --create-home --uid 10001 llava
USER 10001
WORKDIR /app
COPY score.py gunicorn_config.py swagger3.json LICENSE NOTICE ./
COPY src src
COPY demo demo

ENV PYTHONPATH=/app/src HF_HUB_OFFLINE=1 WORKER_TIMEOUT=1800
EXPOSE 5001
HEALTHCHECK --start-period=30m --interval=30s --timeout=10s \
    CMD ["/opt/llava/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5001/')"]
ENTRYPOINT ["/opt/llava/bin/python", "-m", "llava_serving", "serve", "--host", "0.0.0.0"]
