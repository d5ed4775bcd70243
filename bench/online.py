#!/usr/bin/env python3
"""Brings interactions to an online model: online.py make FILE.npy USERS ITEMS PER_USER makes them, Zipf items in random order, until each user has so many;
online.py run FILE.npy BATCH brings them in batches to the stream "feed" of the database of PG*, and prints how many a second were counted and committed."""

import sys
import time

import numpy

if sys.argv[1] == "make":
    name, users, items, per_user = sys.argv[2], *(int(a) for a in sys.argv[3:6])
    draw = numpy.random.default_rng(7)
    popular = numpy.cumsum(1 / numpy.arange(1, items + 1))
    # some are drawn twice: enough of each user's are left
    u = numpy.repeat(numpy.arange(users), per_user * 2)
    i = numpy.searchsorted(popular / popular[-1], draw.random(len(u))).clip(0, items - 1)
    pairs = draw.permutation(numpy.unique(u.astype(numpy.int64) * items + i))
    by_user = numpy.argsort(pairs // items, kind="stable")
    users_of = (pairs // items)[by_user]
    first = numpy.searchsorted(users_of, numpy.arange(users))
    keep = numpy.sort(by_user[numpy.arange(len(pairs)) - first[users_of] < per_user])
    pairs = draw.permutation(items)[pairs[keep] % items] + pairs[keep] // items * items
    numpy.save(name, numpy.stack([pairs // items, pairs % items], axis=1).astype(numpy.int32))
else:
    import psycopg2

    interactions, batch = numpy.load(sys.argv[2]).tolist(), int(sys.argv[3])
    connection = psycopg2.connect("")
    connection.autocommit = True
    cursor = connection.cursor()
    seconds = 0
    for first in range(0, len(interactions), batch):
        messages = [f'{{"u": {u}, "i": {i}}}' for u, i in interactions[first:first + batch]]
        cursor.execute("SELECT count(millrace.push('feed', m, key => (n + %s)::text)) FROM unnest(%s) WITH ORDINALITY AS u (m, n)", (first, messages))
        begun = time.monotonic()
        cursor.execute("SELECT messages, dead_letters FROM millrace.run_stream('feed')")
        seconds += time.monotonic() - begun
        if cursor.fetchone() != (len(messages), 0):
            sys.exit("messages were not taken")
    print(round(len(interactions) / seconds))
