# make demo, make test and all commands without installing anything but Docker:
#
#   docker build -t stablesr-edge .                              # for the CPU
#   docker build -t stablesr-edge --build-arg TORCH=cu126 .      # for GPUs; docker run --gpus all --shm-size=8g …
#   docker run --rm stablesr-edge                                # make demo
#   docker run --rm stablesr-edge make test
#   docker run --rm -v "$PWD:/work" -w /work stablesr-edge stablesr-edge upscale --input photo.png
FROM python:3.11-slim

# Of PyTorch's builds: cpu, or one of its CUDA versions, whose libraries come with it.
ARG TORCH=cpu

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
RUN PIP_EXTRA_INDEX_URL="https://download.pytorch.org/whl/$TORCH" make setup

COPY --chown=user . .
CMD ["make", "demo"]
