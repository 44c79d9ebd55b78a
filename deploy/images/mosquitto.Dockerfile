# Mosquitto 2.0 as Debian ships it, on the folder that `edgewise-server init --broker mosquitto` wrote.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends mosquitto \
 && rm -rf /var/lib/apt/lists/*
# The server's user: what it writes with mode 0600 is read here.
RUN groupadd --gid 10001 edgewise && useradd --uid 10001 --gid 10001 --no-create-home edgewise
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY --chmod=0755 deploy/mosquitto/entrypoint.sh /usr/local/bin/edgewise-broker
USER edgewise
EXPOSE 8883
ENTRYPOINT ["edgewise-broker"]
