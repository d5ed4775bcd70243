"""similaripy's cosine over what gen_bought.py made: similar.py FILE.npy THREADS [weighted]. Prints the seconds from the compressed matrix to the neighbours;
the item itself is one of its 101."""

import sys
import time

import numpy
import scipy.sparse
import similaripy

users, items, weights = numpy.load(sys.argv[1])
values = weights if sys.argv[3:] == ["weighted"] else numpy.ones(len(users))
matrix = scipy.sparse.csr_matrix((values.astype(numpy.float32), (items, users)))
start = time.perf_counter()
similaripy.cosine(matrix, k=101, num_threads=int(sys.argv[2]), verbose=False, format_output="csr")
print(round(time.perf_counter() - start, 3))
