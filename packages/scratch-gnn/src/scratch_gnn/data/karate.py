"""Zachary's karate club: 34 members, and the 78 pairs of them who met outside of the club.

Source: Zachary 1977, "An information flow model for conflict and fission in small groups", Journal of Anthropological
Research 33, 452-473. The club broke in two: node 0 is the instructor, node 33 the officer whom the others followed.
"""

import numpy as np

from scratch_gnn.graph import Graph, both_ways

# For each member, the members with a higher number whom he met.
MET = {
    0: (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 17, 19, 21, 31), 1: (2, 3, 7, 13, 17, 19, 21, 30),
    2: (3, 7, 8, 9, 13, 27, 28, 32), 3: (7, 12, 13), 4: (6, 10), 5: (6, 10, 16), 6: (16,), 8: (30, 32, 33),
    9: (33,), 13: (33,), 14: (32, 33), 15: (32, 33), 18: (32, 33), 19: (33,), 20: (32, 33), 22: (32, 33),
    23: (25, 27, 29, 32, 33), 24: (25, 27, 31), 25: (31,), 26: (29, 33), 27: (33,), 28: (31, 33), 29: (32, 33),
    30: (32, 33), 31: (32, 33), 32: (33,),
}  # fmt: skip
INSTRUCTOR = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 19, 21)
"""The members who followed the instructor."""
SIDES = ("instructor", "officer")


def karate_club() -> Graph:
    """Return the club: x is the identity [34, 34]; a label is 0 for the instructor's side, 1 for the officer's."""
    pairs = np.array([(member, other) for member, others in MET.items() for other in others])
    labels = np.ones(34, np.int32)
    labels[list(INSTRUCTOR)] = 0
    return Graph(np.eye(34, dtype=np.float32), both_ways(pairs), labels)
