"""The MQTT session: a pure core that decides, a thin paho shell that carries out."""
