-- Users: nested profiles as JSON messages → one flat table, app.users.
--
--	psql -f users.sql                          the model, on an inbox: millrace.push('users', …)
--	psql -v users=1000 -f users.sql            and that many made-up profiles, consumed, the first ones shown
--	psql -v broker=localhost:9092 -f users.sql the model, from the Kafka topic users_created (-v start=1 starts it)
--
-- A message (as https://randomuser.me answers):
--
--	{"login": {"uuid": "0b0e…", "username": "bigcat12"}, "name": {"title": "Ms", "first": "Anna", "last": "Berg"}, "gender": "female",
--	 "location": {"street": {"number": 12, "name": "High Street"}, "city": "Oslo", "state": "Oslo", "country": "Norway", "postcode": 1050},
--	 "email": "anna.berg@example.com", "dob": {"date": "1990-02-03T04:05:06.000Z"}, "registered": {"date": "2015-…"},
--	 "phone": "555-0101", "picture": {"medium": "https://…/1.jpg"}}
--
-- A profile that comes again replaces the one before; a message without payload (with the id as its key) deletes it; an id that is no
-- uuid, or a date that is none, is a dead letter.
\set ON_ERROR_STOP on

CREATE EXTENSION IF NOT EXISTS millrace;
CREATE SCHEMA app;

\if :{?broker}
CREATE SERVER users_broker FOREIGN DATA WRAPPER millrace_kafka OPTIONS (bootstrap_servers :'broker');
SELECT millrace.create_stream('users', server => 'users_broker', options => '{"topic": "users_created", "start": "earliest"}');
\else
SELECT millrace.create_stream('users');
\endif

SELECT millrace.create_staging('app.users', stream => 'users', payload => 'none',
  key => '{"id": [["$.login.uuid", "$key"], "uuid"]}',
  columns => '{"first_name": "$.name.first", "last_name": "$.name.last", "gender": "$.gender",
               "no": "$.location.street.number", "street": "$.location.street.name", "city": "$.location.city",
               "state": "$.location.state", "country": "$.location.country",
               "postcode": "$.location.postcode", "email": "$.email", "username": "$.login.username",
               "dob": ["$.dob.date", "timestamptz"], "registered_date": ["$.registered.date", "timestamptz"],
               "phone": "$.phone", "picture": "$.picture.medium"}',
  computed => '{"address": ["concat_ws('', '', nullif(concat_ws('' '', no, street), ''''), city, state, country)", "text"]}');

-- what the others of the house read
CREATE VIEW app.profiles AS
  SELECT id, first_name, last_name, gender, address, postcode, email, username, dob, registered_date, phone, picture FROM app.users;

\if :{?start}
SELECT millrace.start_stream('users');
\endif
\if :{?users}
\ir generate.sql
SELECT count(millrace.push('users', message, key => message #>> '{login,uuid}')) AS pushed FROM pg_temp.user_messages(:users) AS message;
SELECT * FROM millrace.run_stream('users');
SELECT first_name, last_name, address, email, dob FROM app.profiles ORDER BY username LIMIT 5;
\endif
