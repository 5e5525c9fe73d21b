# gptd in a container, in two targets: `cpu`, and `cuda` with the GPU's code.
#
#     docker build --target cpu -t gptd .
#     docker build --target cuda -t gptd:cuda .
#     docker run --read-only -p 127.0.0.1:8080:8080 gptd serve --no-auth \
#            --model /usr/share/gptd/models/shakespeare
#
# docs/deploy.md has the rest. Every option of gptd is a variable too: GPTD_MEMORY_BUDGET=2GiB.

# Debian 13's libmicrohttpd is newer. The cpu target builds and serves on Debian 12 too (--build-arg
# BASE=debian:bookworm-slim), with a warning that its libmicrohttpd is lenient.
ARG BASE=debian:trixie-slim
# CUDA 12 is the last that knows sm_61 and sm_70 (GTX 10, V100). With CUDA 13:
#     --build-arg CUDA=13.0 --build-arg CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu22.04
#     --build-arg CUDA_ARCHS="75 80 86 89 90 100 120"
ARG CUDA=12.9
ARG CUDA_IMAGE=nvidia/cuda:12.9.1-devel-ubuntu22.04
ARG VERSION=0.1.0

# ---- what both are built from ----
FROM ${BASE} AS source
WORKDIR /src
COPY scripts/setup.sh scripts/
RUN scripts/setup.sh
COPY Makefile ./
COPY base base
COPY model model
COPY cpu cpu
COPY cuda cuda
COPY api api
COPY server server
COPY scripts/sbom.sh scripts/

FROM source AS build-cpu
ARG VERSION
RUN make -j"$(nproc)" EXTRA_CFLAGS="-DGPTD_VERSION='\"$VERSION\"'" \
    && mkdir -p /out/bin && strip -o /out/bin/gptd build/gptd \
    && scripts/sbom.sh --packages build/gptd > /out/packages

# ---- what both run on: the base and the libraries that gptd is linked with ----
FROM ${BASE} AS runtime
RUN --mount=type=bind,from=build-cpu,source=/out,target=/out \
    apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
       $(cat /out/packages) \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig \
    && mkdir -p /models /data && chown 10001:10001 /models /data
COPY configs /usr/share/gptd/configs
COPY models/shakespeare /usr/share/gptd/models/shakespeare
ENV GPTD_HOST=0.0.0.0 \
    GPTD_DATA_DIR=/data \
    GPTD_MODELS_DIR=/models \
    GPTD_CONFIGS_DIR=/usr/share/gptd/configs
USER 10001:10001
WORKDIR /data
VOLUME ["/models", "/data"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# With TLS or another port: GPTD_URL=https://127.0.0.1:8443/health.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["gptd", "probe"]
ENTRYPOINT ["gptd"]
CMD ["serve"]

# What is in it, as SPDX: the linked packages as they are installed there.
FROM runtime AS sbom-cpu
ARG VERSION
USER 0
COPY --from=build-cpu /out/bin/gptd /usr/local/bin/gptd
COPY scripts/sbom.sh /
RUN /sbom.sh /usr/local/bin/gptd "$VERSION" > /sbom.spdx.json && gptd --version

FROM runtime AS cpu
ARG VERSION
LABEL org.opencontainers.image.title="gptd" \
      org.opencontainers.image.description="Trains GPTs and serves them over HTTP, on the CPU" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build-cpu /out/bin/gptd /usr/local/bin/gptd
COPY --from=sbom-cpu /sbom.spdx.json /usr/share/doc/gptd/sbom.spdx.json

# ---- with CUDA ----
FROM ${CUDA_IMAGE} AS toolkit

FROM source AS build-cuda
ARG VERSION
ARG CUDA
# The last one's PTX is kept as well, for GPUs that are newer than all.
ARG CUDA_ARCHS="61 70 75 80 86 89 90"
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends g++
COPY --from=toolkit /usr/local/cuda-${CUDA} /usr/local/cuda
# glibc 2.41 declares these four too, as functions that do not throw; CUDA 12's headers must agree.
RUN sed -i -E 's/^(extern .* (sin|cos)pif?\((double|float) x\));$/\1 noexcept(true);/' \
        /usr/local/cuda/include/crt/math_functions.h
RUN make -j"$(nproc)" CUDA=1 CUDA_HOME=/usr/local/cuda CUDA_ARCHS="$CUDA_ARCHS" \
            EXTRA_CFLAGS="-DGPTD_VERSION='\"$VERSION\"'" \
    && mkdir -p /out/bin /out/lib && strip -o /out/bin/gptd build/gptd \
    && cp -L /usr/local/cuda/lib64/libcublasLt.so.[0-9][0-9] /out/lib/

FROM runtime AS sbom-cuda
ARG VERSION
ARG CUDA
USER 0
COPY --from=build-cuda /out/bin/gptd /usr/local/bin/gptd
COPY scripts/sbom.sh /
RUN /sbom.sh /usr/local/bin/gptd "$VERSION" cuda-cudart="$CUDA" libcublas="$CUDA" \
    > /sbom.spdx.json && gptd --version

FROM runtime AS cuda
ARG VERSION
LABEL org.opencontainers.image.title="gptd" \
      org.opencontainers.image.description="Trains GPTs and serves them over HTTP, on NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}"
# What NVIDIA's container runtime gives to this container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/lib \
    GPTD_DEVICE=cuda:0
COPY --from=build-cuda /out/lib /usr/local/lib
COPY --from=build-cuda /out/bin/gptd /usr/local/bin/gptd
COPY --from=sbom-cuda /sbom.spdx.json /usr/share/doc/gptd/sbom.spdx.json

# Without --target.
FROM cpu
