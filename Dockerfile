# syntax=docker/dockerfile:1
# The suites and the command line on an NVIDIA GPU. The driver is the host's (NVIDIA Container Toolkit). This is NVIDIA's
# smallest image with the CUDA runtime: cuBLAS, cuDNN and TensorRT come with the Python packages.
ARG CUDA=13.0.2-base-ubuntu24.04
FROM nvidia/cuda:${CUDA}

# g++ and Python's headers are torch.compile's. The versions are those of the image's Ubuntu release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Give the id of who owns the folder that is mounted at /work, so that reports can be written there.
ARG USER_ID=1000
RUN useradd --no-log-init --non-unique --create-home --uid "${USER_ID}" wan \
    && install --directory --owner wan /cache /work /opt/wan-trt

USER ${USER_ID}
# Bytecode is part of the image: a container that had to make it would take 7 s longer to start (docs/gpu-ci.md).
ENV PATH=/opt/wan-trt/bin:${PATH} \
    UV_COMPILE_BYTECODE=1

# What the package needs, apart from the package: these gigabytes are installed again only when pyproject.toml changes.
COPY pyproject.toml /tmp/wan-trt-core/
ARG EXTRAS="--extra gpu --extra tensorrt"
# hadolint ignore=SC2086
RUN python3 -m venv /opt/wan-trt \
    && pip install --no-cache-dir "uv>=0.6" \
    && uv pip install --no-cache --python /opt/wan-trt -r /tmp/wan-trt-core/pyproject.toml \
        ${EXTRAS}

COPY . /tmp/wan-trt-core/
RUN uv pip install --no-cache --no-deps --python /opt/wan-trt /tmp/wan-trt-core

# Engines, ONNX files, timing caches and the hub's downloads outlive the container.
ENV WAN_TRT_CACHE=/cache/wan-trt \
    HF_HUB_CACHE=/cache/hub \
    TORCH_HOME=/cache/torch
VOLUME /cache
WORKDIR /work
CMD ["wan-trt", "doctor"]
