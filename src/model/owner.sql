-- Whose a model is, and who may ask it of somebody.

-- A model belongs to whom its view belongs to: its definitions follow, and the right to read its state.
CREATE FUNCTION millrace_internal.follow_owners() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given record;
    part record;
BEGIN
    FOR given IN SELECT m.id, m.target_id, m.catalogue, m.owner AS giver, c.relowner::regrole AS taker FROM millrace.model m JOIN pg_class c ON c.oid = m.relation WHERE c.relowner <> m.owner LOOP
        -- First, so that what follows finds nothing to be done.
        UPDATE millrace.model m SET owner = given.taker WHERE m.id = given.id;
        FOR part IN SELECT c.oid::regclass AS name, c.relkind = 'v' AND c.relname ~ '^model_(popular_)?\d+$' OR c.relname ~ '^model_catalogue_' AND given.catalogue IS NOT NULL AS is_definition,
                           EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = given.giver AND a.grantee <> c.relowner) AS is_readable
                    FROM pg_class c WHERE c.relnamespace IN ('millrace_def'::regnamespace, 'millrace_state'::regnamespace) AND c.relkind IN ('r', 'v')
                    AND c.relname ~ format('^model_((catalogue_|popular_)?%1$s$|%1$s_)', given.id) LOOP
            IF part.is_definition THEN
                EXECUTE format('ALTER VIEW %s OWNER TO %s', part.name, given.taker);
                CONTINUE;
            END IF;
            IF part.is_readable THEN
                EXECUTE format('REVOKE ALL ON %s FROM %s', part.name, given.giver);
            END IF;
            EXECUTE format('GRANT SELECT ON %s TO %s', part.name, given.taker);
        END LOOP;
        UPDATE millrace.target t SET owner = given.taker WHERE t.id = given.target_id;
        PERFORM millrace_internal.changed(g.stream_id) FROM millrace.target_source s JOIN millrace.staging g ON g.id = s.staging_id WHERE s.target_id = given.target_id;
    END LOOP;
END
$$;
COMMENT ON FUNCTION millrace_internal.follow_owners() IS 'gives models to the roles that their views belong to by now';

-- The right is SELECT on the table of profiles: PostgreSQL keeps and dumps it.
CREATE FUNCTION millrace_internal.grant_profiles(caller regrole, model regclass, role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of millrace.model := millrace_internal.own_model(caller, model);
BEGIN
    EXECUTE format('GRANT SELECT ON millrace_state.model_%s_%s TO %s', of.id, CASE of.kind WHEN 'item_knn' THEN 'user' ELSE 'trees' END, role);
END
$$;
COMMENT ON FUNCTION millrace_internal.grant_profiles(regrole, regclass, regrole) IS 'the other half of millrace.grant_profiles()';
CREATE FUNCTION millrace.grant_profiles(model regclass, role regrole) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.grant_profiles(regclass, regrole) IS 'lets a role who may SELECT from a model ask for recommendations for its users, or predictions for its entities';

CREATE FUNCTION millrace_internal.revoke_profiles(caller regrole, model regclass, role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of millrace.model := millrace_internal.own_model(caller, model);
BEGIN
    EXECUTE format('REVOKE SELECT ON millrace_state.model_%s_%s FROM %s', of.id, CASE of.kind WHEN 'item_knn' THEN 'user' ELSE 'trees' END, role);
END
$$;
COMMENT ON FUNCTION millrace_internal.revoke_profiles(regrole, regclass, regrole) IS 'the other half of millrace.revoke_profiles()';
CREATE FUNCTION millrace.revoke_profiles(model regclass, role regrole) RETURNS void
LANGUAGE C STRICT AS 'MODULE_PATHNAME', 'millrace_declare';
COMMENT ON FUNCTION millrace.revoke_profiles(regclass, regrole) IS 'takes back what grant_profiles() gave';

REVOKE ALL ON FUNCTION millrace.grant_profiles(regclass, regrole), millrace.revoke_profiles(regclass, regrole) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.grant_profiles(regclass, regrole), millrace.revoke_profiles(regclass, regrole) TO millrace_admin;
