"""Replace attributes of an object or a module temporarily."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def lent(owner, others: dict) -> Iterator[None]:
    """Replaces attributes of an object or a module until the block ends."""
    # Bypasses Keras' tracking, or an optimizer would be saved twice.
    attributes = vars(owner)
    before = {name: attributes[name] for name in others if name in attributes}
    attributes.update(others)
    try:
        yield
    finally:
        for name in others:
            del attributes[name]
        attributes.update(before)
