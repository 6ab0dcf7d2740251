"""What links raise."""


class ExtraMissing(Exception):
    """The client is not installed."""


class LinkError(Exception):
    """The other side did not do it, with the reason as a sentence; trying again later is right."""
