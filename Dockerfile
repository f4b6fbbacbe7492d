# The command `lafr` in a container, without root. Mount the photos on /work, as the user who owns them:
#   docker build -t lafr .                                       CPU
#   docker build -t lafr:cuda --build-arg TORCH_INDEX=ADDRESS .   CUDA: the index that pytorch.org names for your driver
#   docker run --rm -v "$PWD":/work --user "$(id -u):$(id -g)" lafr restore photo.png -o restored
#   docker run --rm --gpus all -v "$PWD":/work --user "$(id -u):$(id -g)" lafr:cuda check
# CI lints it with hadolint, builds the CPU image and restores a face in it. Linted so far, not built.
FROM python:3.12.12-slim-bookworm

# CUDA's wheels bring their libraries; the host needs a driver and the NVIDIA container toolkit.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/lafr
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.11,!=2.13.0' torchvision
COPY pyproject.toml README.md LICENSE ./
COPY lafr lafr
COPY configs configs
COPY data data
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir '.[train,metrics,video,onnx,heic]' \
    && python -m pip install --no-cache-dir --no-deps --require-hashes -r data/requirements-no-deps.txt \
    && useradd --uid 10001 --no-log-init lafr \
    && install --directory --owner=10001 /work

USER 10001
# Any --user has a home for caches and a name: getpass fails for a user who is not in /etc/passwd.
ENV HOME=/tmp USER=lafr
WORKDIR /work
ENTRYPOINT ["lafr"]
CMD ["--help"]
