# The worker: the operator's tool with trainer and converter. Build from the repository's root.
FROM python:3.11-slim-bookworm AS build
COPY protocol /source/protocol
COPY firmware_profiles /source/firmware_profiles
COPY trainer /source/trainer
COPY converter /source/converter
COPY cli /source/cli
RUN python -m venv /opt/edgewise \
 && /opt/edgewise/bin/pip install --no-cache-dir \
      "/source/protocol[kll]" /source/firmware_profiles /source/trainer /source/converter /source/cli

FROM python:3.11-slim-bookworm
COPY --from=build /opt/edgewise /opt/edgewise
# Another user than the server's: it holds the keys that no server may have.
RUN groupadd --gid 10002 edgewise-worker && useradd --uid 10002 --gid 10002 --create-home edgewise-worker \
 && install -d -o edgewise-worker -g edgewise-worker -m 0700 /var/lib/edgewise-worker
ENV PATH=/opt/edgewise/bin:$PATH PYTHONUNBUFFERED=1
USER edgewise-worker
WORKDIR /var/lib/edgewise-worker
VOLUME /var/lib/edgewise-worker
ENTRYPOINT ["edgewise"]
