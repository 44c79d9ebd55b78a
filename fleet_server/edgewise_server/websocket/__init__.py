"""The gateway for MQTT over WebSocket, in front of a managed Mosquitto."""
