#!/usr/bin/python3
"""Webhooks, and endpoints that do not do as they should: what is sent when, what becomes of it, and what a user sees.

Delays are compared with what docs/delivery.md promises: before attempt n + 1 between half and all of min(2^(n-1), 300) seconds.
"""
import hashlib
import hmac
import json
import os
import random
import signal
import threading
import time

from common import Database, Shell, Sink, attempts, finish, holds_for, is_, pauses, setting, settled, start, wait_for


def channel(db, name, options='{}', server='hook', **arguments):
    more = ''.join(f", {key} => {value}" for key, value in arguments.items())
    db.query(f"SELECT millrace.create_channel('{name}', server => '{server}', options => '{options}'{more})")


def path(db, name, **arguments):
    channel(db, name, json.dumps({'path': f'/{name}'}), **arguments)


def add(db, channel, key, message, **arguments):
    more = ''.join(f', {name} => %s' for name in arguments)
    db.query(f'SELECT add(%s, %s, %s{more})', channel, key, json.dumps(message), *arguments.values())


def numbers(sink, where):
    return [body['n'] for body in sink.bodies(where)]


def promised(found):
    """Are the pauses as the back-off promises?"""
    return all(0.5 * 2**n <= least and most <= 2**n for n, (least, most) in enumerate(found))


def bodies(db, sink):
    path(db, 'plain')
    add(db, 'plain', 'k', {'a': 1})
    settled(db, 'plain')
    is_('a message of a sink is sent as it is', sink.bodies('/plain'), [{'a': 1}])
    add(db, 'plain', 'k', {'rule': 'HIGH', 'severity': None, 'details': {'total': 12.50, 'who': 'Ann <a@b>'}}, alert=7)
    settled(db, 'plain')
    is_('an alert is sent as Slack takes it', sink.bodies('/plain')[-1], {'text': 'HIGH'.join(['rule: ', '\ntotal: 12.5\nwho: Ann <a@b>'])})
    db.query("SELECT add('plain', 'k', NULL)")
    settled(db, 'plain')
    is_('what was deleted is said', sink.bodies('/plain')[-1], {'deleted': 'k'})

    db.query("CREATE USER MAPPING FOR CURRENT_USER SERVER signed OPTIONS (signing_key 'secret', token 'tok')")
    channel(db, 'own', '{"path": "/own", "headers": {"X-Team": "ops"}}', 'signed',
            message="$$ jsonb_build_object('n', message -> 'n', 'x', 1 / (message ->> 'n')::integer, 'of', count, 'key', key) $$")
    add(db, 'own', 'k1', {'n': 1})
    add(db, 'own', 'k0', {'n': 0})
    settled(db, 'own')
    got = sink.got('/own')[0]
    is_("the channel's own expression makes the body", json.loads(got.body), {'n': 1, 'x': 1, 'of': 1, 'key': 'k1'})
    is_('custom headers are sent, and the token', (got.headers['X-Team'], got.headers['Authorization']), ('ops', 'Bearer tok'))
    stamp, signature = (part.split('=', 1)[1] for part in got.headers['X-Millrace-Signature'].split(','))
    is_('the signature is right', signature, hmac.new(b'secret', f'{stamp}.{got.body}'.encode(), hashlib.sha256).hexdigest())
    is_('an expression that fails on one message makes that one a dead letter',
        db.query("SELECT kind, convert_from(key, 'UTF8'), message FROM millrace.dead_letter WHERE channel = 'own'"),
        [('delivery', 'k0', "the channel's message expression fails: division by zero")])
    db.query("SELECT millrace.create_channel('own', server => 'signed', message => 'pg_sleep(100)::text', replace => true)")
    add(db, 'own', 'k', {'n': 1})
    db.becomes('one that runs for ever stops the channel', "SELECT state || ': ' || last_error FROM millrace.channel_status WHERE channel = 'own'",
               'failed: canceling statement due to statement timeout', 60)
    db.query("SELECT millrace.drop_channel('own')")


