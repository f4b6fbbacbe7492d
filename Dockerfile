# The command `lafr` in a container. It runs as a user without rights; mount the photos on /work:
#   docker build -t lafr .                                       CPU
#   docker build -t lafr:cuda --build-arg TORCH_INDEX=ADDRESS .   CUDA: the index that pytorch.org names for your driver
#   docker run --rm -v "$PWD":/work --user "$(id -u):$(id -g)" lafr restore photo.png -o restored
#   docker run --rm --gpus all -v "$PWD":/work lafr:cuda check
FROM python:3.12-slim

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
RUN python -m pip install --no-cache-dir '.[train,video,onnx]' \
    && python -m pip install --no-cache-dir --no-deps --require-hashes -r data/requirements-no-deps.txt \
    && useradd --uid 10001 --create-home lafr

USER 10001
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["lafr"]
CMD ["--help"]
