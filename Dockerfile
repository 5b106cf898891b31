# The CPU image: one static binary and nothing else. `scripts/image` builds the binary and then this.
FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="flashjob" \
      org.opencontainers.image.description="Offline LLM inference as a job" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY flashjob /flashjob
# Mount a volume here to keep results; the root file system may be read-only.
ENV results_dir=/results
# FUSE needs root (`--user 0`), /dev/fuse and SYS_ADMIN; without them inputs are copied.
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/flashjob"]