def answers(db, sink):
    """Each answer by itself: the attempts that follow, and their delays."""
    for name, given, wanted in (
            ('again500', [500, 502, 503, 200], [(1, 'retry', 500), (2, 'retry', 502), (3, 'retry', 503), (4, 'sent', 200)]),
            ('again408', [408, 200], [(1, 'retry', 408), (2, 'sent', 200)]),
            ('again429', [429, 200], [(1, 'retry', 429), (2, 'sent', 200)]),
            ('halfway', ['close', 200], [(1, 'retry', None), (2, 'sent', 200)]),
            ('silent', ['silence', 200], [(1, 'retry', None), (2, 'sent', 200)])):
        sink.answers[f'/{name}'] = given
        path(db, name)
        add(db, name, 'k', {})
        settled(db, name)
        is_(f'{name}: the attempts', attempts(db, name), wanted)
        got = sink.got(f'/{name}')
        is_(f'{name}: one key for all of them', (len(got), len({request.key for request in got})), (len(wanted), 1))
        found = pauses(db, name)
        if not is_(f'{name}: delays are as promised', promised(found), True):
            print('#', found)
    is_('a time-out says so', db.one("SELECT error FROM millrace.delivery_attempt WHERE channel = 'silent' AND attempt = 1"), 'Timeout was reached')

    for name, given, part in (('dead400', 400, 'HTTP status 400'), ('moved', (302, {'Location': '/plain'}, ''), 'redirects are not followed'), ('gone', 410, 'HTTP status 410')):
        sink.answers[f'/{name}'] = [given, 200]
        path(db, name)
        add(db, name, 'k', {'n': 1})
        add(db, name, 'k', {'n': 2})
        settled(db, name)
        is_(f'{name}: dead at once, and the key goes on', [outcome for _, outcome, _ in attempts(db, name)], ['dead', 'sent'])
        is_(f'{name}: the letter says why', db.one(f"SELECT count(*) FROM millrace.dead_letter WHERE channel = '{name}' AND kind = 'delivery' AND state = 'open' "
                                                   f"AND strpos(message, '{part}') > 0"), 1)
    is_('nobody followed the redirect', [body for body in sink.bodies('/plain') if 'n' in body], [])
    db.query("SELECT millrace.retry($$ channel = 'dead400' $$)")
    is_('retry says that it is out of order', 'out of order' in db.connection.notices[-1], True)
    settled(db, 'dead400')
    is_('and sends it, with the same key', ([body['n'] for body in sink.bodies('/dead400')], sink.got('/dead400')[0].key), ([1, 2, 1], sink.got('/dead400')[2].key))
    is_('the letter is gone', db.one("SELECT count(*) FROM millrace.dead_letter WHERE channel = 'dead400'"), 0)

    sink.answers['/huge'] = ['huge']
    path(db, 'huge')
    add(db, 'huge', 'k', {})
    settled(db, 'huge')
    is_('1 GB as an answer counts by its status', attempts(db, 'huge'), [(1, 'sent', 200)])
    is_('and is not read', sink.megabytes < 100, True)

    sink.answers['/given_up'] = [500]
    path(db, 'given_up', give_up="interval '2 seconds'")
    add(db, 'given_up', 'k', {})
    settled(db, 'given_up')
    is_('after give_up it is dead', (attempts(db, 'given_up')[-1][1], 2 <= sink.got('/given_up')[-1].at - sink.got('/given_up')[0].at <= 6), ('dead', True))


