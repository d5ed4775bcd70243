#!/usr/bin/python3
"""Rules on millrace itself: what they tell while a stream is stopped and while a channel fails, and the heartbeat that somebody outside misses.
"""
import os
import signal

import psycopg2

from common import Shell, Sink, finish, holds_for, is_, settled, start, wait_for

QUIET = 3   # seconds without a heartbeat that would come each second


def said(sink, where, rule):
    """(state, key) of the messages of a rule that have arrived."""
    return [(body['state'], body['key']) for body in sink.bodies(where) if body.get('rule') == rule]


def arrives(sink, where, rule, *wanted):
    wait_for(rule, lambda: len(said(sink, where, rule)) >= len(wanted))
    return is_(f'{rule}: {wanted[-1]} arrives', said(sink, where, rule), list(wanted))


def rule(db, name, predicate, **arguments):
    more = ''.join(f', {key} => %s' for key in arguments)
    db.query(f"SELECT millrace.create_rule(%s, kind => 'health', predicate => %s{more})", name, predicate, *arguments.values())


def goes_on(sink, what, more=2, where='/alive'):
    """So many more heartbeats arrive."""
    before = len(sink.got(where))
    try:
        wait_for('heartbeats', lambda: len(sink.got(where)) >= before + more, 60)
    except TimeoutError:
        pass
    return is_(what, len(sink.got(where)) >= before + more, True)


def ends(db, sink, what):
    """No heartbeat arrives any more, once those are over that were on their way."""
    settled(db, 'alive')
    before = len(sink.got('/alive'))
    return is_(what, holds_for(QUIET, lambda: len(sink.got('/alive')) <= before + 1), True)


def manager(db):
    return db.one("SELECT pid FROM pg_stat_activity WHERE application_name = 'millrace manager'")


def streams(db, sink):
    rule(db, 'stopped', "state NOT IN ('running', 'starting')", source='millrace.stream_status', details='{state}', channels='{ops}', send_resolved=True)
    rule(db, 'lag', 'lag_messages > 3', source='millrace.stream_status', channels='{ops}', send_resolved=True)
    rule(db, 'letters', 'dead_letters > 0', source='millrace.stream_status', details='{dead_letters}', channels='{ops}', send_resolved=True)
    rule(db, 'slow', 'lag_messages > 3', source='millrace.stream_status', channels='{ops}', for_interval='1 hour')
    db.query("SELECT millrace.stop_stream('orders')")
    arrives(sink, '/ops', 'stopped', ('firing', 'orders'))
    db.query("SELECT millrace.push('orders', json_build_object('id', n)) FROM generate_series(1, 4) n")
    arrives(sink, '/ops', 'lag', ('firing', 'orders'))
    db.query("SELECT millrace.start_stream('orders')")
    arrives(sink, '/ops', 'stopped', ('firing', 'orders'), ('resolved', 'orders'))
    arrives(sink, '/ops', 'lag', ('firing', 'orders'), ('resolved', 'orders'))
    db.query("""SELECT millrace.push('orders', '{"id": "x"}')""")
    arrives(sink, '/ops', 'letters', ('firing', 'orders'))
    is_('what does not hold long enough is not told', said(sink, '/ops', 'slow'), [])
    db.query("SELECT millrace.discard(ARRAY(SELECT id FROM millrace.dead_letter WHERE stream = 'orders'))")
    arrives(sink, '/ops', 'letters', ('firing', 'orders'), ('resolved', 'orders'))


def channels(db, sink):
    rule(db, 'channel', "state = 'failing'", source='millrace.channel_status', details='{last_error}', channels='{bad, ops}', send_resolved=True)
    rule(db, 'alive', 'healthy', repeat_every='1 second', max_age='1 second', channels='{alive}')
    goes_on(sink, 'a heartbeat comes again and again')
    db.query("SELECT add('bad', 'k', '{\"n\": 1}')")
    arrives(sink, '/ops', 'channel', ('firing', 'bad'))
    ends(db, sink, 'it ends while something is wrong')
    sink.answers['/bad'] = [200]
    arrives(sink, '/ops', 'channel', ('firing', 'bad'), ('resolved', 'bad'))
    is_('a channel is not told about itself', said(sink, '/bad', 'channel'), [])
    goes_on(sink, 'and goes on when nothing is')
    sink.answers['/alive'] = [500, 500, 200]
    goes_on(sink, 'also when its own channel has failed', 4)


