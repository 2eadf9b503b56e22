"""How the optional parts of the package (extras of setup.cfg) are installed, for messages about a library that is missing."""


def install(extra: str) -> str:
    """Return the commands that install an extra: from an index, and in a clone, where an index may not have the package."""
    return f"pip install 'igpt_jax[{extra}]' (in a clone: pip install -e '.[{extra}]')"
