-- The tables of the restaurant model as a careful person would make them by hand: the same names and columns as
-- millrace's, the same keys, and no more indexes than those.
\set QUIET on
CREATE SCHEMA stg;
CREATE SCHEMA dds;
CREATE SCHEMA cdm;

CREATE TABLE stg.order_events (
	order_id bigint PRIMARY KEY, object_type text, restaurant_id text, restaurant_name text, user_id text, username text,
	userlogin text, status text, cost numeric(12,2), payment numeric(12,2), _version timestamptz, _event_time timestamptz,
	_partition integer, _position bigint, _loaded_at timestamptz, payload json);
CREATE TABLE stg.order_items (
	order_id bigint, _element integer, object_type text, restaurant_id text, user_id text, status text, product_id text,
	product_name text, category_name text, price numeric(12,2), quantity integer, _version timestamptz, _event_time timestamptz,
	_partition integer, _position bigint, _loaded_at timestamptz, PRIMARY KEY (order_id, _element));

CREATE TABLE dds.h_user (h_user_hk uuid PRIMARY KEY, user_id text, load_at timestamptz, record_source text);
CREATE TABLE dds.h_restaurant (h_restaurant_hk uuid PRIMARY KEY, restaurant_id text, load_at timestamptz, record_source text);
CREATE TABLE dds.h_order (h_order_hk uuid PRIMARY KEY, order_id bigint, load_at timestamptz, record_source text);
CREATE TABLE dds.h_product (h_product_hk uuid PRIMARY KEY, product_id text, load_at timestamptz, record_source text);
CREATE TABLE dds.h_category (h_category_hk uuid PRIMARY KEY, category_name text, load_at timestamptz, record_source text);

CREATE TABLE dds.l_order_user (
	l_order_user_hk uuid PRIMARY KEY, h_order_hk uuid, h_user_hk uuid, load_at timestamptz, record_source text);
CREATE TABLE dds.l_order_product (
	l_order_product_hk uuid PRIMARY KEY, h_order_hk uuid, h_product_hk uuid, load_at timestamptz, record_source text);
CREATE TABLE dds.l_product_restaurant (
	l_product_restaurant_hk uuid PRIMARY KEY, h_product_hk uuid, h_restaurant_hk uuid, load_at timestamptz, record_source text);
CREATE TABLE dds.l_product_category (
	l_product_category_hk uuid PRIMARY KEY, h_product_hk uuid, h_category_hk uuid, load_at timestamptz, record_source text);

CREATE TABLE dds.s_user_names (
	h_user_hk uuid, username text, userlogin text, applied_at timestamptz, hashdiff uuid, load_at timestamptz,
	record_source text, PRIMARY KEY (h_user_hk, applied_at, hashdiff));
CREATE TABLE dds.s_restaurant_names (
	h_restaurant_hk uuid, restaurant_name text, applied_at timestamptz, hashdiff uuid, load_at timestamptz,
	record_source text, PRIMARY KEY (h_restaurant_hk, applied_at, hashdiff));
CREATE TABLE dds.s_product_names (
	h_product_hk uuid, product_name text, applied_at timestamptz, hashdiff uuid, load_at timestamptz,
	record_source text, PRIMARY KEY (h_product_hk, applied_at, hashdiff));
CREATE TABLE dds.s_order_cost (
	h_order_hk uuid, cost numeric(12,2), payment numeric(12,2), applied_at timestamptz, hashdiff uuid, load_at timestamptz,
	record_source text, PRIMARY KEY (h_order_hk, applied_at, hashdiff));
CREATE TABLE dds.s_order_status (
	h_order_hk uuid, status text, applied_at timestamptz, hashdiff uuid, load_at timestamptz,
	record_source text, PRIMARY KEY (h_order_hk, applied_at, hashdiff));

CREATE TABLE cdm.user_product_counters (user_id text, product_id text, order_cnt bigint, PRIMARY KEY (user_id, product_id));
CREATE TABLE cdm.user_category_counters (
	user_id text, category_name text, category_id uuid, order_cnt bigint, PRIMARY KEY (user_id, category_name));

-- What lifecycle.sql needs beside: until when a satellite's row has been said, and pairs of attributes.
ALTER TABLE dds.s_user_names ADD confirmed_at timestamptz;
ALTER TABLE dds.s_restaurant_names ADD confirmed_at timestamptz;
ALTER TABLE dds.s_product_names ADD confirmed_at timestamptz;
ALTER TABLE dds.s_order_cost ADD confirmed_at timestamptz;
ALTER TABLE dds.s_order_status ADD confirmed_at timestamptz;
CREATE TYPE dds.pair_of_texts AS (a text, b text);
CREATE TYPE dds.pair_of_numbers AS (a numeric(12,2), b numeric(12,2));

-- The first 16 bytes of SHA-256 as a uuid. STABLE, as convert_to() is: only so is the function inlined, and twice as fast.
CREATE FUNCTION dds.hash(text) RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
	RETURN encode(substr(sha256(convert_to($1, 'UTF8')), 1, 16), 'hex')::uuid;
