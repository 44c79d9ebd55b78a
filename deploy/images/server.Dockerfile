# The fleet server with PostgreSQL support, and the operator's tool. Build from the repository's root.
FROM python:3.11-slim-bookworm AS build
COPY protocol /source/protocol
COPY firmware_profiles /source/firmware_profiles
COPY fleet_server /source/fleet_server
COPY cli /source/cli
RUN python -m venv /opt/edgewise \
 && /opt/edgewise/bin/pip install --no-cache-dir \
      "/source/protocol[kll]" /source/firmware_profiles "/source/fleet_server[postgres]" /source/cli

FROM python:3.11-slim-bookworm
COPY --from=build /opt/edgewise /opt/edgewise
RUN groupadd --gid 10001 edgewise && useradd --uid 10001 --gid 10001 --no-create-home edgewise \
 && install -d -o edgewise -g edgewise -m 0700 /var/lib/edgewise
ENV PATH=/opt/edgewise/bin:$PATH PYTHONUNBUFFERED=1
USER edgewise
VOLUME /var/lib/edgewise
EXPOSE 8470 8443
CMD ["edgewise-server", "run", "--state", "/var/lib/edgewise"]
