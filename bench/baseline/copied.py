"""What is done without millrace: copied.py TABLE THREADS [weighted] copies (u, i[, w]) out of the table in binary, numbers users and items, lets similaripy
find 100 neighbours of each item by cosine and copies them back into TABLE_similar (item, rank, neighbour, score), by whose key they are served. psql's
environment says where. Prints the seconds."""

import subprocess
import sys
import time

import numpy
import scipy.sparse
import similaripy

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)


def main():
    table, threads, weighted = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["weighted"]
    columns = ["u", "i"] + ["w"] * weighted
    fields = [("n", ">i2")] + [field for name in columns for field in (("length_" + name, ">i4"), (name, ">i4"))]
    start = time.perf_counter()
    out = subprocess.run(["psql", "-qXc", f"COPY (SELECT {', '.join(columns)} FROM {table}) TO STDOUT (FORMAT binary)"], check=True, stdout=subprocess.PIPE).stdout
    rows = numpy.frombuffer(out, numpy.dtype(fields), offset=len(HEADER), count=(len(out) - len(HEADER) - 2) // numpy.dtype(fields).itemsize)
    _, users = numpy.unique(rows["u"].astype(numpy.int32), return_inverse=True)
    ids, items = numpy.unique(rows["i"].astype(numpy.int32), return_inverse=True)
    values = rows["w"].astype(numpy.float32) if weighted else numpy.ones(len(rows), numpy.float32)
    similar = similaripy.cosine(scipy.sparse.csr_matrix((values, (items, users))), k=101, num_threads=threads, verbose=False, format_output="csr")

    item = numpy.repeat(numpy.arange(len(ids)), numpy.diff(similar.indptr))
    order = numpy.lexsort((similar.indices, -similar.data, item))
    order = order[similar.indices[order] != item[order]]
    item = item[order]
    rank = numpy.arange(len(item)) - numpy.searchsorted(item, item) + 1
    kept = rank <= 100
    made = numpy.zeros(kept.sum(), [("n", ">i2"), ("l1", ">i4"), ("item", ">i4"), ("l2", ">i4"), ("rank", ">i4"), ("l3", ">i4"), ("neighbour", ">i4"), ("l4", ">i4"), ("score", ">f4")])
    made["n"], made["l1"], made["l2"], made["l3"], made["l4"] = 4, 4, 4, 4, 4
    made["item"], made["rank"], made["neighbour"], made["score"] = ids[item[kept]], rank[kept], ids[similar.indices[order][kept]], similar.data[order][kept]
    subprocess.run(["psql", "-qXc", f"CREATE TABLE {table}_similar (item integer, rank integer, neighbour integer, score real, PRIMARY KEY (item, rank))"], check=True)
    subprocess.run(["psql", "-qXc", f"COPY {table}_similar FROM STDIN (FORMAT binary)"], check=True, input=HEADER + made.tobytes() + b"\xff\xff")
    print(round(time.perf_counter() - start, 3))


main()