def untried(db, sink):
    """A channel that fails for days: what has waited for too long behind it is a dead letter, and what is newer is sent when it works again."""
    sink.answers['/days'] = [500]
    channel(db, 'days', '{"path": "/days", "connections": 1}')
    db.query("SELECT add('days', 'k' || n, json_build_object('n', n)) FROM generate_series(1, 20) n")
    db.becomes('the channel fails', "SELECT state FROM millrace.channel_status WHERE channel = 'days'", 'failing')

    def days_go_by():
        """What nobody has tried is as old as if the clock had gone on; returns what was tried, or None while something is on its way."""
        db.query("BEGIN; SELECT FROM millrace.channel_state s JOIN millrace.channel c ON c.id = s.channel_id WHERE c.name = 'days' FOR UPDATE")
        if db.one("SELECT count(*) FROM millrace.delivery d JOIN millrace.channel c ON c.id = d.channel_id WHERE c.name = 'days' AND d.state = 'claimed'") > 0:
            db.query('ROLLBACK')
            return None
        untried = "FROM millrace.channel c WHERE c.name = 'days' AND {0}.channel_id = c.id AND NOT EXISTS (SELECT FROM millrace.attempt a WHERE a.delivery_id = {1})"
        db.query("UPDATE millrace.outbox_message m SET created_at = m.created_at - interval '25 hours' " + untried.format('m', 'm.delivery_id'))
        db.query("UPDATE millrace.delivery d SET created_at = d.created_at - interval '25 hours' " + untried.format('d', 'd.id'))
        tried = db.query("SELECT (message ->> 'n')::integer FROM millrace.outbox WHERE channel = 'days' AND created_at > now() - interval '1 hour'")
        db.query('COMMIT')
        return {n for n, in tried}

    tried = wait_for('a pause', days_go_by)
    add(db, 'days', 'new', {'n': 21})
    letters = "SELECT convert_from(value, 'UTF8')::json ->> 'n' FROM millrace.dead_letter WHERE channel = 'days' AND kind = 'delivery'"
    db.becomes('those that nobody has tried are dead letters', f'SELECT count(*) FROM ({letters}) l', 20 - len(tried), 30)
    is_('with a reason', db.query("SELECT DISTINCT attempts, message FROM millrace.dead_letter WHERE channel = 'days'"),
        [(0, "it has waited for longer than the channel's give_up, while the channel failed")])
    sink.answers['/days'] = [200]
    settled(db, 'days')
    arrived = {body['n'] for body in sink.bodies('/days')}
    is_('and are not sent when it works again; the others are', (arrived, {int(n) for n, in db.query(letters)}), (tried | {21}, set(range(1, 21)) - tried))


def longest(db, sink):
    """However often it has failed, it is tried again within five minutes: message and channel."""
    sink.answers['/longest'] = [500]
    path(db, 'longest')
    add(db, 'longest', 'k', {})
    waits = "FROM millrace.delivery d JOIN millrace.channel_state s USING (channel_id) JOIN millrace.channel c ON c.id = channel_id WHERE c.name = 'longest' AND d.state = 'ready'"
    wait_for('a failure', lambda: db.query(f"""WITH waiting AS (SELECT channel_id, d.id {waits} FOR UPDATE),
        channel AS (UPDATE millrace.channel_state s SET failures = 40, not_before = NULL FROM waiting w WHERE s.channel_id = w.channel_id)
        UPDATE millrace.delivery d SET attempts = 40, next_at = now() FROM waiting w WHERE d.id = w.id RETURNING millrace_internal.wake_delivery()"""))
    wait_for('the next failure', lambda: db.query(f"SELECT d.attempts {waits}") == [(41,)])
    is_('the 41st back-off is between half and all of 300 s', db.query(f"""SELECT s.failures, d.next_at - a.at >= interval '150 s', d.next_at <= s.last_error_at + interval '300 s',
        s.not_before - a.at >= interval '150 s', s.not_before <= s.last_error_at + interval '300 s'
        {waits.replace('WHERE', 'JOIN millrace.attempt a ON a.delivery_id = d.id AND a.no = 41 WHERE')}"""), [(41, True, True, True, True)])
    db.query("SELECT millrace.drop_channel('longest')")


