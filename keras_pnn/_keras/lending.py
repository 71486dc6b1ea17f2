"""Give an object or a module other attributes for a while."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def lent(owner, others: dict) -> Iterator[None]:
    """Gives an object or a module other attributes until the block ends."""
    # Past Keras' tracking, or an optimizer would be saved twice.
    attributes = vars(owner)
    before = {name: attributes[name] for name in others if name in attributes}
    attributes.update(others)
    try:
        yield
    finally:
        for name in others:
            del attributes[name]
        attributes.update(before)
