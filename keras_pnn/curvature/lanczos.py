"""Run Lanczos methods on a symmetric matrix that is only known by its products."""

from collections.abc import Callable

import numpy as np

# The most products of one search for further copies of eigenvalues, and the probability
# that a search that ends earlier misses a copy.
CHECK_PRODUCTS = 100
CHECK_FAILURE = 0.01


def extreme_vectors(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    largest: int,
    smallest: int,
    allowed: Callable[[np.ndarray], np.ndarray],
    max_products: int,
    seed: int,
) -> np.ndarray:
    """Finds Ritz vectors of the largest and the smallest eigenvalues.

    Lanczos iteration with thick restarts (Wu and Simon, 2000, SIAM J. Matrix Anal.
    Appl. 22, 602–616), full orthogonalisation, and both ends of the spectrum from one
    subspace. A Krylov space holds one vector of each eigenspace, whatever its
    dimension. Therefore, after convergence, a short iteration from a random vector
    orthogonal to those found looks for further copies, which join the subspace.

    ARPACK (`scipy.sparse.linalg.eigsh`) spends 21 products or more before its first
    test of convergence, takes a second run for the other end, and misses copies;
    `python benchmarks/hessian.py --arpack` compares both.

    Args:
        product: the map v ↦ Hv on arrays of length `size`.
        largest, smallest: number of eigenvalues from each end, together at most `size`.
        allowed: the map from the eigenvalues, in the order of the result, to the
            largest accepted lengths of their residuals.
        max_products: approximate limit on products.

    Returns:
        (size, largest + smallest) orthonormal vectors: those of the largest
        eigenvalues, descending, then those of the smallest, ascending.
    """
    rng = np.random.default_rng(seed)
    count = largest + smallest
    limit = min(size, max(2 * count + 1, 32))
    space = _Subspace(product, limit, outside=np.empty((size, 0)))
    budget = max(max_products, count)
    direction = rng.standard_normal(size)
    while True:
        space.extend(direction, rng)
        values, mix = space.ritz()
        order = np.arange(len(values))
        wanted = np.concatenate([order[::-1][:largest], order[:smallest]])
        full = len(values) == size
        if len(values) < count:
            direction = space.residuals(values, mix, order[-1:])[:, 0]
            continue
        residuals = space.residuals(values, mix, wanted)
        lengths = np.linalg.norm(residuals, axis=0)
        enough = allowed(values[wanted])
        # Half of what is allowed, so that fresh products confirm convergence.
        ratio = lengths / (0.5 * enough)
        worst = ratio.argmax()
        direction = residuals[:, worst]
        spent = space.products >= budget
        if full or spent or ratio[worst] <= 1:
            found = space.vectors @ mix[:, wanted]
            if full or spent:
                return found
            direction = _missed(
                product=space.counted,
                found=found,
                top=values[wanted[:largest]],
                bottom=values[wanted[largest:]],
                margins=2 * enough,
                spread=values[-1] - values[0],
                limit=min(CHECK_PRODUCTS, budget - space.products, size - count),
                rng=rng,
            )
            if direction is None:
                return found
        if space.length == limit:
            space.restart(values, mix, largest, smallest)


class _Subspace:
    """An orthonormal basis V, of at most `limit` vectors, with HV and VᵀHV.

    V is kept orthogonal to the orthonormal vectors `outside`, (size, m).
    """

    def __init__(self, product, limit, outside):
        size, start = outside.shape
        self._product = product
        self._outside = outside
        self._basis = np.empty((size, start + limit), order="F")
        self._basis[:, :start] = outside
        self._vectors = self._basis[:, start:]
        self._images = np.empty((size, limit), order="F")
        self._matrix = np.empty((limit, limit))
        self.length = 0
        self.products = 0

    @property
    def vectors(self):
        return self._vectors[:, : self.length]

    @property
    def images(self):
        return self._images[:, : self.length]

    def counted(self, vector):
        self.products += 1
        return self._product(vector)

    def extend(self, direction, rng):
        """Adds a direction, or a random one if the basis already contains it."""
        basis = self._basis[:, : self._outside.shape[1] + self.length]
        vector = orthonormal(direction, basis, rng)
        image = self.counted(vector)
        end = self.length
        self._vectors[:, end], self._images[:, end] = vector, image
        self.length += 1
        row = self.vectors.T @ image
        # Rounding leaves H not quite symmetric: average both triangles.
        row[:end] = (row[:end] + self.images[:, :end].T @ vector) / 2
        self._matrix[end, : end + 1] = self._matrix[: end + 1, end] = row

    def ritz(self):
        """Returns eigenvalues, ascending, and eigenvectors of VᵀHV."""
        return np.linalg.eigh(self._matrix[: self.length, : self.length])

    def residuals(self, values, mix, which):
        mix = mix[:, which]
        found = self.images @ mix - self.vectors @ (mix * values[which])
        return found - self._outside @ (self._outside.T @ found)

    def restart(self, values, mix, largest, smallest):
        """Keeps the wanted Ritz vectors, and some more from the same ends."""
        spare = (self.length - largest - smallest) // 3
        top = largest + (spare if largest else 0)
        bottom = smallest + (spare if smallest else 0)
        kept = np.r_[:bottom, self.length - top : self.length]
        length = len(kept)
        self._vectors[:, :length] = self.vectors @ mix[:, kept]
        self._images[:, :length] = self.images @ mix[:, kept]
        self._matrix[:length, :length] = np.diag(values[kept])
        self.length = length