def nothing_stops(db, sink):
    db.query("SELECT millrace.silence(until => 'infinity')")
    db.fails('it cannot be acknowledged', "SELECT millrace.acknowledge(max(id)) FROM millrace.alert WHERE rule = 'alive'", 'cannot be acknowledged')
    goes_on(sink, 'a silence does not stop it')
    db.query('SELECT millrace.unsilence(id) FROM millrace.alert_silence')

    pid = manager(db)
    os.kill(pid, signal.SIGSTOP)
    try:
        ends(db, sink, 'it ends while the manager stands still')
    finally:
        os.kill(pid, signal.SIGCONT)
    goes_on(sink, 'and goes on with it')
    rule(db, 'machinery', 'true', repeat_every='1 second', channels='{own}')
    goes_on(sink, 'one on the machinery alone', where='/own')
    db.query("UPDATE millrace.channel SET fence = 'another' WHERE name = 'own'")
    before = db.one("SELECT count(*) FROM millrace.outbox WHERE channel = 'own'")
    is_('a copy of the database has none', holds_for(QUIET, lambda: db.one("SELECT count(*) FROM millrace.outbox WHERE channel = 'own'") <= before + 1), True)
    db.query("UPDATE millrace.channel SET fence = millrace_internal.fence() WHERE name = 'own'")
    db.query("SELECT millrace.drop_rule('machinery')")


def suspended(db, sink, shell):
    """Its owner's function fails, and is mended."""
    db.query("""CREATE TABLE flag (works boolean); INSERT INTO flag VALUES (false);
                CREATE FUNCTION works() RETURNS boolean LANGUAGE plpgsql STABLE AS $$ BEGIN IF NOT (SELECT f.works FROM public.flag f) THEN RAISE 'it does not work'; END IF; RETURN true; END $$""")
    rule(db, 'rules', "state = 'suspended'", source='millrace.rule_status', details='{reason}', channels='{ops}', send_resolved=True)
    rule(db, 'own', 'public.works()', repeat_every='1 second', channels='{own}')
    arrives(sink, '/ops', 'rules', ('firing', 'own'))
    db.becomes('it says why', "SELECT reason FROM millrace.rule_status WHERE rule = 'own'", 'it does not work')
    is_('a rule that is suspended is no good health', db.query('SELECT healthy, rules_suspended FROM millrace.health'), [(False, 1)])
    is_('the log has it once', shell.value('$(grep -c "rule .own. on millrace itself is suspended: it does not work" "$work/pg/server.log")'), '1')
    db.query("UPDATE flag SET works = true; UPDATE millrace.rule SET suspended_at = now() - interval '1 minute' WHERE name = 'own'")
    arrives(sink, '/ops', 'rules', ('firing', 'own'), ('resolved', 'own'))
    goes_on(sink, 'tried again, it goes on by itself')


def killed(db, sink):
    db.query("SELECT millrace.stop_stream('orders')")
    arrives(sink, '/ops', 'stopped', ('firing', 'orders'), ('resolved', 'orders'), ('firing', 'orders'))
    settled(db, 'ops')   # what has arrived comes again if its answer was not recorded before the crash
    pid = manager(db)
    os.kill(pid, signal.SIGKILL)

    def back():
        try:
            db.connect()
            return manager(db) != pid
        except (psycopg2.Error, IndexError):
            return False

    wait_for('the server', back)
    goes_on(sink, 'after a crash it goes on')
    db.query("SELECT millrace.start_stream('orders')")
    arrives(sink, '/ops', 'stopped', *[('firing', 'orders'), ('resolved', 'orders')] * 2)


def main():
    with Shell() as shell:
        db = start(shell)
        sink = Sink()
        sink.answers['/bad'] = [500]
        db.query(f"""CREATE SERVER hook FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{sink.url}');
            SELECT millrace.create_channel(name, server => 'hook', options => json_build_object('path', '/' || name), message => 'message::text')
            FROM unnest('{{ops, bad, alive, own}}'::text[]) name;
            CREATE SCHEMA bronze;
            SELECT millrace.create_stream('orders');
            SELECT millrace.create_staging('bronze.orders', stream => 'orders', key => '{{"id": ["$.id", "bigint"]}}');
            SELECT millrace.start_stream('orders')""")
        db.becomes('the stream runs', 'SELECT state FROM millrace.stream_status', 'running')
        for part in (streams, channels, nothing_stops):
            part(db, sink)
        suspended(db, sink, shell)
        killed(db, sink)
        sink.end()
        finish(shell)


if __name__ == '__main__':
    main()
