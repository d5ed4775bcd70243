-- Made-up profiles in the shape of randomuser.me: the same ones each time. Postcodes are numbers or texts, as they are there.
--
--	SELECT * FROM pg_temp.user_messages(100);

CREATE FUNCTION pg_temp.pick(n bigint, what text, among text[]) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN among[1 + (('x' || substr(md5(what || n), 1, 12))::bit(48)::bigint) % cardinality(among)];

CREATE FUNCTION pg_temp.user_messages(users bigint) RETURNS SETOF json
LANGUAGE sql STABLE
SET timezone = 'UTC' AS $$
    SELECT json_build_object('gender', gender,
        'name', json_build_object('title', CASE gender WHEN 'male' THEN 'Mr' ELSE 'Ms' END, 'first', first, 'last', last),
        'location', json_build_object('street', json_build_object('number', n % 200 + 1, 'name', street), 'city', city, 'state', city || ' Region', 'country', country,
                                      'postcode', CASE WHEN n % 3 = 0 THEN to_json('A' || n) ELSE to_json(10000 + n % 90000) END),
        'email', lower(first || '.' || last || n || '@example.com'),
        'login', json_build_object('uuid', md5('user' || n)::uuid, 'username', lower(first) || n),
        'dob', json_build_object('date', timestamptz '1950-01-01 00:00+00' + make_interval(days => (n * 7919 % 20000)::integer), 'age', 30),
        'registered', json_build_object('date', timestamptz '2010-01-01 00:00+00' + make_interval(hours => (n * 104729 % 100000)::integer)),
        'phone', '555-' || lpad((n % 10000)::text, 4, '0'),
        'picture', json_build_object('medium', 'https://pictures.example.com/' || n || '.jpg'))
    FROM (SELECT n, CASE WHEN n % 2 = 0 THEN 'female' ELSE 'male' END AS gender,
                 pg_temp.pick(n, 'first', CASE WHEN n % 2 = 0 THEN '{Anna,Clara,Emma,Ida,Nora,Olga}'::text[] ELSE '{Ben,David,Jonas,Karl,Peter,Tom}' END) AS first,
                 pg_temp.pick(n, 'last', '{Adler,Berg,Cohen,Diaz,Eriksen,Fischer,O''Neill}') AS last,
                 pg_temp.pick(n, 'street', '{High Street,Main Road,Park Lane,Station Road}') AS street,
                 pg_temp.pick(n, 'city', '{Oslo,Bergen,Lyon,Porto,Graz}') AS city,
                 pg_temp.pick(n, 'country', '{Norway,France,Portugal,Austria}') AS country
          FROM generate_series(1, users) AS n) AS drawn
$$;
