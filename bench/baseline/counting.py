#!/usr/bin/env python3
"""Counts which items users have together, in dictionaries of dictionaries: counting.py FILE.npy BATCH → interactions a second.

FILE has the interactions, a user and an item each, in the order in which they come; each batch is counted whole before the next.
"""

import collections
import sys
import time

import numpy

interactions = numpy.load(sys.argv[1]).tolist()
batch = int(sys.argv[2])
had = collections.defaultdict(set)
users = collections.defaultdict(int)
pairs = collections.defaultdict(lambda: collections.defaultdict(int))
begun = time.monotonic()
for first in range(0, len(interactions), batch):
    for user, item in interactions[first:first + batch]:
        if item in had[user]:
            continue
        for other in had[user]:
            pairs[item][other] += 1
            pairs[other][item] += 1
        users[item] += 1
        had[user].add(item)
print(round(len(interactions) / (time.monotonic() - begun)))
