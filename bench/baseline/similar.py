"""Cosine of other libraries over what gen_bought.py made: similar.py LIBRARY FILE.npy THREADS [weighted]. LIBRARY is similaripy or implicit. Prints the seconds
from the compressed matrix to the neighbours; the item itself is one of its 101."""

import os
import sys
import time

library, file, threads = sys.argv[1:4]
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS=threads)

import numpy                    # noqa: E402
import scipy.sparse             # noqa: E402


def main():
    users, items, weights = numpy.load(file)
    values = (weights if sys.argv[4:] == ["weighted"] else numpy.ones(len(users))).astype(numpy.float32)
    if library == "similaripy":
        import similaripy
        matrix = scipy.sparse.csr_matrix((values, (items, users)))
        start = time.perf_counter()
        similaripy.cosine(matrix, k=101, num_threads=int(threads), verbose=False, format_output="csr")
    else:
        from implicit.nearest_neighbours import CosineRecommender
        matrix = scipy.sparse.csr_matrix((values, (users, items)))
        model = CosineRecommender(K=101, num_threads=int(threads))
        start = time.perf_counter()
        model.fit(matrix, show_progress=False)
    print(round(time.perf_counter() - start, 3))


main()