def paused(db, sink):
    sink.answers['/paused'] = [(429, {'Retry-After': '3'}, ''), 200]
    path(db, 'paused', server='other')
    path(db, 'sibling', server='other')
    path(db, 'stranger')
    add(db, 'paused', 'k', {})
    db.becomes('a 429 that names a time pauses the channel', "SELECT state FROM millrace.channel_status WHERE channel = 'paused'", 'failing', 10)
    add(db, 'sibling', 'k', {})
    add(db, 'stranger', 'k', {})
    for name in ('stranger', 'sibling', 'paused'):
        settled(db, name)
    first = sink.got('/paused')[0].at
    is_('the time is obeyed', [3 <= least and most <= 3 for least, most in pauses(db, 'paused')], [True])
    is_('by all channels with that token', sink.got('/sibling')[0].at - first >= 3, True)
    is_('and by no other', sink.got('/stranger')[0].at < sink.got('/sibling')[0].at, True)


def probes(db, sink):
    """An endpoint that fails: the first ones on their way, then one at a time."""
    sink.answers['/probed'] = [500]
    channel(db, 'probed', '{"path": "/probed", "connections": 4}')
    for n in range(100):
        add(db, 'probed', f'k{n}', {'n': n})
    db.becomes('a channel that fails says so', "SELECT state FROM millrace.channel_status WHERE channel = 'probed'", 'failing')
    wait_for('four failures in a row', lambda: db.one("SELECT failures FROM millrace.channel_status WHERE channel = 'probed'") >= 4)
    found = db.query("""SELECT a.at < min(pg_xact_commit_timestamp(a.xmin)) OVER (), a.at < lag(a.at + make_interval(secs => a.seconds)) OVER (ORDER BY a.at)
        FROM millrace.attempt a JOIN millrace.delivery d ON d.id = a.delivery_id JOIN millrace.channel c ON c.id = d.channel_id WHERE c.name = 'probed' ORDER BY a.at""")
    together = sum(first for first, _ in found)
    is_('no more than its connections were under way', together <= 4, True)
    is_('then one probe at a time', (len(found) > together, [overlaps for first, overlaps in found if not first and overlaps]), (True, []))
    is_('by turns an old one and a new one', len({body['n'] for body in sink.bodies('/probed')}) > together, True)
    del sink.answers['/probed']
    settled(db, 'probed')
    is_('when it works again everything is sent', db.one("SELECT count(*) FROM millrace.outbox WHERE channel = 'probed' AND state = 'sent'"), 100)
    sent = [got.key for got in sink.got('/probed')][-100:]
    is_('once', len(set(sent)) >= 96, True)


def ordered(db, sink):
    """Whatever fails, messages of one key arrive in their order."""
    chance = random.Random(5)
    arrived = []

    def answer(body):
        status = chance.choices((200, 500, 408), (30, 1, 1))[0]
        if status == 200:
            arrived.append(json.loads(body))
        return status

    sink.answers['/ordered'] = [answer]
    path(db, 'ordered')
    db.query("SELECT add('ordered', 'k' || n % 7, json_build_object('key', n % 7, 'n', n)) FROM generate_series(1, 300) n")
    settled(db, 'ordered', 200)
    is_('all arrive', sorted(body['n'] for body in arrived), list(range(1, 301)))
    is_('those of one key in their order', [key for key in range(7) if [b['n'] for b in arrived if b['key'] == key] != sorted(b['n'] for b in arrived if b['key'] == key)], [])


