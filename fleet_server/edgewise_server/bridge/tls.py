"""How the server connects to its broker: mutual TLS with the fleet's authorities, and with no other."""

from __future__ import annotations

import ssl

from edgewise_server.bridge.errors import BridgeError
from edgewise_server.broker.publication import server_files
from edgewise_server.settings import Settings


def broker_tls(settings: Settings) -> ssl.SSLContext:
    """A TLS context, made anew for each connection, so that a renewed certificate is used.

    Raises:
        BridgeError: a file is missing or unusable.
    """
    authorities, certificate, key = settings.broker_ca_file, settings.broker_certificate_file, settings.broker_key_file
    if settings.broker_managed:
        own_authorities, own = server_files(settings.broker_files)
        authorities, certificate = authorities or own_authorities, certificate or own
        if not certificate.exists():
            raise BridgeError(
                f"there is no certificate for the broker yet ({certificate}): "
                "it is made when the key ceremony is installed (`edgewise trust install`)"
            )
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authorities)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise BridgeError(f"the files for TLS to the broker cannot be used: {error}") from error
    return context
