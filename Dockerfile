# objcrop and all its extras, for CUDA 13: the wheels bring CUDA's libraries, the host brings the driver (580 or newer).
#
#   docker build -t objcrop .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" objcrop doctor        # without --gpus on a CPU
#
# An older driver: docker build --build-arg CUDA=12 …
FROM python:3.12.12-slim-bookworm

# A C++ compiler, for `pretrain --compile`.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

ARG CUDA=13
COPY . /src
RUN pip install --no-cache-dir "/src[cuda${CUDA},all]"

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["objcrop"]
