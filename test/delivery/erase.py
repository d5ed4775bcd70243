#!/usr/bin/python3
"""Somebody is erased while what was said of him is on its way, or waits to be tried again, alone or together with others."""
import json
import threading

from common import Database, Shell, Sink, finish, is_, settled, start, wait_for

SETUP = """
CREATE SCHEMA s;
SELECT millrace.create_stream('feed');
SELECT millrace.create_staging('s.orders', stream => 'feed', key => '{"id": ["$.id", "text"]}', version => '["$.v", "integer"]', log => true, columns => '{"person": "$.person", "city": "$.city"}');
SELECT millrace.create_channel('alerts', server => 'hook', options => '{"path": "/alerts"}');
SELECT millrace.create_channel('rows', server => 'hook', options => '{"path": "/rows"}');
SELECT millrace.create_rule('any', kind => 'match', source => 's.orders', predicate => 'city IS NOT NULL', details => '{person}', group_by => '{city}', channels => '{alerts}', max_age => NULL);
SELECT millrace.create_sink('orders', source => 's.orders', channel => 'rows', message => $$ jsonb_build_object('id', id, 'person', person) $$, filter => 'city IS NULL');
SELECT millrace.run_stream('feed');
"""


def push(db, person, number, city=None):
    db.query("SELECT millrace.push('feed', %s)", json.dumps({'id': f'{person}-{number}', 'v': 1, 'person': person, 'city': city}))


def run(db):
    db.query("SELECT millrace.run_stream('feed')")


def erase(db, person):
    db.query("SELECT millrace.erase('feed', %s)", json.dumps({'person': person}))


def left_of(db, person):
    tables = db.query("SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('millrace', 'millrace_state', 's')")
    return [table for (table,) in tables if db.query(f"SELECT 1 FROM {table} t WHERE position(%s IN t::text) > 0 OR position(%s IN t::text) > 0 LIMIT 1", person, person.encode().hex())]


def texts(sink, path):
    return [got.body for got in sink.got(path)]


class Gate:
    """An endpoint that lets nothing out until it is opened."""
    def __init__(self, status=200):
        self.status = status
        self.opened = threading.Event()

    def __call__(self, body):
        self.opened.wait(120)
        return self.status


def on_its_way(db, sink, status):
    person = f'ann{status}'
    gate = Gate(status)
    sink.answers['/alerts'] = [gate, 200]
    before = len(texts(sink, '/alerts'))
    push(db, person, 1, 'riga')
    run(db)
    wait_for('the request', lambda: len(texts(sink, '/alerts')) > before)
    push(db, 'bob', status, 'riga')
    run(db)
    erase(db, person)
    is_(f'what is sent just now is erased beside that ({status})', left_of(db, person), [])
    gate.opened.set()
    wait_for('the next one', lambda: any('bob' in text for text in texts(sink, '/alerts')[before + 1:]))
    settled(db, 'alerts')
    is_('what became of it is recorded nowhere, and it is not sent again', (left_of(db, person), [text for text in texts(sink, '/alerts')[before + 1:] if person in text]), ([], []))


