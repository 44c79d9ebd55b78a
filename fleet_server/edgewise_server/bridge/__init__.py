"""The MQTT side of the server: ingest with acknowledgement after the commit, and retained topics."""