def many(db, sink):
    path(db, 'crowd')
    db.query("SELECT add('crowd', 'one', json_build_object('n', n)) FROM generate_series(1, 3000) n")
    add(db, 'crowd', 'two', {'n': 0})
    wait_for('the other key', lambda: 0 in numbers(sink, '/crowd'))
    is_('a long queue of one key holds up no other', numbers(sink, '/crowd').index(0) < 1000, True)
    db.query("SELECT millrace.drop_channel('crowd')")
    is_('dropping a channel drops what waits', db.one("SELECT count(*) FROM millrace.outbox_message m WHERE NOT EXISTS (SELECT FROM millrace.channel c WHERE c.id = m.channel_id)"), 0)

    path(db, 'late')
    add(db, 'late', 'k', {}, not_after='2000-01-01')
    add(db, 'late', 'k', {})
    settled(db, 'late')
    is_('what is too old is not sent', db.query("SELECT state FROM millrace.outbox WHERE channel = 'late' ORDER BY id"), [('expired',), ('sent',)])

    path(db, 'grouped')
    db.query("SELECT add('grouped', 'k' || n, json_build_object('text', 'alert ' || n), 'rule', n) FROM generate_series(1, 3) n")
    settled(db, 'grouped')
    is_('those that wait with one group are one message', sink.bodies('/grouped'), [{'text': 'alert 1\n\nalert 2\n\nalert 3'}])
    begin = time.time()
    db.query("SELECT add('grouped', 'k', json_build_object('text', 'again'), 'rule', 1, NULL, 100000)")
    settled(db, 'grouped', 240)
    digest = sink.bodies('/grouped')[1:]
    is_('100,000 at once are one digest', (len(digest), digest[0]['text']), (1, '100000 messages, of which these are the first 10:\n\n' + '\n\n'.join(['again'] * 10)))
    is_('all are recorded as sent', db.one("SELECT count(*) FROM millrace.outbox WHERE channel = 'grouped' AND state = 'sent'"), 100003)
    print(f'# {time.time() - begin:.1f} s')


def endpoints(db, sink, shell):
    db.query("CREATE SERVER elsewhere FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://192.0.2.1:1')")
    channel(db, 'elsewhere', server='elsewhere')
    add(db, 'elsewhere', 'k', {})
    db.becomes('a host that is not listed', "SELECT state || ': ' || last_error FROM millrace.channel_status WHERE channel = 'elsewhere'",
               'failed: host "192.0.2.1" is not listed in millrace.allowed_hosts')
    db.query(f"CREATE SERVER named FOREIGN DATA WRAPPER millrace_http OPTIONS (url 'http://localhost:{sink.port}')")
    setting(db, 'millrace.allowed_hosts', 'localhost')
    channel(db, 'named', '{"path": "/named"}', 'named')
    add(db, 'named', 'k', {})
    db.becomes('a listed name with a private address', "SELECT last_error FROM millrace.channel_status WHERE channel = 'named'",
               'the host has a private address, which is not listed in millrace.allowed_hosts')
    setting(db, 'millrace.allowed_hosts', 'localhost, 127.0.0.0/8, ::1')
    settled(db, 'named')
    is_('both listed', attempts(db, 'named'), [(1, 'sent', 200)])
    is_('validate sends one', [row[0] for row in db.query("SELECT severity || ': ' || message FROM millrace.validate('named', send => true)")], ['info: a test message was taken'])
    sink.answers['/named'] = [(403, {}, 'no entry')]
    is_('and says what comes back', db.one("SELECT message FROM millrace.validate('named', send => true) WHERE severity = 'error'"),
        'a test message was not taken: HTTP status 403: no entry')

    shell.run('make_keys "$work"; as_root mkdir -p "$work/pg/data/millrace_secrets"; as_root cp "$work/ca.pem" "$work/wrong-ca.pem" "$work/pg/data/millrace_secrets"')
    shell.run('[ "$(id -u)" != 0 ] || chown -R postgres: "$work/pg/data/millrace_secrets"')
    secure = Sink(shell.value('$work/server.pem'))
    db.query(f"CREATE SERVER secure FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{secure.url}', ssl_ca_location 'wrong-ca.pem')")
    channel(db, 'secure', '{"path": "/secure"}', 'secure')
    add(db, 'secure', 'k', {})
    db.becomes('a wrong certificate', "SELECT last_error FROM millrace.channel_status WHERE channel = 'secure'", 'SSL peer certificate or SSH remote key was not OK')
    is_('nothing was sent', secure.got('/secure'), [])
    db.query("ALTER SERVER secure OPTIONS (SET ssl_ca_location 'ca.pem')")
    settled(db, 'secure')
    is_('with the right authority it is sent', len(secure.got('/secure')), 1)
    secure.end()

    db.query("CREATE ROLE leaver LOGIN IN ROLE millrace_admin; GRANT USAGE ON FOREIGN SERVER hook TO leaver; SET ROLE leaver")
    channel(db, 'left', '{"path": "/left"}')
    db.query('RESET ROLE; DROP OWNED BY leaver; DROP ROLE leaver')
    add(db, 'left', 'k', {})
    add(db, 'plain', 'k', {'still': 'here'})
    settled(db, 'plain')
    is_('the owner is dropped: others go on', sink.bodies('/plain')[-1], {'still': 'here'})
    db.becomes('and the channel says why it does not', "SELECT state || ': ' || last_error FROM millrace.channel_status WHERE channel = 'left'",
               'failed: the owner of channel "left" does not exist any more')
    db.query("SELECT millrace.drop_channel('left'), millrace.drop_channel('elsewhere')")


