# The images, by target. `scripts/image TARGET` builds the binary and then this; nothing is compiled here, so that the image
# holds the very binary that was tested. It labels them, too.
ARG CUDA_BASE=debian:bookworm-slim
ARG VLLM_BASE=vllm/vllm-openai:v0.32.0
ARG SGLANG_BASE=lmsysorg/sglang:v0.5.23

# One static binary and nothing else.
FROM scratch AS cpu
COPY flashjob /flashjob
# Mount a volume here to keep results; the root file system may be read-only.
ENV results_dir=/results
# FUSE needs root (`--user 0`), /dev/fuse and SYS_ADMIN; without them inputs are copied.
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/flashjob"]

# The static binary beside a vLLM that is there already, for backend=vllm: on NVIDIA's GPUs, on AMD's (a base built for ROCm), or on
# CPUs. Any base will do whose `python3` in PATH imports vllm.
FROM ${VLLM_BASE} AS vllm
COPY flashjob /flashjob
# A user without a name and a home: torch asks for the one, and compiled kernels are kept in the other.
ENV results_dir=/results \
    HOME=/tmp \
    USER=flashjob
USER 65532:65532
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/flashjob"]

# The same beside an SGLang that is there already, for backend=sglang: any base whose `python3` in PATH imports sglang.
FROM ${SGLANG_BASE} AS sglang
COPY flashjob /flashjob
ENV results_dir=/results \
    HOME=/tmp \
    USER=flashjob
USER 65532:65532
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/flashjob"]

# For NVIDIA's GPUs: linked dynamically, beside the libraries of CUDA that it opens. The driver is the host's, put in by the
# container toolkit. Any base with glibc 2.36 and libstdc++ will do.
FROM ${CUDA_BASE} AS cuda
COPY lib/ /usr/local/lib/flashjob/
COPY flashjob /flashjob
ENV LD_LIBRARY_PATH=/usr/local/lib/flashjob \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    results_dir=/results
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/flashjob"]
