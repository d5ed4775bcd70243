#!/usr/bin/env python3
"""Makes what users bought, the same each time: gen_bought.py ml | retail FILE [SCALE]. Writes FILE.npy (users, items, weights) and FILE.copy, the
same rows for COPY (FORMAT binary). ml has the shape of MovieLens-20M, 138,000 users and 27,000 items; retail 1 million users and 100,000 items."""

import sys

import numpy

shape, name = sys.argv[1:3]
scale = float(sys.argv[3]) if len(sys.argv) > 3 else 1
draw = numpy.random.default_rng(7)
users, items, draws, spread, head, steep = {"ml": (138000, 27000, 22_500_000, 1.2, 60, 1.0), "retail": (1000000, 100000, 10_000_000, 0.6, 200, 0.8)}[shape]
users, items, draws = int(users * scale), int(items * scale), int(draws * scale)
active = draw.lognormal(0, spread, users)
popular = 1 / (numpy.arange(items) + head) ** steep
u = numpy.searchsorted(numpy.cumsum(active) / active.sum(), draw.random(draws)).clip(0, users - 1)
i = numpy.searchsorted(numpy.cumsum(popular) / popular.sum(), draw.random(draws)).clip(0, items - 1)
pairs, times = numpy.unique(u.astype(numpy.int64) * items + draw.permutation(items)[i], return_counts=True)
numpy.save(name + ".npy", numpy.stack([pairs // items, pairs % items, times]).astype(numpy.int32))
rows = numpy.zeros(len(pairs), dtype=[("n", ">i2"), ("l1", ">i4"), ("u", ">i4"), ("l2", ">i4"), ("i", ">i4"), ("l3", ">i4"), ("w", ">i4")])
rows["n"], rows["l1"], rows["l2"], rows["l3"] = 3, 4, 4, 4
rows["u"], rows["i"], rows["w"] = pairs // items, pairs % items, times
with open(name + ".copy", "wb") as file:
    file.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    rows.tofile(file)
    file.write(b"\xff\xff")
