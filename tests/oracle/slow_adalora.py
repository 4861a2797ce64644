"""AdaLoRA's allocation written straight from the equations, entry by entry, with Python floats only.

Shares no code and no data layout with the package: matrices are lists of lists, the model is a list of (P, λ, Q).
LoRA is the same without a λ: a list of (B, [], A).
"""

Matrix = list[list[float]]


def schedule(t: int, b_0: int, b_T: int, t_i: int, t_f: int, T: int) -> int:
    if t < t_i:
        return b_0
    if t >= T - t_f:
        return b_T
    return int(b_T + (b_0 - b_T) * (1 - (t - t_i) / (T - t_i - t_f)) ** 3)


class SlowAllocator:
    """One triplet after the other: sensitivity (8), averages (9)-(10), s (11), score (7), pruning (6)."""

    def __init__(self, shapes: list[tuple[int, int, int]], beta1: float, beta2: float) -> None:
        self.shapes, self.beta1, self.beta2 = shapes, beta1, beta2
        self.sensitivity: dict[tuple, float] = {}
        self.average: dict[tuple, float] = {}
        self.uncertainty: dict[tuple, float] = {}

    def update(self, weights: list[tuple[Matrix, list[float], Matrix]], grads: list) -> None:
        for key, w, g in self._entries(weights, grads):
            self.sensitivity[key] = sensitivity = abs(w * g)  # (8)
            mean = self.beta1 * self.average.get(key, 0.0) + (1 - self.beta1) * sensitivity  # (9)
            self.uncertainty[key] = self.beta2 * self.uncertainty.get(key, 0.0) + (1 - self.beta2) * abs(
                sensitivity - mean
            )  # (10)
            self.average[key] = mean

    def s(self, key: tuple) -> float:
        return self.average[key] * self.uncertainty[key]  # (11)

    def scores(self) -> list[list[float]]:
        """(7) of each triplet of each matrix."""
        return [[self._score(k, i, d_out, d_in) for i in range(r)] for k, (d_out, d_in, r) in enumerate(self.shapes)]

    def _score(self, k: int, i: int, d_out: int, d_in: int) -> float:
        of_E = self.s((k, "E", i)) if (k, "E", i) in self.average else 0.0
        of_P = sum(self.s((k, "P", j, i)) for j in range(d_out)) / d_out
        of_Q = sum(self.s((k, "Q", i, j)) for j in range(d_in)) / d_in
        return of_E + of_P + of_Q

    def _entries(self, weights: list, grads: list):
        for k, ((P, E, Q), (gP, gE, gQ)) in enumerate(zip(weights, grads, strict=True)):
            for i in range(len(Q)):
                if E:
                    yield (k, "E", i), E[i], gE[i]
                for j in range(len(P)):
                    yield (k, "P", j, i), P[j][i], gP[j][i]
                for j in range(len(Q[i])):
                    yield (k, "Q", i, j), Q[i][j], gQ[i][j]


class SlowSensitivity(SlowAllocator):
    """S of ``score=sensitivity``: (7) with s = I, (8)."""

    def s(self, key: tuple) -> float:
        return self.sensitivity[key]


class SlowAverage(SlowAllocator):
    """S of ``score=sensitivity`` in the released protocol: (7) with s = Ī, (9)."""

    def s(self, key: tuple) -> float:
        return self.average[key]


class SlowGradient(SlowAverage):
    """S of ``score=gradient``: (7) with the average (9) of |g| in place of s; neither (8), nor (10), nor (11)."""

    def update(self, weights: list[tuple[Matrix, list[float], Matrix]], grads: list) -> None:
        for key, _, g in self._entries(weights, grads):
            self.average[key] = self.beta1 * self.average.get(key, 0.0) + (1 - self.beta1) * abs(g)


class SlowMagnitude(SlowAllocator):
    """S of ``score=magnitude``: |λ| of the weights of the step."""

    def update(self, weights: list[tuple[Matrix, list[float], Matrix]], grads: list) -> None:
        self.values = [E for _, E, _ in weights]

    def scores(self) -> list[list[float]]:
        return [[abs(value) for value in E] for E in self.values]


def keep_exactly(scores: list[list[float]], budget: int) -> list[list[bool]]:
    """(6): the top-b(t) of all triplets; of equal scores the earlier matrix and index."""
    ranked = sorted(((-s, k, i) for k, row in enumerate(scores) for i, s in enumerate(row)))
    kept = {(k, i) for _, k, i in ranked[:budget]}
    return [[(k, i) in kept for i in range(len(row))] for k, row in enumerate(scores)]


def keep_evenly(scores: list[list[float]], budget: int) -> list[list[bool]]:
    """Round after round the best triplet left of every matrix, the better ones of a round first."""
    left = [sorted(range(len(row)), key=lambda i: (-row[i], i)) for row in scores]
    kept: set[tuple[int, int]] = set()
    while len(kept) < budget:
        turn = sorted((-scores[k][order[0]], k, order.pop(0)) for k, order in enumerate(left) if order)
        kept |= {(k, i) for _, k, i in turn[: budget - len(kept)]}
    return [[(k, i) in kept for i in range(len(row))] for k, row in enumerate(scores)]


def penalty(P: Matrix, Q: Matrix) -> float:
    """(4): ||PᵀP - I||² + ||QQᵀ - I||², Frobenius."""
    r = len(Q)
    total = 0.0
    for i in range(r):
        for j in range(r):
            eye = 1.0 if i == j else 0.0
            total += (sum(row[i] * row[j] for row in P) - eye) ** 2
            total += (sum(a * b for a, b in zip(Q[i], Q[j], strict=True)) - eye) ** 2
    return total


def mean_cosine(rows: Matrix) -> float:
    """Mean |cos| between two different rows."""

    def norm(row: list[float]) -> float:
        return sum(x * x for x in row) ** 0.5

    total, r = 0.0, len(rows)
    for i in range(r):
        for j in range(r):
            if i != j and norm(rows[i]) and norm(rows[j]):
                dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                total += abs(dot) / norm(rows[i]) / norm(rows[j])
    return total / (r * r - r)