def _missed(product, found, top, bottom, margins, spread, limit, rng):
    """Looks for a direction whose eigenvalue should be among those found.

    No product is spent if further copies cannot matter: with one eigenvalue from an
    end, or if all of an end agree. Returns `None` if no eigenvalue was missed.

    Args:
        found: (size, count) orthonormal vectors.
        top, bottom: their eigenvalues from the two ends, outermost first.
        margins: for each, how far another eigenvalue must lie beyond it to matter.
        spread: about the largest eigenvalue minus the smallest.
        limit: the most products to spend.
    """
    size, count = len(found), len(top)
    ends, gaps = [], []
    # The lower end is the upper one of −H.
    for sign, edge, margin in (
        (1, top, margins[:count]),
        (-1, bottom, margins[count:]),
    ):
        below = sign * (edge[:1] - edge)
        if len(edge) > 1 and below[-1] > margin[-1]:
            ends.append((sign, sign * edge[-1], margin[-1]))
            apart = below[-1] - below
            gaps += [apart.max(), apart[apart > margin[-1]].min()]
    if not ends or limit < 1:
        return None
    # The steps after which a missed copy shows, for the widest and the smallest gap.
    first, last = (_steps_to_see(gap / spread, size) for gap in (max(gaps), min(gaps)))
    space = _Subspace(product, min(limit, last), outside=found)
    direction = rng.standard_normal(size)
    for step in range(1, min(limit, last) + 1):
        space.extend(direction, rng)
        values, mix = space.ritz()
        # Residuals of the ends beyond which an eigenvalue may still lie.
        undecided = []
        for sign, edge, margin in ends:
            which = [-1 if sign > 0 else 0]
            value = sign * values[which[0]]
            if value > edge + margin:
                return (space.vectors @ mix[:, which])[:, 0]
            residual = space.residuals(values, mix, which)[:, 0]
            if value + np.linalg.norm(residual) > edge:
                undecided.append(residual)
        if not undecided and step >= first:
            return None
        direction = undecided[-1] if undecided else residual
    return None


def _steps_to_see(gap, size):
    """Returns the Lanczos steps after which an eigenvalue has probably appeared.

    The value found from a random vector is then within `gap` × spread of the largest
    eigenvalue, except with a probability of `CHECK_FAILURE` (Kuczyński and
    Woźniakowski, 1992, theorem 4.2).
    """
    return int(np.ceil(np.log(1.65 * np.sqrt(size) / CHECK_FAILURE) / (2 * gap**0.5)))


def tridiagonal(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes nodes and weights of the Gauss quadrature of a start vector.

    Lanczos iteration with full orthogonalisation from `start` gives a tridiagonal
    matrix; its eigenvalues, ascending, are the nodes, the squared first entries of its
    eigenvectors the weights, which sum to 1. The sum over weight × f(node) is exact for
    vᵀf(H)v/vᵀv with polynomials f of degree below 2 `steps` (Golub and Welsch, 1969).
    There are fewer than `steps` nodes if the Krylov space ends earlier.
    """
    size = len(start)
    basis = np.empty((size, min(steps, size)), order="F")
    basis[:, 0] = start / np.linalg.norm(start)
    matrix = np.zeros((basis.shape[1],) * 2)
    scale = 0.0
    for index in range(basis.shape[1]):
        image = product(basis[:, index])
        scale = max(scale, np.linalg.norm(image))
        done = basis[:, : index + 1]
        matrix[index, index] = basis[:, index] @ image
        for _ in range(2):
            image = image - done @ (done.T @ image)
        length = np.linalg.norm(image)
        if index + 1 == basis.shape[1] or length <= 1e-10 * scale:
            break
        matrix[index, index + 1] = matrix[index + 1, index] = length
        basis[:, index + 1] = image / length
    values, vectors = np.linalg.eigh(matrix[: index + 1, : index + 1])
    return values, vectors[0] ** 2


def orthonormal(direction, basis, rng):
    """Returns the direction's part outside a basis, normalised to length 1.

    A direction inside the basis is replaced by a random one.
    """
    while True:
        before = np.linalg.norm(direction)
        vector = direction / before if before > 0 else direction
        # One pass leaves rounding errors; two are enough (Parlett, 1998).
        for _ in range(2):
            vector = vector - basis @ (basis.T @ vector)
            length = np.linalg.norm(vector)
            if length < 1e-8:
                break
            vector = vector / length
        else:
            return vector
        direction = rng.standard_normal(len(direction))