def together(db, sink):
    gate = Gate()
    sink.answers['/alerts'] = [gate, 500]
    before = len(texts(sink, '/alerts'))
    push(db, 'first', 1, 'oslo')
    run(db)
    wait_for('the request', lambda: len(texts(sink, '/alerts')) > before)
    for person in ('cyr', 'dora', 'cyr2'):
        push(db, person, 1, 'bern')
    run(db)
    gate.opened.set()
    wait_for('a failure', lambda: any('dora' in text for text in texts(sink, '/alerts')))
    wait_for('it to be tried again', lambda: db.one("SELECT count(*) FROM millrace.delivery WHERE state = 'ready' AND messages = 3") == 1)
    error = db.one("SELECT a.error FROM millrace.attempt a JOIN millrace.delivery d ON d.id = a.delivery_id WHERE d.state = 'ready' AND d.messages = 3 AND a.error IS NOT NULL LIMIT 1")
    db.query("UPDATE millrace.channel_state s SET last_error = %s FROM millrace.channel c WHERE c.name = 'rows' AND s.channel_id = c.id", error)
    erase(db, 'cyr')
    is_('what another channel was told in the same words stays', (error is not None, db.one("SELECT s.last_error FROM millrace.channel_state s JOIN millrace.channel c ON c.id = s.channel_id WHERE c.name = 'rows'")), (True, error))
    is_('of what is tried again the rest waits anew', db.one("SELECT count(*) FROM millrace.outbox WHERE message::text ~ 'dora|cyr2' AND state IN ('waiting', 'claimed')"), 2)
    sink.answers['/alerts'] = [200]
    settled(db, 'alerts')
    last = [text for text in texts(sink, '/alerts') if 'dora' in text][-1]
    is_('and is sent without him', ('cyr2' in last, '"cyr"' in last or 'cyr\\n' in last or 'cyr-1' in last), (True, False))
    erase(db, 'dora')
    is_('of what was sent no text stays', (left_of(db, 'dora'), db.query("SELECT messages, payloads FROM millrace.delivery WHERE key ~ 'cyr2'")), ([], [(1, [''])]))
    is_('nor what the endpoint said', db.one("SELECT count(*) FROM millrace.attempt a JOIN millrace.delivery d ON d.id = a.delivery_id WHERE d.key ~ 'cyr2' AND a.error IS NOT NULL"), 0)


def locks(db):
    """Who gives claims back or tries a dead letter again has nothing locked before its channel is his, as who erases has it."""
    holder = Database()
    retrier = Database()
    holder.query("BEGIN")
    holder.query("SELECT 1 FROM millrace.channel_state FOR NO KEY UPDATE")
    db.query("INSERT INTO millrace.delivery (channel_id, key, messages, payloads, claimant, created_at) SELECT id, 'orphan', 1, '{x}', 1, now() FROM millrace.channel WHERE name = 'rows'")
    db.query("SELECT millrace_internal.release_claims(1)")
    is_('a claim of a worker that is gone is not given back meanwhile', db.one("SELECT state FROM millrace.delivery WHERE key = 'orphan'"), 'claimed')
    holder.query("DELETE FROM millrace.delivery WHERE key = 'orphan'")
    holder.query("SELECT 1 FROM millrace.delivery WHERE state = 'dead' FOR UPDATE")
    retry = threading.Thread(target=retrier.query, args=("SELECT millrace.retry(ARRAY(SELECT id FROM millrace.dead_letter WHERE kind = 'delivery'))",))
    retry.start()
    wait_for('the lock', lambda: db.one("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
    is_('nor is a dead letter touched', len(holder.query("SELECT id FROM millrace.letter WHERE kind = 'delivery' FOR UPDATE SKIP LOCKED")), 1)
    holder.query("COMMIT")
    retry.join()


def rows(db, sink):
    sink.answers['/rows'] = [200]
    push(db, 'erika', 1)
    push(db, 'erika', 2)
    push(db, 'fayola', 1)
    run(db)
    settled(db, 'rows')
    sink.answers['/rows'] = [500, 200]
    erase(db, 'erika')
    settled(db, 'rows')
    is_('whoever was sent rows is told to delete them', {text for text in texts(sink, '/rows') if 'deleted' in text}, {'{"deleted" : "erika-1"}', '{"deleted" : "erika-2"}'})
    is_('and then nothing says so any more', (left_of(db, 'erika'), db.query("SELECT key, state FROM millrace.outbox WHERE channel = 'rows'")), ([], [('fayola-1', 'sent')]))
    sink.answers['/rows'] = [400, 200]
    erase(db, 'fayola')
    settled(db, 'rows')
    is_('a deletion that is refused is a dead letter', db.one("SELECT count(*) FROM millrace.dead_letter WHERE kind = 'delivery'"), 1)
    locks(db)
    settled(db, 'rows')
    is_('which is gone when it was sent', left_of(db, 'fayola'), [])


def main():
    with Shell() as shell:
        db = start(shell)
        sink = Sink()
        db.query(f"CREATE SERVER hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{sink.url}', timeout '1min')")
        db.query(SETUP)
        on_its_way(db, sink, 200)
        on_its_way(db, sink, 500)
        on_its_way(db, sink, 400)
        together(db, sink)
        rows(db, sink)
        sink.end()
        finish(shell)


if __name__ == '__main__':
    main()
