-- Endpoints: what CREATE SERVER and CREATE USER MAPPING take.

CREATE FUNCTION millrace_internal.kafka_validator(options text[], catalog oid) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_kafka_validator';
COMMENT ON FUNCTION millrace_internal.kafka_validator(text[], oid) IS
    'checks the options of servers and user mappings of millrace_kafka';

CREATE FOREIGN DATA WRAPPER millrace_kafka VALIDATOR millrace_internal.kafka_validator;
COMMENT ON FOREIGN DATA WRAPPER millrace_kafka IS 'Apache Kafka brokers, through librdkafka';
GRANT USAGE ON FOREIGN DATA WRAPPER millrace_kafka TO millrace_admin;

CREATE FUNCTION millrace_internal.postgres_validator(options text[], catalog oid) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_postgres_validator';
COMMENT ON FUNCTION millrace_internal.postgres_validator(text[], oid) IS
    'checks the options of servers and user mappings of millrace_postgres';

CREATE FOREIGN DATA WRAPPER millrace_postgres VALIDATOR millrace_internal.postgres_validator;
COMMENT ON FOREIGN DATA WRAPPER millrace_postgres IS 'PostgreSQL servers whose changes are captured, through libpq';
GRANT USAGE ON FOREIGN DATA WRAPPER millrace_postgres TO millrace_admin;

CREATE FUNCTION millrace_internal.redis_validator(options text[], catalog oid) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_redis_validator';
COMMENT ON FUNCTION millrace_internal.redis_validator(text[], oid) IS
    'checks the options of servers and user mappings of millrace_redis';

CREATE FOREIGN DATA WRAPPER millrace_redis VALIDATOR millrace_internal.redis_validator;
COMMENT ON FOREIGN DATA WRAPPER millrace_redis IS 'a Redis, through hiredis';
GRANT USAGE ON FOREIGN DATA WRAPPER millrace_redis TO millrace_admin;

CREATE FUNCTION millrace_internal.http_validator(options text[], catalog oid) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_http_validator';
COMMENT ON FUNCTION millrace_internal.http_validator(text[], oid) IS
    'checks the options of servers and user mappings of millrace_http';

CREATE FOREIGN DATA WRAPPER millrace_http VALIDATOR millrace_internal.http_validator;
COMMENT ON FOREIGN DATA WRAPPER millrace_http IS 'endpoints of HTTP, through libcurl: webhooks and Telegram';
GRANT USAGE ON FOREIGN DATA WRAPPER millrace_http TO millrace_admin;
