# make demo, make test and all commands without installing anything but Docker:
#
#   docker build -t stablesr-edge .                                  # for GPUs, too: docker run --gpus all --shm-size=8g …
#   docker build -t stablesr-edge --build-arg TORCH_INDEX=URL .      # URL of PyTorch's builds for the CPU, or another CUDA
#   docker run --rm stablesr-edge                                # make demo
#   docker run --rm stablesr-edge make test
#   docker run --rm -v "$PWD:/work" -w /work stablesr-edge stablesr-edge upscale --input photo.png
FROM python:3.11-slim

# Where other builds of PyTorch are than pip finds by itself: pytorch.org/get-started/locally names the address.
ARG TORCH_INDEX=""

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user /stablesr-edge
USER 1000
WORKDIR /stablesr-edge
ENV PATH=/stablesr-edge/.venv/bin:$PATH

# The dependencies alone first: a layer that stays as long as they do.
COPY --chown=user Makefile README.md pyproject.toml requirements.txt ./
COPY --chown=user basicsr/__init__.py basicsr/
COPY --chown=user ldm/__init__.py ldm/
COPY --chown=user configs configs
RUN PIP_EXTRA_INDEX_URL="$TORCH_INDEX" make setup

COPY --chown=user . .
CMD ["make", "demo"]
