"""Is the Hub there? One short question instead of a minute of retries."""

import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_SECONDS = 5.0


@cache
def hub_is_reachable() -> bool:
    """Try once to open a connection to the Hub (or the mirror that HF_ENDPOINT names).

    huggingface_hub tries each request six times over 23 seconds. Behind a proxy the answer is left
    to its client.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        address = urlsplit(constants.ENDPOINT)
        if address.scheme in getproxies():
            return True
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=_SECONDS):
            return True
    except (OSError, ValueError):  # ValueError: HF_ENDPOINT is no address
        return False
