"""`pennyweight config` and `pennyweight version`."""

import platform
from importlib import metadata

import msgspec

from pennyweight.config import load, variable_of
from pennyweight.delivery.cli.shared import ConfigFile, Json, print_json


def config(*, file: ConfigFile = None, json: Json = False) -> int:
    """Print every setting in effect, and where its value comes from.

    Settings come from the file, then from PENNYWEIGHT_* variables, which win.

    Example: pennyweight config --config pennyweight.toml
    """
    loaded = load(file)
    values = loaded.values()
    if json:
        print_json(
            {
                name: {
                    "value": value,
                    "origin": loaded.origins[name],
                    "variable": variable_of(name),
                }
                for name, value in values.items()
            }
        )
        return 0
    width = max(map(len, values))
    for name, value in values.items():
        text = msgspec.json.encode(value).decode()
        print(f"{name:{width}} = {text}  # {loaded.origins[name]}")
    return 0


def version(*, json: Json = False) -> int:
    """Print the versions of pennyweight and of Python.

    Example: pennyweight version
    """
    own, python = metadata.version("pennyweight"), platform.python_version()
    if json:
        print_json({"pennyweight": own, "python": python})
    else:
        print(f"pennyweight {own} (Python {python})")
    return 0
