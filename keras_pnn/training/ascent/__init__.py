"""Choose how a training step seeks a flat loss: ascents, and terms of the loss."""

from keras_pnn import _checks
from keras_pnn.training.ascent.base import Ascent as Ascent
from keras_pnn.training.ascent.base import Step as Step
from keras_pnn.training.ascent.efficient import ESAM as ESAM
from keras_pnn.training.ascent.friendly import FriendlySAM as FriendlySAM
from keras_pnn.training.ascent.orthogonal import GSAM as GSAM
from keras_pnn.training.ascent.orthogonal import LookSAM as LookSAM
from keras_pnn.training.ascent.sam import ASAM as ASAM
from keras_pnn.training.ascent.sam import SAM as SAM
from keras_pnn.training.ascent.trajectory import MESA as MESA
from keras_pnn.training.ascent.trajectory import SAF as SAF

KINDS = {
    kind.__name__.lower(): kind
    for kind in (SAM, ASAM, ESAM, FriendlySAM, GSAM, LookSAM, MESA, SAF)
}


def get(ascent, rho=None) -> Ascent | None:
    """Returns an ascent from a key of `KINDS`, with a radius, or from an object."""
    kind = KINDS.get(ascent) if isinstance(ascent, str) else None
    if kind is not None and (rho is None or issubclass(kind, SAM)):
        return kind() if rho is None else kind(rho)
    if kind is None and ascent is not None and not isinstance(ascent, Ascent):
        names = ", ".join(map(repr, KINDS))
        expected = f"{names}, None or an object such as pnn.SAM(0.1)"
        raise _checks.error("ascent", expected, _checks.short(ascent))
    if rho is not None:
        raise ValueError(
            "`rho` goes with the name of an ascent that has a radius, such as 'sam'; "
            f"an object has its own. Received: rho={rho!r}, ascent={ascent!r}"
        )
    return ascent
