#!/usr/bin/python3
"""Telegram, with a sink in its place: what is escaped and split, and what its errors mean."""
import json
import time

from common import Shell, Sink, attempts, finish, is_, pauses, settled, start

TOKEN = '123:ABC-def_9'
PATH = f'/bot{TOKEN}/sendMessage'
MARKUP = (400, {}, '{"ok": false, "error_code": 400, "description": "Bad Request: can\'t parse entities: unsupported start tag"}')
BUSY = (429, {}, '{"ok": false, "error_code": 429, "parameters": {"retry_after": 2}}')


def units(text):
    """UTF-16 code units."""
    return len(text.encode('utf-16-le')) // 2


def unescape(text):
    return text.replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&')


def add(db, message, key='k', **arguments):
    more = ''.join(f', {name} => %s' for name in arguments)
    db.query(f"SELECT add('ops', %s, %s{more})", key, json.dumps(message), *arguments.values())
    settled(db, 'ops')


def main():
    with Shell() as shell:
        db = start(shell)
        sink = Sink()
        db.query(f"CREATE SERVER telegram FOREIGN DATA WRAPPER millrace_http OPTIONS (kind 'telegram', url '{sink.url}', timeout '2s')")
        db.query("SELECT millrace.create_channel('ops', server => 'telegram', options => '{\"chat_id\": -100123, \"message_thread_id\": 5}')")
        db.query("SELECT add('ops', 'k', '{\"text\": \"first\"}')")
        db.becomes('without a token nothing is sent', "SELECT state || ': ' || last_error FROM millrace.channel_status", 'failed: there is no token for server "telegram"')
        secrets = shell.value('$work/pg/data/millrace_secrets')
        shell.run(f'as_root mkdir -p {secrets}; printf "%s\\n" {TOKEN} | as_root tee {secrets}/telegram >/dev/null; [ "$(id -u)" != 0 ] || chown -R postgres: {secrets}')
        db.query("CREATE USER MAPPING FOR CURRENT_USER SERVER telegram OPTIONS (token_file 'telegram')")
        settled(db, 'ops')
        is_('the token is read from its file', sink.bodies(PATH), [{'chat_id': -100123, 'message_thread_id': 5, 'parse_mode': 'HTML', 'text': 'first'}])

        add(db, {'text': 'a < b && c > d 🛑 "x"'})
        is_('what HTML means is escaped', sink.bodies(PATH)[-1]['text'], 'a &lt; b &amp;&amp; c &gt; d 🛑 "x"')
        add(db, {'rule': 'HIGH', 'details': {'who': 'A&B'}}, alert=3)
        is_('an alert is readable', sink.bodies(PATH)[-1]['text'], 'rule: HIGH\nwho: A&amp;B')

        for what, text in (('10,000 letters', 'x' * 10000), ('emoji', '🛑' * 5000), ('what is escaped', '<&>' * 3000),
                           ('lines', '\n'.join(f'line {n} of a longer text' for n in range(500)))):
            before = len(sink.got(PATH))
            add(db, {'text': text})
            parts = [body['text'] for body in sink.bodies(PATH)[before:]]
            is_(f'{what}: every part is under the limit', max(map(units, parts)) < 4096, True)
            is_(f'{what}: nothing is lost', unescape(''.join(parts)).replace('\n', ''), text.replace('\n', ''))
            is_(f'{what}: each part is a row', db.one("SELECT count(DISTINCT part) FROM millrace.delivery_attempt WHERE delivery_id = (SELECT max(delivery_id) FROM millrace.delivery_attempt)"), len(parts))
        is_('lines are not cut', all(part.startswith('line') for part in parts), True)

        # The second part fails for a while: the first one is not sent again.
        before = len(sink.got(PATH))
        sink.answers[PATH] = [200, 500, 200]
        add(db, {'text': 'a' * 4000 + '\n' + 'b' * 4000})
        is_('a part that failed is sent again, alone', [body['text'][0] for body in sink.bodies(PATH)[before:]], ['a', 'b', 'b'])

        before = len(sink.got(PATH))
        sink.answers[PATH] = [MARKUP, 200]
        add(db, {'text': 'a < b'})
        is_('refused for its entities it is sent once more, plain', [(body.get('parse_mode'), body['text']) for body in sink.bodies(PATH)[before:]], [('HTML', 'a &lt; b'), (None, 'a < b')])
        sink.answers[PATH] = [MARKUP, MARKUP, 200]
        add(db, {'text': 'c < d'})
        is_('refused again it is dead', attempts(db, 'ops')[-2:], [(1, 'retry', 400), (2, 'dead', 400)])

        before = len(sink.got(PATH))
        sink.answers[PATH] = [BUSY, 200]
        add(db, {'text': 'busy'})
        is_('retry_after in the answer is obeyed', [2 <= least and most <= 2 for least, most in pauses(db, 'ops')][-1], True)
        is_('and the message sent once more', len(sink.got(PATH)[before:]), 2)

        # 100,000 alerts at once into one chat, which has enough of it.
        before = len(sink.got(PATH))
        sink.answers[PATH] = [BUSY, 200]
        begin = time.time()
        db.query("""SELECT millrace.create_stream('feed');
            SELECT millrace.create_staging('things', stream => 'feed', payload => 'none', key => '{"id": ["$.id", "integer"]}', columns => '{"kind": "$.kind"}');
            SELECT millrace.create_rule('every', kind => 'match', source => 'things', predicate => 'id > 0', details => '{id}', group_by => '{kind}', channels => '{ops}');
            SELECT count(millrace.push('feed', json_build_object('id', n, 'kind', 'flood'))) FROM generate_series(1, 100000) n;
            SELECT millrace.run_stream('feed')""")
        settled(db, 'ops')
        texts = [body['text'] for body in sink.bodies(PATH)[before:]]
        is_('100,000 alerts at once are one digest, sent again after retry_after', (len(texts), len(set(texts)), texts[0].split(',')[0]), (2, 1, '100000 messages'))
        is_('and all are recorded as sent', db.one("SELECT count(*) FROM millrace.outbox WHERE group_by IS NOT NULL AND state = 'sent'"), 100000)
        print(f'# {time.time() - begin:.1f} s')

        everywhere = ' '.join(str(row) for row in db.query("SELECT c, a, o, l FROM millrace.channel_status c, millrace.delivery_attempt a, millrace.outbox o, millrace.dead_letter l"))
        log = open(shell.value('$work/pg/server.log')).read()
        is_('the token is in no view and no log', (TOKEN in everywhere, TOKEN in log), (False, False))
        sink.end()
        finish(shell)


if __name__ == '__main__':
    main()
