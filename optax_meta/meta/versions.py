"""What a result was made with."""

from importlib.metadata import version

import jax


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries and the kind of device, by name."""
    libraries = ("optax-meta", "jax", "optax", "flax")
    device = jax.devices()[0]
    return {**{name: version(name) for name in libraries}, "device": device.device_kind}