def fenced(db, sink, shell):
    setting(db, 'millrace.instance', 'copy')
    add(db, 'plain', 'k', {'fenced': 1})
    db.becomes('a copy does not send', "SELECT state FROM millrace.channel_status WHERE channel = 'plain'", 'fenced')
    wait_for('the warning', lambda: shell.value('$(grep -c "channel \\"plain\\" is fenced" "$work/pg/server.log" || true)') != '0', 30)
    is_('nothing is sent', holds_for(2, lambda: {'fenced': 1} not in sink.bodies('/plain')), True)
    is_('the warning comes once a minute', shell.value('$(grep -c "channel \\"plain\\" is fenced" "$work/pg/server.log")'), '1')
    db.query("SELECT millrace.adopt(outbox => 'discard')")
    add(db, 'plain', 'k', {'adopted': 1})
    settled(db, 'plain')
    is_('adopted, it sends; what waited was discarded', (sink.bodies('/plain')[-1], {'fenced': 1} in sink.bodies('/plain')), ({'adopted': 1}, False))
    setting(db, 'millrace.instance', '')
    add(db, 'plain', 'k', {'waited': 1})
    db.becomes('fenced again', "SELECT state FROM millrace.channel_status WHERE channel = 'plain'", 'fenced')
    db.query("SELECT millrace.adopt()")
    settled(db, 'plain')
    is_('adopted, it sends what waited', sink.bodies('/plain')[-1], {'waited': 1})


def paused_worker(db, sink):
    """Two workers, one of which is stopped while it holds a claim."""
    setting(db, 'millrace.delivery_workers', '2')
    workers = "SELECT pid FROM pg_stat_activity WHERE application_name ~ '^millrace: delivery #[12]$'"
    wait_for('two workers', lambda: len(db.query(workers)) == 2)
    go_on = threading.Event()
    path(db, 'shared', server='patient')

    def answer(body):
        if json.loads(body)['key'] == 'held':
            go_on.wait()
        return 200

    sink.answers['/shared'] = [answer]
    add(db, 'shared', 'held', {'key': 'held', 'n': 1})
    wait_for('the request', lambda: sink.got('/shared'))
    holder = wait_for('the claim', lambda: db.query("""SELECT l.pid FROM pg_locks l JOIN millrace.delivery d ON d.state = 'claimed'
        AND l.classid::bigint << 32 | l.objid::bigint = d.claimant WHERE l.locktype = 'advisory' AND l.granted"""))[0][0]
    os.kill(holder, signal.SIGSTOP)
    add(db, 'shared', 'held', {'key': 'held', 'n': 2})
    add(db, 'shared', 'free', {'key': 'free', 'n': 3})
    wait_for('the other worker', lambda: [body for body in sink.bodies('/shared') if body['n'] == 3])
    is_('the other worker goes on with other keys', True, True)
    go_on.set()
    is_('it leaves the claim alone', holds_for(3, lambda: [body['n'] for body in sink.bodies('/shared') if body['key'] == 'held'] == [1]), True)
    os.kill(holder, signal.SIGCONT)
    settled(db, 'shared')
    is_('the one that goes on records it, and the key goes on', [body['n'] for body in sink.bodies('/shared') if body['key'] == 'held'], [1, 2])
    go_on.clear()
    add(db, 'shared', 'held', {'key': 'held', 'n': 4})
    wait_for('the request', lambda: [body for body in sink.bodies('/shared') if body['n'] == 4])
    db.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name ~ '^millrace: delivery #[12]$'")
    go_on.set()
    settled(db, 'shared')
    sent = [got.key for got in sink.got('/shared') if json.loads(got.body)['n'] == 4]
    is_('what a worker that is gone had claimed is sent once more, with the same key', (len(sent), len(set(sent))), (2, 1))


def late_commits(db, sink):
    """Two workers of one stream, of which the one that has taken its numbers first commits last."""
    path(db, 'late_hook')
    db.query("""SELECT millrace.create_channel('late_told', options => '{"channel": "late"}');
        SELECT millrace.create_stream('late', workers => 2);
        SELECT millrace.create_staging('late_things', stream => 'late', key => '{"id": "$.id"}', columns => '{"n": ["$.n", "integer"]}');
        SELECT millrace.create_rule('late', kind => 'match', source => 'late_things', predicate => 'n > 0', details => '{id}', channels => '{late_hook, late_told}');
        CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NULL; END';
        CREATE TRIGGER hold AFTER INSERT ON millrace.outbox_message FOR EACH ROW WHEN (new.message -> 'details' ->> 'id' = 'held') EXECUTE FUNCTION hold();
        SELECT millrace.start_stream('late')""")
    push = "SELECT count(millrace.push('late', json_build_object('id', id, 'n', 1), key => id)) FROM unnest(%s) id"
    others = [f'k{n}' for n in range(50)]
    gate = Database()
    gate.query('SELECT pg_advisory_lock(77)')
    db.query(push, ['held'])
    wait_for('one worker to be held with its numbers', lambda: db.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"))
    db.query(push, others)
    wait_for('what the other one commits', lambda: sink.got('/late_hook'))
    settled(db, 'late_hook')
    settled(db, 'late_told')
    early = db.query("SELECT min(id), count(DISTINCT key) FROM millrace.outbox WHERE channel ~ '^late_' AND state = 'sent'")[0]
    is_('the other worker commits and its alerts are sent', 0 < early[1] <= len(others), True)
    gate.query('SELECT pg_advisory_unlock(77)')
    wanted = sorted([name, key] for name in ('late_hook', 'late_told') for key in ['held', *others])
    sent = "SELECT channel, message -> 'details' ->> 'id' FROM millrace.outbox WHERE channel ~ '^late_' AND state = 'sent' ORDER BY 1, 2"
    wait_for('all of them', lambda: len(db.query(sent)) >= len(wanted))
    is_('what was committed last with the lowest numbers is sent, too', sorted(map(list, db.query(sent))), wanted)
    is_('it had them', db.one("SELECT max(id) FROM millrace.outbox WHERE channel ~ '^late_' AND message -> 'details' ->> 'id' = 'held'") < early[0], True)
    is_('and nothing twice', (len(sink.got('/late_hook')), len({got.key for got in sink.got('/late_hook')})), (51, 51))
    db.query("SELECT millrace.stop_stream('late'); DROP TRIGGER hold ON millrace.outbox_message")


def main():
    with Shell() as shell:
        db = start(shell)
        sink = Sink()
        for server, more in (('hook', "timeout '1s'"), ('signed', "timeout '1s'"), ('other', "timeout '2s'"), ('patient', "timeout '1min'")):
            url = sink.url if server != 'other' else sink.url + '/'
            db.query(f"CREATE SERVER {server} FOREIGN DATA WRAPPER millrace_http OPTIONS (url '{url}', {more})")
        db.query("CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (token 'shared')")
        for test in (bodies, answers, untried, longest, paused, probes, ordered, many):
            test(db, sink)
        endpoints(db, sink, shell)
        late_commits(db, sink)
        fenced(db, sink, shell)
        paused_worker(db, sink)
        sink.end()
        finish(shell)


if __name__ == '__main__':
    main()
